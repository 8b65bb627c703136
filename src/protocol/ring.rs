//! The cells of a bounded queue: which thread has which cell, and in what order.
//!
//! # Rationale
//!
//! Every push gets a *position*, the next one, and every position has a cell; a lap later, the same
//! cell comes again. One exchange of the cell's word claims the position and names the claimant, so
//! a position cannot be lost with its claimant. The words *are* the queue: `head` and `tail` are
//! hints, stored plainly; walks go forward from them, so a stale hint costs a few steps.
//!
//! A consumer first copies an element, and then takes it by the exchange that frees the cell. A
//! consumer never holds anything, and its death or stop delays nobody. If a producer is stopped
//! with its element half written, others go past it: it delays its own element (and, after a lap,
//! the producers that come to its cell). For what a word looks like, see `cells`.
//!
//! | phase | position | meaning | next, by whom |
//! |---------|-----|---------------------------------|------------------------------------------|
//! | FREE    | p   | nobody has p yet                | WRITING p, by a producer; SEALED p, by a consumer of a queue that is closed, or goes on in another ring |
//! | WRITING | p   | the slot writes the element     | FULL p, by itself; FREE p + lap, by its recovery |
//! | FULL    | p   | an element                      | FREE p + lap, or LEASING p, by its taker |
//! | LEASING | p   | the slot has taken the element and is about to free the cell | FREE p + lap, by itself or its recovery |
//! | SEALED  | p   | nothing is pushed to this ring any more | |
//!
//! Invariants
//! 1. A position is claimed only when all before it have been claimed: the claimant has seen that.
//!    So where a word is FREE p, nothing at p or beyond has been claimed.
//! 2. Words are distinct over time, as positions rise: a thread whose exchange succeeds has not
//!    missed a change. (Positions have 49 bits, and wrap around.)
//! 3. The words of the element are stored only between WRITING and FULL, by the slot that is named.
//! 4. A consumer takes p only if each earlier position was seen taken, or was seen WRITING *after* p
//!    was seen FULL. So no push that ended before p's began is overtaken: first in, first out. (A
//!    thread that looks at p and leaves it there also does what `foremost` says; a thread that takes
//!    an element that was named there relies on the thread that has named it.)
//! 5. "Empty" is reported only if there was a moment with nothing FULL: the first unclaimed
//!    position was seen, and after that each position that was passed was still WRITING.
//! 6. `head` is only ever set past positions that are all taken, `tail` past claimed ones.
//!
//! Sources: cells that each have a turn are from Vyukov's bounded queue (2011); for why invariants
//! 4 and 5 are enough, see Henzinger, Sezgin, Vafeiadis, *Aspect-Oriented Linearizability Proofs*,
//! CONCUR 2013.

use super::cells::{Cell, CellPhase, Shape, is_ahead, position};
use super::step_back;
use crate::primitive::{AtomicU64, Ordering, fence};

/// Why no position was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// All cells are taken. Gives what holds up the next one, if that is an operation under way.
    Full(Option<Busy>),
    /// Nothing is pushed any more.
    Sealed,
}

/// An operation under way that a push has come round to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    slot: usize,
    index: usize,
    found: u64,
}

impl Busy {
    /// True if the push is worth another attempt: `settles` says that it has settled that slot, whose
    /// owner was dead; or the cell has changed meanwhile, as it does if somebody else has settled the
    /// slot first.
    pub fn is_over<'a>(
        &self,
        cell: impl Fn(usize) -> &'a AtomicU64,
        settles: impl FnOnce(usize) -> bool,
    ) -> bool {
        settles(self.slot) || cell(self.index).load(Ordering::Acquire) != self.found
    }
}

/// A position that was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub position: u64,
    /// Its cell.
    pub index: usize,
}

/// Claims the next position for the slot. `record` is given the cell's index before each attempt.
pub fn claim<'a>(
    shape: Shape,
    tail: &AtomicU64,
    cell: impl Fn(usize) -> &'a AtomicU64,
    slot: usize,
    record: impl Fn(usize),
) -> Result<Claim, Refused> {
    match claim_at_tail(shape, tail, &cell, slot, &record) {
        Some(claim) => Ok(claim),
        None => claim_further(shape, tail, cell, slot, record),
    }
}

