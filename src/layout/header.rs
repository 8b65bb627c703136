//! The first page of a pool: what it is, how far its tables reach, and its few shared words.
//!
//! The magic number is stored last, with Release, so a file that has it has everything before it.
//! The part up to `file` never changes afterwards. An attaching process validates a private copy
//! ([`Identity::read`]), and compares the copy with the header again once that is mapped.

use super::arena::{self, DATA, HEADER_SIZE, PROCESSES, SLOTS};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::left::Left;
use crate::protocol::sweep::Sweep;

/// "shmkit" and a byte that text cannot hold.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"shmkit\xf0\x01");
/// Counts changes of the layout of anything in the pool.
pub(crate) const VERSION: u64 = 13;

/// The header in the pool. Everything is atomic: other processes read and write it.
#[repr(C, align(64))]
pub(crate) struct Header {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU64,
    /// Fingerprint of this build's tables.
    pub(crate) layout: AtomicU64,
    pub(crate) base: AtomicU64,
    pub(crate) max_slices: AtomicU64,
    pub(crate) max_slots: AtomicU64,
    pub(crate) uuid: [AtomicU64; 2],
    pub(crate) pid_namespace: AtomicU64,
    pub(crate) time_namespace: AtomicU64,
    pub(crate) creator: AtomicU64,
    /// Seconds since 1970.
    pub(crate) created: AtomicU64,
    pub(crate) options: AtomicU64,
    _identity: [AtomicU64; 2],
    /// The file in which the pool lies; not part of the pool's identity. See `pool::copied`.
    pub(crate) file: AtomicU64,

    pub(crate) watermarks: Watermarks,

    /// The epoch of reclamation; see `participants::epoch`.
    pub(crate) epoch: AtomicU64,
    /// Raised by each recovery: hints may have died with their setter.
    pub(crate) rescan: AtomicU64,
    /// Slots recovered since the pool was made.
    pub(crate) recoveries: AtomicU64,
    /// A bit for each size class: spans without an owner may exist. A hint.
    pub(crate) orphans: AtomicU64,
    /// Where the last search for free slices ended. A hint.
    pub(crate) search: AtomicU64,
    /// 1 if free slices may have memory. A hint.
    pub(crate) dirty: AtomicU64,
    /// 1 if runs may be kept: see `allocator::kept`. A hint.
    pub(crate) kept: AtomicU64,
    /// When memory was last given back, in milliseconds of the monotonic clock.
    pub(crate) purged_at: AtomicU64,
    /// There may be objects that nobody holds and nobody disposes of: see `pool::dispose`.
    pub(crate) unreaped: Sweep,
    /// Slots without a thread may have something in limbo: see `engines::limbo`.
    pub(crate) limbo_left: Left,
    /// When the system was last asked about participants, in milliseconds of the monotonic clock.
    pub(crate) confirmed_at: AtomicU64,
    /// How many groups of slots and records it was asked about.
    pub(crate) confirmed: AtomicU64,
    /// When a waiting thread last looked for the dead, by the same clock.
    pub(crate) polled_at: AtomicU64,
    /// Where the search for a free object entry continues. A hint.
    pub(crate) object_cursor: AtomicU64,

    /// Held (see `participants::lock`) while something is added to the table of types.
    pub(crate) types_lock: AtomicU64,
    /// Held while the table of names is changed.
    pub(crate) names_lock: AtomicU64,
}

/// How many entries of each table are committed. They only rise.
#[repr(C, align(64))]
pub(crate) struct Watermarks {
    pub(crate) types: AtomicU64,
    pub(crate) names: AtomicU64,
    pub(crate) processes: AtomicU64,
    pub(crate) slots: AtomicU64,
    pub(crate) objects: AtomicU64,
    pub(crate) slices: AtomicU64,
}

const _: () = assert!(size_of::<Header>() <= HEADER_SIZE);

