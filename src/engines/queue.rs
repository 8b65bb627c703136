//! Queues, as every process knows them: where their cells are, how an operation whose thread died
//! is resolved, and what there is to free and to check.
//!
//! A queue is a [`Header`], which is part of a value, and blocks: a *ring* of cells
//! (`protocol::ring`), and the entries of leases (`engines::leases`). The blocks are made at first
//! use, as a queue begins as a constant.
//!
//! ```text
//! ring     0    number of cells
//!          8    words of an element
//!          16   address of the next ring, or 0
//!          128  tail, 256 head
//!          384  cells, each a word and the element
//! ```
//!
//! An unbounded queue whose ring is full gets another ring, twice as large, and goes on in that. As
//! with a `VecDeque`, the memory is kept: all rings together are twice as large as the largest.
//! Nothing is freed while the queue exists, so nobody needs a pin to look at it.
//!
//! Invariants
//! 1. A ring's next ring, once it is there, stays. A push goes to the last ring that it sees, so a
//!    push to a ring that has a next one began before any push to the next one ended.
//! 2. Consumers go on to the next ring when the one before is empty and sealed. If somebody is in
//!    the middle of a push there, they take from the next ring only what they see before that push
//!    ends: see `protocol::ring`, invariants 4 and 5, which are kept from ring to ring in this way.
//! 3. `front` and `back` are rings of the chain, or 0; all rings before `front` are empty and
//!    sealed, and nobody is in the middle of anything there.
//!
//! | intent  | arguments | resolved by |
//! |---------|-----------------------|-----------------------------------------------------|
//! | PUSH    | cell, lap             | if the cell names the dead owner as WRITING, it becomes free again |
//! | LEASE   | cell, lap, entry      | see `engines::leases` |
//! | MAKE    | word, block           | if the word does not name the block, the block is freed |
//!
//! Looking at the first element may name it foremost, which leaves nothing to resolve: see
//! `protocol::foremost`.
//!
//! A cell names the thread that is using it only by the slot's index. That is enough, because the
//! thread's intent is open meanwhile, and a slot gets no new owner before the old one's intent is
//! resolved.

use std::alloc::Layout;

use super::bell::Bell;
use super::{Named, leases, limbo, word};
use crate::allocator::check::CheckReport;
use crate::allocator::{AllocError, block};
use crate::layout::arena::{Arena, GRANULE};
use crate::layout::{Engine, ShmSafe, TypeInfo};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::cells::{Cell, CellPhase, Shape, position};
use crate::protocol::foremost::Foremost;
use crate::protocol::ring;

const NUMBER: u64 = (Engine::Queue as u64) << super::OP_SHIFT;
pub(crate) const PUSH: u64 = NUMBER | 1;
pub(crate) const LEASE: u64 = NUMBER | 2;
const MAKE: u64 = NUMBER | 3;

/// Arguments of PUSH and LEASE.
pub(crate) const CELL: usize = 0;
pub(super) const LAP: usize = 1;
/// The argument of MAKE that names the block.
const MADE: usize = 1;

/// Stored in place of the cells' address when no cells are to be made any more.
pub(crate) const NEVER: u64 = 1;

/// The bits of a ring's hint that are not part of the address, which is a multiple of 64.
const LOG: u64 = 63;

/// The offsets in a ring's block.
const NEXT: usize = 16;
const TAIL: usize = 128;
const HEAD: usize = 256;
const FIRST_CELL: usize = 384;

/// The least distance from the positions of a ring to those of the next one. There are at most 28
/// rings, so all positions that are used at once span less than half of the range of positions.
const GAP: u64 = 1 << 40;

/// The number of cells in the first ring of an unbounded queue.
const FIRST_CELLS: u64 = 32;