/// The first step of [`claim`], which is mostly enough. `None` if it is not, or if others were
/// faster.
#[inline(always)]
pub fn claim_at_tail<'a>(
    shape: Shape,
    tail: &AtomicU64,
    cell: impl Fn(usize) -> &'a AtomicU64,
    slot: usize,
    record: impl Fn(usize),
) -> Option<Claim> {
    let position = shape.hint_as_it_is(tail);
    let index = shape.index(position);
    let word = cell(index);
    let free = Cell::new(CellPhase::Free, 0, position).pack();
    if word.load(Ordering::Acquire) == free {
        record(index);
        // As in the walk that follows.
        let claimed = Cell::new(CellPhase::Writing, slot, position).pack();
        if word
            .compare_exchange(free, claimed, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
        {
            shape.go_on(tail, position);
            return Some(Claim { position, index });
        }
        step_back();
    }
    None
}

#[cold]
fn claim_further<'a>(
    shape: Shape,
    tail: &AtomicU64,
    cell: impl Fn(usize) -> &'a AtomicU64,
    slot: usize,
    record: impl Fn(usize),
) -> Result<Claim, Refused> {
    let mut at = shape.hint(tail);
    let mut patience = shape.patience();
    while patience > 0 {
        let index = shape.index(at);
        let word = cell(index);
        // Acquire: the thread that freed the cell has finished reading it. SeqCst: a thread that sleeps until there is
        // room has announced that before this look; see `bell`.
        let found = word.load(Ordering::SeqCst);
        let seen = Cell::unpack(found);
        if seen.position == at {
            match seen.phase {
                CellPhase::Free => {
                    record(index);
                    let claimed = Cell::new(CellPhase::Writing, slot, at).pack();
                    // SeqCst: before the look whether somebody sleeps; see `engines::bell`.
                    if word
                        .compare_exchange(found, claimed, Ordering::SeqCst, Ordering::Relaxed)
                        .is_ok()
                    {
                        shape.raise(tail, shape.next(at));
                        let position = at;
                        return Ok(Claim { position, index });
                    }
                    step_back();
                    continue;
                }
                CellPhase::Sealed => return Err(Refused::Sealed),
                _ => at = shape.next(at),
            }
        } else if is_ahead(seen.position, at) {
            // The position a lap before the cell's was claimed, and so were, by invariant 1, all
            // before it.
            at = shape.next(position(seen.position.wrapping_sub(shape.lap())));
        } else {
            let busy = matches!(seen.phase, CellPhase::Writing | CellPhase::Leasing);
            return Err(Refused::Full(busy.then_some(Busy {
                slot: seen.slot,
                index,
                found,
            })));
        }
        patience -= 1;
    }
    Err(Refused::Full(None))
}

/// Ends what [`claim`] began: the element is published.
#[inline]
pub fn publish(word: &AtomicU64, position: u64) {
    // As the table says, nobody else changes a WRITING word while its slot's owner lives. Release:
    // the element.
    word.store(
        Cell::new(CellPhase::Full, 0, position).pack(),
        Ordering::Release,
    );
}

/// What becomes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is gone, and the cell is free.
    Pop,
    /// It is gone, and the cell is LEASING by the slot, which has to [`vacate`] it.
    Lease(usize),
    /// It stays; it has to be the first.
    Look,
    /// It stays; it only matters that there is one.
    See,
}

impl Take {
    pub fn leaves(self) -> bool {
        matches!(self, Take::Look | Take::See)
    }
}

