//! Queues, as every process knows them: where their cells are, how an operation that died is
//! resolved, what there is to free and to check.
//!
//! A queue is a [`Header`], part of a value, and two blocks that are made at first use, as a queue
//! begins as a constant: the cells (`protocol::ring`), and the entries of leases (`engines::leases`).
//!
//! ```text
//! block    0    number of cells
//!          8    words of an element
//!          64   cells, each a word and the element
//! ```
//!
//! | intent  | arguments | resolved by |
//! |---------|-----------------------|-----------------------------------------------------|
//! | PUSH    | cell, lap             | the cell names the dead one as WRITING: it is free again |
//! | LEASE   | cell, lap, entry      | see `engines::leases` |
//! | MAKE    | word, block           | the word does not name the block: it is freed |
//!
//! A cell names who is at it by the slot's index alone. That is enough, because an intent is open
//! meanwhile, and a slot has no new owner before the old one's intent is resolved.

use std::alloc::Layout;

use super::{Named, leases, word};
use crate::allocator::check::CheckReport;
use crate::allocator::{AllocError, block};
use crate::layout::arena::Arena;
use crate::layout::{Engine, ShmSafe, TypeInfo};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::ring::{self, Cell, Phase, Shape};

const NUMBER: u64 = (Engine::Queue as u64) << super::OP_SHIFT;
pub(crate) const PUSH: u64 = NUMBER | 1;
pub(crate) const LEASE: u64 = NUMBER | 2;
const MAKE: u64 = NUMBER | 3;

/// Arguments of PUSH and LEASE.
pub(crate) const CELL: usize = 0;
pub(super) const LAP: usize = 1;
/// The argument of MAKE that names the block.
const MADE: usize = 1;

/// What stands in the place of the cells' address where none are to be made any more.
pub(crate) const NEVER: u64 = 1;

/// Where the cells begin in their block.
const FIRST_CELL: usize = 64;

/// What a queue is before it has cells, and what all its users look at.
#[repr(C, align(128))]
pub(crate) struct Header {
    /// The address of the cells' block; 0 while there is none, [`NEVER`] if there will be none.
    pub(crate) block: Root,
    /// The address of the lease entries' block, or 0.
    pub(crate) lease_block: AtomicU64,
    /// How many cells there are, once they are made. Written once, before the queue is in a pool.
    cells: u64,
    /// Not 0 if pushing is over.
    pub(crate) closed: AtomicU64,
    /// Who waits for an element, and who waits for room: see `containers::queue::bell`.
    pub(crate) pushed: AtomicU64,
    pub(crate) popped: AtomicU64,
    pub(crate) tail: Line,
    pub(crate) head: Line,
}

/// A word that has its cache lines to itself.
#[repr(C, align(128))]
pub(crate) struct Line(pub(crate) AtomicU64);

/// The first word of a queue.
#[repr(transparent)]
pub(crate) struct Root(pub(crate) AtomicU64);

// SAFETY: the address of a block in the pool, which the engine finds; no drop glue.
unsafe impl ShmSafe for Root {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("QueueRoot", Engine::Queue);
    const OWNS: bool = true;
}

impl Header {
    /// A queue of so many cells, up to [`Shape::MAX`].
    pub(crate) const fn new(cells: usize) -> Self {
        assert!(
            cells as u64 <= Shape::MAX,
            "a queue has at most 2^32 places"
        );
        Header {
            block: Root(AtomicU64::new(0)),
            lease_block: AtomicU64::new(0),
            cells: cells as u64,
            closed: AtomicU64::new(0),
            pushed: AtomicU64::new(0),
            popped: AtomicU64::new(0),
            tail: Line(AtomicU64::new(0)),
            head: Line(AtomicU64::new(0)),
        }
    }

    #[inline]
    pub(crate) fn cells(&self) -> usize {
        self.cells as usize
    }

    /// The cells, if they have been made. `words` is what an element takes.
    #[inline]
    pub(crate) fn ring(&self, words: usize) -> Option<Ring> {
        // Acquire: the cells are filled in.
        let address = self.block.0.load(Ordering::Acquire);
        (address > NEVER).then(|| Ring {
            first: address as usize + FIRST_CELL,
            shape: Shape::new(self.cells),
            stride: 8 * (1 + words),
        })
    }

    /// The cells, made now if need be; `None` if there will be none.
    #[cold]
    pub(crate) fn make_ring(
        &self,
        arena: Arena,
        slot: &Slot,
        words: usize,
    ) -> Result<Option<Ring>, AllocError> {
        let cells = self.cells();
        let size = (1 + words)
            .checked_mul(8 * cells)
            .and_then(|size| size.checked_add(FIRST_CELL))
            .ok_or(AllocError::TooLarge)?;
        make(arena, slot, &self.block.0, size, |start| {
            store(start, cells as u64);
            store(start + 8, words as u64);
            for index in 0..cells {
                let free = Cell::new(Phase::Free, 0, index as u64);
                store(start + FIRST_CELL + index * 8 * (1 + words), free.pack());
            }
        })?;
        Ok(self.ring(words))
    }
}