/// All that a queue has before it has cells, and what all its users look at.
#[repr(C, align(128))]
pub(crate) struct Header {
    /// The address of the first ring; 0 while there is none, [`NEVER`] if there will be none.
    pub(crate) block: Root,
    /// The address of the lease entries' block, or 0.
    pub(crate) lease_block: AtomicU64,
    /// The number of cells in the first ring; and 1 if there may be more rings. Written once, before
    /// the queue is in a pool.
    cells: u64,
    growing: u64,
    /// Not 0 if pushing is over.
    pub(crate) closed: AtomicU64,
    /// The rings that are popped from and pushed to: hints, or 0. The binary logarithm of the ring's lap
    /// is in the lowest bits, so that nothing has to wait for it.
    front: AtomicU64,
    back: AtomicU64,
    /// The tag of the producer that has waited and must not be passed for ever, or 0. A hint; see
    /// `containers::queue::wait`.
    pub(crate) turn: AtomicU64,
    /// The element that was reported as the first.
    pub(crate) foremost: Foremost,
    /// The bells for threads that wait for an element, and for threads that wait for room: see
    /// `engines::bell`.
    pub(crate) pushed: Apart,
    pub(crate) popped: RoomBells,
}

/// A bell that has its cache lines to itself, as it is written when somebody sleeps.
#[repr(C, align(128))]
pub(crate) struct Apart(pub(crate) Bell);

/// The same for producers that wait for room, one of which may have the turn.
#[repr(C, align(128))]
pub(crate) struct RoomBells {
    pub(crate) bell: Bell,
    /// The bell of the producer that has the turn.
    pub(crate) called: Bell,
    /// How often that producer was passed; later, since when others hold back for it.
    pub(crate) passes: AtomicU64,
}

/// The first word of a queue.
#[repr(transparent)]
pub(crate) struct Root(pub(crate) AtomicU64);

// SAFETY: the address of a block in the pool, which the engine finds; no drop glue.
unsafe impl ShmSafe for Root {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("QueueRoot", Engine::Queue);
    const OWNS: bool = true;
}

impl Header {
    /// A queue of `cells` cells, at most [`Shape::MAX`].
    pub(crate) const fn bounded(cells: usize) -> Self {
        assert!(
            cells as u64 <= Shape::MAX,
            "a queue has at most 2^32 places"
        );
        Header::new(cells as u64, 0)
    }

    pub(crate) const fn unbounded() -> Self {
        Header::new(FIRST_CELLS, 1)
    }

    const fn new(cells: u64, growing: u64) -> Self {
        Header {
            block: Root(AtomicU64::new(0)),
            lease_block: AtomicU64::new(0),
            cells,
            growing,
            closed: AtomicU64::new(0),
            front: AtomicU64::new(0),
            back: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            foremost: Foremost(AtomicU64::new(0)),
            pushed: Apart(Bell::new()),
            popped: RoomBells {
                bell: Bell::new(),
                called: Bell::new(),
                passes: AtomicU64::new(0),
            },
        }
    }

    /// The number of elements that there can be; `None` if there is no limit.
    #[inline]
    pub(crate) fn capacity(&self) -> Option<usize> {
        (self.growing == 0).then_some(self.cells as usize)
    }

    /// The ring that is pushed to, if that is known. `words` is the number of words that an element
    /// takes.
    #[inline]
    pub(crate) fn back(&self, words: usize) -> Option<Ring> {
        // Acquire: the ring is filled in.
        self.hinted(self.back.load(Ordering::Acquire), words)
    }

    /// The ring that is popped from, if that is known.
    #[inline]
    pub(crate) fn front(&self, words: usize) -> Option<Ring> {
        self.hinted(self.front.load(Ordering::Acquire), words)
    }

    pub(crate) fn set_back(&self, ring: Ring) {
        self.back.store(ring.hint(), Ordering::Release);
    }

    pub(crate) fn set_front(&self, ring: Ring) {
        self.front.store(ring.hint(), Ordering::Release);
    }

    /// The first ring that was ever made.
    pub(crate) fn first(&self, words: usize) -> Option<Ring> {
        // SeqCst: a thread that sleeps until there is an element has announced that before this look; see
        // `protocol::bell`.
        self.ring(self.block.0.load(Ordering::SeqCst), words)
    }

    #[inline(always)]
    fn hinted(&self, hint: u64, words: usize) -> Option<Ring> {
        // As in `ring`.
        (hint > LOG).then(|| Ring::of_hint(self.arena(), hint, words))?
    }

    /// The ring at an address, which is the value of one of this queue's words. `None` for 0, [`NEVER`],
    /// and an address at which no ring can be.
    #[inline]
    fn ring(&self, address: u64, words: usize) -> Option<Ring> {
        // Only a queue in a pool names a ring.
        (address > NEVER).then(|| Ring::at(self.arena(), address, words))?
    }