/// Takes the first element, and gives its position; otherwise gives a walk that found none. `copy`
/// is given the cell and the position of an element to copy; what it has copied in its last call is
/// what is taken. `valid` is as for [`take_if`], but is given no walk if there was none.
pub fn take<'a>(
    shape: Shape,
    head: &AtomicU64,
    cell: impl Fn(usize) -> &'a AtomicU64,
    how: Take,
    valid: impl Fn(Option<&Walk>) -> bool,
    mut copy: impl FnMut(usize, u64),
) -> Result<u64, Walk> {
    match take_at_head(shape, head, &cell, how, || valid(None), &mut copy) {
        Some(at) => Ok(at),
        None => take_if(shape, head, &cell, how, &mut copy, &|walk| {
            valid(Some(walk))
        }),
    }
}

/// The first step of [`take`], which is mostly enough. `None` if it is not, or if others were
/// faster.
#[inline(always)]
pub fn take_at_head<'a>(
    shape: Shape,
    head: &AtomicU64,
    cell: impl Fn(usize) -> &'a AtomicU64,
    how: Take,
    valid: impl Fn() -> bool,
    mut copy: impl FnMut(usize, u64),
) -> Option<u64> {
    let at = shape.hint_as_it_is(head);
    let index = shape.index(at);
    let word = cell(index);
    // Acquire: the element. SeqCst: see `foremost`.
    let found = word.load(Ordering::SeqCst);
    if found == Cell::new(CellPhase::Full, 0, at).pack() {
        copy(index, position(at));
        if valid() {
            if exchange(shape, word, at, how) {
                if !how.leaves() {
                    shape.go_on(head, at);
                }
                return Some(position(at));
            }
            step_back();
        }
    }
    None
}

/// Takes the element at a position, if `valid` is true once it was seen, and says whether it was
/// taken. `None` if there is no element.
pub fn take_at(
    shape: Shape,
    word: &AtomicU64,
    at: u64,
    how: Take,
    valid: impl FnOnce() -> bool,
    copy: impl FnOnce(),
) -> Option<bool> {
    is_full(word, at).then(|| {
        copy();
        valid() && exchange(shape, word, at, how)
    })
}

/// True if the element of that position is there. By invariant 2, what was copied of it between two
/// such answers is whole.
#[inline]
pub fn is_full(word: &AtomicU64, at: u64) -> bool {
    // What was copied is read before the word.
    fence(Ordering::Acquire);
    word.load(Ordering::Acquire) == Cell::new(CellPhase::Full, 0, at).pack()
}

/// Takes the element at a position, if it is still there.
#[inline]
fn exchange(shape: Shape, word: &AtomicU64, at: u64, how: Take) -> bool {
    let next = match how {
        Take::Pop => Cell::new(CellPhase::Free, 0, position(at.wrapping_add(shape.lap()))),
        Take::Lease(slot) => Cell::new(CellPhase::Leasing, slot, at),
        Take::Look | Take::See => return is_full(word, at),
    };
    // Release: the copy was made before. SeqCst: before the look whether somebody sleeps.
    word.compare_exchange(
        Cell::new(CellPhase::Full, 0, at).pack(),
        next.pack(),
        Ordering::SeqCst,
        Ordering::Relaxed,
    )
    .is_ok()
}

/// As [`take`], but only if `valid` is true after the element was seen: that is, if nothing has come
/// where the caller has looked before. `valid` is given the walk that found the element. If it is false,
/// or if the walk was lost, the walk is the result.
#[cold]
pub fn take_if<'a>(
    shape: Shape,
    head: &AtomicU64,
    cell: &impl Fn(usize) -> &'a AtomicU64,
    how: Take,
    copy: &mut impl FnMut(usize, u64),
    valid: &impl Fn(&Walk) -> bool,
) -> Result<u64, Walk> {
    loop {
        let walk = Walk::to_full(shape, head, cell);
        let Some(at) = walk.full else {
            // Invariant 5.
            if walk.lost || walk.still(shape, cell) {
                return Err(walk);
            }
            continue;
        };
        // Invariant 4. Whether the element itself is still there is seen when it is taken.
        if walk.pending.is_some() && !walk.still(shape, cell) {
            continue;
        }
        if !valid(&walk) {
            return Err(walk);
        }
        let index = shape.index(at);
        copy(index, at);
        if exchange(shape, cell(index), at, how) {
            // Invariant 6.
            if walk.pending.is_none() && !how.leaves() {
                shape.raise(head, shape.next(at));
            }
            return Ok(at);
        }
        step_back();
    }
}