/// Option bits kept in the header.
pub(crate) const DUMPABLE: u64 = 1;
pub(crate) const HUGE_PAGES: u64 = 2;
pub(crate) const GUARDED: u64 = 4;

/// The unchanging part of a header, as plain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) magic: u64,
    pub(crate) version: u64,
    pub(crate) layout: u64,
    pub(crate) base: u64,
    pub(crate) max_slices: u64,
    pub(crate) max_slots: u64,
    pub(crate) uuid: [u64; 2],
    pub(crate) pid_namespace: u64,
    pub(crate) time_namespace: u64,
    pub(crate) creator: u64,
    pub(crate) created: u64,
    pub(crate) options: u64,
}

impl Identity {
    const WORDS: usize = 13;
    /// Bytes of a file that hold an identity, the watermarks and the epoch.
    pub(crate) const BYTES: usize = std::mem::offset_of!(Header, epoch) + 8;

    fn words(&self) -> [u64; Self::WORDS] {
        [
            self.magic,
            self.version,
            self.layout,
            self.base,
            self.max_slices,
            self.max_slots,
            self.uuid[0],
            self.uuid[1],
            self.pid_namespace,
            self.time_namespace,
            self.creator,
            self.created,
            self.options,
        ]
    }

    /// Reads an identity from the first bytes of a file.
    pub(crate) fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |i: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_ne_bytes(le)
        };
        Identity {
            magic: word(0),
            version: word(1),
            layout: word(2),
            base: word(3),
            max_slices: word(4),
            max_slots: word(5),
            uuid: [word(6), word(7)],
            pid_namespace: word(8),
            time_namespace: word(9),
            creator: word(10),
            created: word(11),
            options: word(12),
        }
    }

    /// The watermarks in the first bytes of a file, in their order in the header.
    pub(crate) fn parse_watermarks(bytes: &[u8; Self::BYTES]) -> [u64; 6] {
        let at = std::mem::offset_of!(Header, watermarks);
        std::array::from_fn(|i| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at + i * 8..at + i * 8 + 8]);
            u64::from_ne_bytes(word)
        })
    }

    /// The epoch of reclamation.
    pub(crate) fn parse_epoch(bytes: &[u8; Self::BYTES]) -> u64 {
        let at = std::mem::offset_of!(Header, epoch);
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    }

    /// Writes everything except the magic number, then the magic number.
    pub(crate) fn publish(&self, header: &Header) {
        let fields = header.identity();
        for (field, value) in fields.iter().zip(self.words()).skip(1) {
            field.store(value, Ordering::Relaxed);
        }
        header.magic.store(self.magic, Ordering::Release);
    }

    /// Reads the identity from a mapped header.
    pub(crate) fn read(header: &Header) -> Self {
        let mut bytes = [0; Self::BYTES];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(header.identity()) {
            chunk.copy_from_slice(&field.load(Ordering::Acquire).to_ne_bytes());
        }
        Identity::parse(&bytes)
    }

    /// Bytes of address space that the pool takes in this process.
    pub(crate) fn mapped_len(&self) -> usize {
        arena::mapped_len(self.max_slices as usize)
    }

    /// True if the sizes are ones that a creator can have chosen.
    pub(crate) fn sizes_valid(&self) -> bool {
        (1..=DATA.max as u64).contains(&self.max_slices)
            && (2..=SLOTS.max as u64).contains(&self.max_slots)
    }
}

impl Header {
    fn identity(&self) -> [&AtomicU64; Identity::WORDS] {
        [
            &self.magic,
            &self.version,
            &self.layout,
            &self.base,
            &self.max_slices,
            &self.max_slots,
            &self.uuid[0],
            &self.uuid[1],
            &self.pid_namespace,
            &self.time_namespace,
            &self.creator,
            &self.created,
            &self.options,
        ]
    }

    /// The most process records that the pool can have.
    pub(crate) fn max_processes(&self) -> usize {
        (self.max_slots.load(Ordering::Relaxed) as usize).min(PROCESSES.max)
    }
}