    /// The arena of a queue that names something, so that it is in a pool.
    #[inline]
    pub(super) fn arena(&self) -> Arena {
        Arena::at(std::ptr::from_ref(self).addr() & !(GRANULE - 1))
    }

    /// The first ring, which is made now if need be; `None` if there will be none.
    #[cold]
    pub(crate) fn make_first(
        &self,
        arena: Arena,
        slot: &Slot,
        words: usize,
    ) -> Result<Option<Ring>, AllocError> {
        make_ring(arena, slot, &self.block.0, self.cells, words, 0)?;
        Ok(self.first(words))
    }
}

/// Makes a ring for a word that names none. The ring's positions begin with `base`.
fn make_ring(
    arena: Arena,
    slot: &Slot,
    named_by: &AtomicU64,
    cells: u64,
    words: usize,
    base: u64,
) -> Result<(), AllocError> {
    let count = cells as usize;
    let size = (1 + words)
        .checked_mul(8)
        .and_then(|size| size.checked_mul(count)?.checked_add(FIRST_CELL))
        .ok_or(AllocError::TooLarge)?;
    make(arena, slot, named_by, size, |start| {
        // SAFETY: `make` fills a new block of `size` bytes: up to the end of the last cell.
        unsafe {
            store(start, cells);
            store(start + 8, words as u64);
            store(start + NEXT, 0);
            store(start + TAIL, base);
            store(start + HEAD, base);
            for index in 0..count {
                let free = Cell::new(CellPhase::Free, 0, base + index as u64);
                store(start + FIRST_CELL + index * 8 * (1 + words), free.pack());
            }
        }
    })
}

/// Stores a word in a new block.
///
/// # Safety
///
/// The word is in a block that the caller has just allocated, and that nobody else knows.
pub(super) unsafe fn store(address: usize, value: u64) {
    // SAFETY: the caller's promise; blocks are aligned to words.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write(value) };
}

/// Makes a block for a word that names none, unless somebody else is first. `fill` is given the
/// block's address.
pub(super) fn make(
    arena: Arena,
    slot: &Slot,
    named_by: &AtomicU64,
    size: usize,
    fill: impl Fn(usize),
) -> Result<(), AllocError> {
    limbo::or_reap(arena, || make_once(arena, slot, named_by, size, &fill))
}

fn make_once(
    arena: Arena,
    slot: &Slot,
    named_by: &AtomicU64,
    size: usize,
    fill: impl Fn(usize),
) -> Result<(), AllocError> {
    let layout = Layout::from_size_align(size, 64).map_err(|_| AllocError::TooLarge)?;
    let address = std::ptr::from_ref(named_by).addr() as u64;
    slot.intent.open(MAKE, &[address, 0]);
    let made = block::allocate(arena, slot, layout, |block| {
        slot.intent.set_arg(MADE, block as u64);
    });
    if let Ok(block) = made {
        fill(block);
        // SeqCst: before anything that is stored there, and the look whether somebody sleeps.
        let published =
            named_by.compare_exchange(0, block as u64, Ordering::SeqCst, Ordering::Relaxed);
        match published {
            Ok(_) => slot.intent.close(),
            Err(_) => block::close_and_free(arena, slot, block as u64),
        }
    } else {
        // The block that was recorded may have been allocated, or not.
        resolve(arena, slot, slot.tag(), MAKE);
        slot.intent.close();
    }
    made.map(drop)
}

/// A ring of cells.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    address: usize,
    pub(crate) shape: Shape,
    stride: usize,
}

impl Ring {
    /// The ring at an address that a queue names; `None` if no ring can be there, in which case the
    /// word is garbage. The words of the cells are checked where they are used.
    fn at(arena: Arena, address: u64, words: usize) -> Option<Ring> {
        let cells = word(arena, address)?.load(Ordering::Relaxed);
        let log = (1..=Shape::MAX)
            .contains(&cells)
            .then(|| Shape::new(cells).log())?;
        let hint = address | u64::from(log);
        Ring::of_hint(arena, hint, words).filter(|ring| ring.hint() == hint)
    }