/// A walk from the head to the first element, or to the end.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// The first position that is not taken.
    first: u64,
    /// Where the walk ended: after the element; if there is none, at the first unclaimed position, or at
    /// the one whose cell is kept.
    pub end: u64,
    /// The first element's position.
    pub full: Option<u64>,
    /// How many WRITING cells were passed, and the slot of the first.
    writing: usize,
    pub pending: Option<usize>,
    /// How many elements were passed or found.
    visited: usize,
    /// The walk came to no end, as others were too fast, or as the words are garbage.
    pub lost: bool,
    /// The walk ended where nothing is pushed any more.
    pub sealed: bool,
    /// The walk ended at a cell that somebody has kept for a lap: as long as this is so, nothing is
    /// pushed there or beyond.
    pub around: bool,
}

impl Walk {
    fn to_full<'a>(shape: Shape, head: &AtomicU64, cell: &impl Fn(usize) -> &'a AtomicU64) -> Walk {
        let start = shape.hint(head);
        let mut walk = Walk {
            first: start,
            end: start,
            full: None,
            writing: 0,
            pending: None,
            visited: 0,
            lost: false,
            sealed: false,
            around: false,
        };
        for _ in 0..shape.patience() {
            let at = walk.end;
            // Acquire: the element. SeqCst: see `foremost`.
            let seen = Cell::unpack(cell(shape.index(at)).load(Ordering::SeqCst));
            if seen.position == at {
                match seen.phase {
                    CellPhase::Full => {
                        walk.full = Some(at);
                        walk.visited = 1;
                        walk.end = shape.next(at);
                        return walk;
                    }
                    CellPhase::Free => return walk,
                    CellPhase::Sealed => {
                        walk.sealed = true;
                        return walk;
                    }
                    CellPhase::Leasing => {}
                    CellPhase::Writing => {
                        walk.writing += 1;
                        walk.pending.get_or_insert(seen.slot);
                    }
                }
                walk.end = shape.next(at);
            } else if is_ahead(seen.position, at) {
                walk.end = shape.next(at);
                // Before a position that was claimed a lap ago, others may still be WRITING; before
                // one that was claimed two laps ago, none can be.
                let old = position(seen.position.wrapping_sub(shape.lap() << 1));
                if walk.pending.is_none() && is_ahead(old, at) {
                    walk.end = shape.next(old);
                }
            } else {
                // The walk has come all the way round.
                walk.around = true;
                return walk;
            }
            if walk.pending.is_none() {
                walk.first = walk.end;
            }
        }
        walk.lost = true;
        walk
    }

    /// True if each cell that was WRITING, or visited, still is as it was (they change only once, so
    /// counting is enough), and if a cell that was kept for a lap still is. False if the walk was lost.
    pub fn still<'a>(&self, shape: Shape, cell: &impl Fn(usize) -> &'a AtomicU64) -> bool {
        if self.lost || self.around && !self.is_kept(shape, cell) {
            return false;
        }
        let mut left = (self.writing, self.visited);
        let mut at = self.first;
        while at != self.end && left != (0, 0) {
            // SeqCst: see `foremost`.
            let seen = Cell::unpack(cell(shape.index(at)).load(Ordering::SeqCst));
            match seen.phase {
                _ if seen.position != at => {}
                CellPhase::Writing => left.0 = left.0.wrapping_sub(1),
                CellPhase::Full => left.1 = left.1.wrapping_sub(1),
                _ => {}
            }
            at = shape.next(at);
        }
        left == (0, 0)
    }

    /// True if somebody still keeps the cell where the walk ended, from a lap before.
    fn is_kept<'a>(&self, shape: Shape, cell: &impl Fn(usize) -> &'a AtomicU64) -> bool {
        // SeqCst: see `foremost`.
        let seen = Cell::unpack(cell(shape.index(self.end)).load(Ordering::SeqCst));
        is_behind(seen.position, self.end)
    }

    /// True if nothing has been claimed yet where the walk ended.
    pub fn is_at_end<'a>(&self, shape: Shape, cell: &impl Fn(usize) -> &'a AtomicU64) -> bool {
        let seen = Cell::unpack(cell(shape.index(self.end)).load(Ordering::SeqCst));
        match seen.phase {
            CellPhase::Free | CellPhase::Sealed => !is_ahead(seen.position, self.end),
            _ => is_behind(seen.position, self.end),
        }
    }
}