/// Stores a word in a new block.
pub(super) fn store(address: usize, value: u64) {
    // SAFETY: callers are filling a block that they have just allocated, and nobody else knows.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write(value) };
}

/// Makes a block for a word that names none, unless somebody else is first. `fill` is told where
/// the block is.
pub(super) fn make(
    arena: Arena,
    slot: &Slot,
    named_by: &AtomicU64,
    size: usize,
    fill: impl FnOnce(usize),
) -> Result<(), AllocError> {
    let layout = Layout::from_size_align(size, 64).map_err(|_| AllocError::TooLarge)?;
    let address = std::ptr::from_ref(named_by).addr() as u64;
    slot.intent.open(MAKE, &[address, 0]);
    let made = block::allocate(arena, slot, layout, |block| {
        slot.intent.set_arg(MADE, block as u64);
    });
    if let Ok(block) = made {
        fill(block);
        let published =
            named_by.compare_exchange(0, block as u64, Ordering::AcqRel, Ordering::Relaxed);
        if published.is_err() {
            slot.watched.freeing.store(block as u64, Ordering::SeqCst);
            slot.intent.set_arg(MADE, 0);
            let _ = block::free_recorded(arena, slot, block);
        }
    } else {
        // What was recorded was taken, or not.
        resolve(arena, slot, slot.tag(), MAKE);
    }
    slot.intent.close();
    made.map(drop)
}

/// The cells of a queue.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    first: usize,
    pub(crate) shape: Shape,
    stride: usize,
}

impl Ring {
    /// The word of a cell.
    #[inline]
    pub(crate) fn cell(&self, index: usize) -> &'static AtomicU64 {
        debug_assert!(index < self.shape.cells());
        // SAFETY: the block has that many cells, which the shape's indexes are below; it stays as
        // long as the queue does, and a cell begins with an atomic word.
        unsafe { &*std::ptr::with_exposed_provenance(self.first + index * self.stride) }
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
}

/// Resolves what a dead thread was doing to a queue.
pub(super) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    let Some(first) = word(arena, slot.intent.arg(0)) else {
        // Before a cell was recorded: nothing but, perhaps, a lease's entry.
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

/// The next block of a queue that is being destroyed.
pub(super) fn next_block(arena: Arena, first: usize, cursor: &mut usize) -> Option<Named> {
    // The two words are the header's first.
    while *cursor < 2 {
        let address = (first + 8 * *cursor) as u64;
        *cursor += 1;
        let block = word(arena, address)?.load(Ordering::Acquire);
        if block > NEVER {
            return Some(Named {
                word: address,
                old: block,
                next: 0,
                block: block as usize,
            });
        }
    }
    None
}

/// Checks a queue at rest.
pub(super) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    // SAFETY: the type's description places a header here, in an object that is there; it is made
    // of atomics, but for a number that is not written any more.
    let header = unsafe { &*std::ptr::with_exposed_provenance::<Header>(first) };
    let block = header.block.0.load(Ordering::Acquire);
    if block > NEVER {
        check_cells(arena, header, block as usize, report);
    }
    leases::check(arena, header, report);
}

fn check_cells(arena: Arena, header: &Header, block: usize, report: &mut CheckReport) {
    let Ok(size) = block::usable_size(arena, block) else {
        report.problem(format_args!("a queue has no block at {block:#x}"));
        return;
    };
    let load =
        |at: usize| word(arena, (block + at) as u64).map_or(0, |w| w.load(Ordering::Relaxed));
    let (cells, words) = (load(0) as usize, load(8) as usize);
    let fits = words
        .checked_add(1)
        .and_then(|n| {
            n.checked_mul(8)?
                .checked_mul(cells)?
                .checked_add(FIRST_CELL)
        })
        .is_some_and(|needed| needed <= size);
    if !fits || cells != header.cells() || cells == 0 {
        report.problem(format_args!(
            "the queue at {block:#x} has {cells} cells of {words} words in {size} bytes"
        ));
        return;
    }
    let Some(ring) = header.ring(words) else {
        return;
    };
    let mut full = 0;
    for index in 0..cells {
        let seen = Cell::unpack(ring.cell(index).load(Ordering::Relaxed));
        full += usize::from(seen.phase == Phase::Full);
        let busy = matches!(seen.phase, Phase::Writing | Phase::Leasing);
        if busy || ring.shape.index(seen.position) != index {
            report.problem(format_args!(
                "cell {index} at {block:#x} is {seen:?} at rest"
            ));
        }
    }
    let mut visited = 0;
    let cell = |index| ring.cell(index);
    ring::visit(ring.shape, &header.head.0, cell, |_, _| visited += 1);
    if visited != full {
        report.problem(format_args!(
            "the queue at {block:#x} has {full} elements, of which {visited} are found"
        ));
    }
}