    /// The same for a [`hint`](Self::hint).
    #[inline(always)]
    fn of_hint(arena: Arena, hint: u64, words: usize) -> Option<Ring> {
        let (address, log) = ((hint & !LOG) as usize, (hint & LOG) as u32);
        let room = arena.room_at(address).checked_sub(FIRST_CELL)?;
        // SAFETY: aligned, in committed data of the pool; the number of cells is not written again
        // while the queue names the ring.
        let cells = unsafe {
            (*std::ptr::with_exposed_provenance::<AtomicU64>(address)).load(Ordering::Relaxed)
        };
        let stride = 8 * (1 + words);
        // From 1 to as many cells as there is room for. Whatever the logarithm is, no other cell is
        // used.
        (cells.wrapping_sub(1) < (room / stride) as u64).then(|| Ring {
            address,
            shape: Shape::with_log(cells, log),
            stride,
        })
    }

    /// The ring's address, and the binary logarithm of its lap.
    fn hint(&self) -> u64 {
        self.address as u64 | u64::from(self.shape.log())
    }

    #[inline]
    fn word(&self, offset: usize) -> &'static AtomicU64 {
        // SAFETY: a word of the ring, which stays as long as the queue does; callers' offsets are
        // those of atomic words in its block, which is in the pool's data, as `at` has checked.
        unsafe { &*std::ptr::with_exposed_provenance(self.address + offset) }
    }

    #[inline]
    pub(crate) fn tail(&self) -> &'static AtomicU64 {
        self.word(TAIL)
    }

    #[inline]
    pub(crate) fn head(&self) -> &'static AtomicU64 {
        self.word(HEAD)
    }

    /// The word of a cell.
    #[inline]
    pub(crate) fn cell(&self, index: usize) -> &'static AtomicU64 {
        debug_assert!(index < self.shape.cells());
        self.word(FIRST_CELL + index * self.stride)
    }

    /// The first word of a cell's element.
    #[inline]
    pub(crate) fn element(&self, index: usize) -> *const AtomicU64 {
        std::ptr::from_ref(self.cell(index)).wrapping_add(1)
    }

    #[inline]
    pub(crate) fn lap(&self) -> u64 {
        self.shape.lap()
    }

    /// True if pushing goes on in another ring.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.successor() != 0
    }

    /// Not 0 if pushing goes on in another ring.
    #[inline(always)]
    pub(crate) fn successor(&self) -> u64 {
        // SeqCst: before anything is pushed to the next ring.
        self.word(NEXT).load(Ordering::SeqCst)
    }

    /// The arena that the ring is in.
    #[inline(always)]
    pub(crate) fn arena(&self) -> Arena {
        Arena::at(self.address & !(GRANULE - 1))
    }

    /// The ring that follows.
    #[inline]
    pub(crate) fn next(&self) -> Option<Ring> {
        let words = self.stride / 8 - 1;
        let arena = self.arena();
        // Each ring is twice as large as the one before. So there are few, even if garbage names
        // them.
        Ring::at(arena, self.successor(), words)
            .filter(|next| next.shape.cells() == 2 * self.shape.cells())
    }

    /// The ring that follows, which is made now if need be.
    #[cold]
    pub(crate) fn make_next(&self, arena: Arena, slot: &Slot) -> Result<Option<Ring>, AllocError> {
        let cells = self.shape.cells() as u64 * 2;
        if cells > Shape::MAX {
            return Err(AllocError::TooLarge);
        }
        if !self.is_over() {
            // Positions rise from ring to ring, so that those of leased elements are all different.
            // Nobody is so slow here that others push that many elements meanwhile.
            let lap = Shape::new(cells).lap();
            let seen = Cell::unpack(self.cell(0).load(Ordering::Relaxed)).position;
            let last = seen + GAP;
            let base = position(last.next_multiple_of(lap));
            make_ring(
                arena,
                slot,
                self.word(NEXT),
                cells,
                self.stride / 8 - 1,
                base,
            )?;
        }
        Ok(self.next())
    }
}