/// True if a cell's position is one of a lap before `at`, as [`Walk::to_full`] finds it. That is not
/// the same as `at` being ahead of it if the cell is garbage: of two positions that are half of all
/// apart, neither is ahead.
fn is_behind(seen: u64, at: u64) -> bool {
    seen != at && !is_ahead(seen, at)
}

/// Prevents pushes at the first unclaimed position and beyond. False if it has been claimed.
pub fn seal(word: &AtomicU64, position: u64) -> bool {
    word.compare_exchange(
        Cell::new(CellPhase::Free, 0, position).pack(),
        Cell::new(CellPhase::Sealed, 0, position).pack(),
        Ordering::SeqCst,
        Ordering::Relaxed,
    )
    .is_ok()
}

/// Frees a cell that the slot is using, and gives what it was doing there. The slot's owner is
/// dead, or the slot is our own.
///
/// Can be repeated. Nobody else changes a word that names a slot.
pub fn vacate(word: &AtomicU64, slot: usize, lap: u64) -> Option<Cell> {
    let seen = Cell::unpack(word.load(Ordering::Acquire));
    let busy = matches!(seen.phase, CellPhase::Writing | CellPhase::Leasing);
    if !busy || seen.slot != slot {
        return None;
    }
    let next = position(seen.position.wrapping_add(lap));
    word.store(Cell::new(CellPhase::Free, 0, next).pack(), Ordering::SeqCst);
    Some(seen)
}

/// Calls `each` with the cells and positions of the elements, first to last. If [`still`](Walk::still) is
/// true later for the walk that is returned, all of them were in the queue at the moment when the walk ended,
/// and no others.
pub fn visit<'a>(
    shape: Shape,
    head: &AtomicU64,
    cell: impl Fn(usize) -> &'a AtomicU64,
    mut each: impl FnMut(usize, u64),
) -> Walk {
    let mut walk = Walk::to_full(shape, head, &cell);
    let Some(first) = walk.full else {
        return walk;
    };
    each(shape.index(first), first);
    for _ in 1..shape.cells() {
        let at = walk.end;
        let seen = Cell::unpack(cell(shape.index(at)).load(Ordering::SeqCst));
        match seen.phase {
            _ if is_ahead(seen.position, at) => {}
            _ if seen.position != at => break,
            CellPhase::Full => {
                walk.visited += 1;
                each(shape.index(at), at);
            }
            CellPhase::Writing => walk.writing += 1,
            CellPhase::Leasing => {}
            CellPhase::Free | CellPhase::Sealed => break,
        }
        walk.end = shape.next(at);
    }
    walk
}

#[cfg(all(test, not(shmkit_loom)))]
mod tests {
    use super::*;

    /// A cell whose highest bit is wrong has a position half of all positions away.
    #[test]
    fn a_cell_half_a_circle_away_is_where_a_walk_ends() {
        let shape = Shape::new(4);
        for phase in [CellPhase::Free, CellPhase::Full, CellPhase::Sealed] {
            let free = |at| AtomicU64::new(Cell::new(CellPhase::Free, 0, at).pack());
            let cells = [0, 1, 2, 3].map(free);
            let away = Cell::new(phase, 0, position(1 << 48)).pack();
            cells[0].store(away, Ordering::Relaxed);
            let head = AtomicU64::new(0);
            let cell = |index: usize| &cells[index];
            let found = take(shape, &head, cell, Take::Pop, |_| true, |_, _| {});
            let walk = found.unwrap_err();
            assert!(walk.around && walk.is_at_end(shape, &cell), "{walk:?}");
        }
    }
}