/// Resolves what a dead thread was doing to a queue.
pub(super) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    let Some(first) = word(arena, slot.intent.arg(0)) else {
        // No cell was recorded yet: there is nothing to resolve except, perhaps, a lease's entry.
        if op == LEASE {
            leases::resolve(arena, slot, owner, None);
        }
        return;
    };
    match op {
        PUSH => drop(ring::vacate(first, owner.slot(), slot.intent.arg(LAP))),
        LEASE => leases::resolve(arena, slot, owner, Some(first)),
        MAKE => {
            let made = slot.intent.arg(MADE);
            if made != 0 && first.load(Ordering::Acquire) != made {
                block::release_for(arena, owner, made as usize);
            }
        }
        _ => {}
    }
}

/// The next block of a queue that is being destroyed: the rings, first to last, then the leases.
pub(super) fn next_block(arena: Arena, first: usize) -> Option<Named> {
    let named = |at: u64, next| {
        let block = word(arena, at)?.load(Ordering::Acquire);
        let cells = |ring| word(arena, ring).map_or(0, |cells| cells.load(Ordering::Acquire));
        // The next ring is twice as large, and none is empty, so there is an end, even if garbage
        // names it.
        let now = cells(block);
        let is_next = |next: &u64| now > 0 && now.checked_mul(2) == Some(cells(*next));
        let next = (next && block > NEVER)
            .then(|| word(arena, block.saturating_add(NEXT as u64)))
            .flatten()
            .map(|next| next.load(Ordering::Acquire))
            .filter(is_next)
            .unwrap_or(0);
        (block > NEVER).then_some(Named {
            word: at,
            next,
            block: block as usize,
        })
    };
    // These are the first two words of the header.
    named(first as u64, true).or_else(|| named(first as u64 + 8, false))
}

/// Checks a queue at rest.
pub(super) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    if arena.room_at(first) < size_of::<Header>() || !first.is_multiple_of(128) {
        return report.problem(format_args!("a queue at {first:#x} is not in the pool"));
    }
    // SAFETY: aligned committed data, where the type's description places a header; it consists of
    // atomics, and of numbers that are not written any more.
    let header = unsafe { &*std::ptr::with_exposed_provenance::<Header>(first) };
    let mut block = header.block.0.load(Ordering::Acquire);
    let mut expected = header.cells;
    while block > NEVER {
        let Some(next) = check_cells(arena, expected, block as usize, report) else {
            break;
        };
        (block, expected) = (next, expected.saturating_mul(2));
    }
    let told = header.foremost.word();
    if !matches!(
        told.phase,
        CellPhase::Free | CellPhase::Writing | CellPhase::Full
    ) {
        report.problem(format_args!(
            "the queue at {first:#x} has {told:?} as the first"
        ));
    }
    leases::check(arena, header, report);
}

/// Checks a ring, and gives the address of the next one.
fn check_cells(arena: Arena, expected: u64, block: usize, report: &mut CheckReport) -> Option<u64> {
    let Ok(size) = block::usable_size(arena, block) else {
        report.problem(format_args!("a queue has no block at {block:#x}"));
        return None;
    };
    let load =
        |at: usize| word(arena, (block + at) as u64).map_or(0, |w| w.load(Ordering::Relaxed));
    let (cells, words) = (load(0), load(8) as usize);
    let fits = words
        .checked_add(1)
        .and_then(|n| {
            n.checked_mul(8)?
                .checked_mul(cells as usize)?
                .checked_add(FIRST_CELL)
        })
        .is_some_and(|needed| needed <= size);
    if !fits || cells != expected || cells == 0 {
        report.problem(format_args!(
            "the queue at {block:#x} has {cells} cells of {words} words in {size} bytes"
        ));
        return None;
    }
    let ring = Ring::at(arena, block as u64, words)?;
    let mut full = 0;
    for index in 0..cells as usize {
        let seen = Cell::unpack(ring.cell(index).load(Ordering::Relaxed));
        full += usize::from(seen.phase == CellPhase::Full);
        let busy = matches!(seen.phase, CellPhase::Writing | CellPhase::Leasing);
        if busy || ring.shape.index(seen.position) != index {
            report.problem(format_args!(
                "cell {index} at {block:#x} is {seen:?} at rest"
            ));
        }
    }
    let mut visited = 0;
    let cell = |index| ring.cell(index);
    ring::visit(ring.shape, ring.head(), cell, |_, _| visited += 1);
    if visited != full {
        report.problem(format_args!(
            "the queue at {block:#x} has {full} elements, of which {visited} are found"
        ));
    }
    Some(load(NEXT))
}
