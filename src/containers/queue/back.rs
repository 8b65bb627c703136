//! Elements that have come back from leases. See `engines::leases`.

use std::mem::MaybeUninit;

use super::element;
use super::raw::{ATTEMPTS, Raw};
use crate::engines::leases::{LeaseEntry, LeaseTable, Seen, Survey};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::thread;
use crate::protocol::cells::is_ahead;
use crate::{Movable, ShmSafe};

/// An element that has come back, which the caller has copied.
pub(super) struct Back {
    table: LeaseTable,
    pub(super) entry: LeaseEntry,
    seen: Seen,
    /// What [`LeaseTable::changes`] was before the element was looked for.
    changes: u64,
}

impl Back {
    /// Takes the element; false if it has gone, or if another may be the first by now.
    pub(super) fn retake(&self, lease: Option<Tag>) -> bool {
        self.table.announce_after(self.changes) && self.entry.retake(self.seen, lease)
    }

    /// True if the element is still there, and was the first when it was looked for.
    pub(super) fn was_first(&self) -> bool {
        self.entry.is_back() == Some(self.seen) && self.table.changes() == self.changes
    }
}

impl<T: ShmSafe + Movable> Raw<T> {
    /// What the entries of leases hold.
    pub(super) fn survey(&self) -> (Survey, Option<LeaseEntry>) {
        match (self.header.leases(Self::WORDS), self.arena()) {
            (Some(table), Some(arena)) => {
                let slot = thread::known_slot_near(self);
                table.survey(arena, slot.map_or(Tag::NOBODY, Slot::tag))
            }
            _ => Default::default(),
        }
    }

    /// To be called before saying that there is nothing; looks at most once per call of the operation. A process that
    /// has leased something may be dead without anybody having noticed, as its thread had ended before. True if another
    /// look is worthwhile.
    #[cold]
    pub(super) fn look_for_parked(&self, looked: &mut bool) -> bool {
        match (self.header.leases(Self::WORDS), self.arena()) {
            (Some(table), Some(arena)) if !*looked => {
                *looked = true;
                table.look_for_parked(arena)
            }
            _ => false,
        }
    }

    /// How often the set of elements that have come back was about to change. To be passed to
    /// [`none_was_back`](Self::none_was_back).
    pub(super) fn changes(&self) -> u64 {
        let table = self.header.leases(Self::WORDS);
        table.map_or(0, |table| table.changes())
    }

    /// True if no element has come back since a look that found none. Before that look, the caller
    /// had asked for the [`changes`](Self::changes).
    pub(super) fn none_was_back(&self, changes: u64) -> bool {
        self.survey().0.back == 0 && self.changes() == changes
    }

    /// Copies the next of the elements that have come back, if there is one.
    pub(super) fn first_back(&self, to: &mut MaybeUninit<T>) -> Option<Back> {
        for _ in 0..ATTEMPTS {
            let table = self.header.leases(Self::WORDS)?;
            let changes = table.changes();
            let entry = self.survey().1?;
            // Otherwise somebody has just taken it, and there may be others.
            if let Some(seen) = entry.is_back() {
                // SAFETY: an entry's words, which everybody accesses as atomics.
                unsafe { element::load(entry.element(), to) };
                return Some(Back {
                    table,
                    entry,
                    seen,
                    changes,
                });
            }
        }
        None
    }

    /// The elements that have come back, in order, and their positions.
    pub(super) fn all_back(&self) -> Vec<(u64, T)> {
        let mut back = Vec::new();
        let (Some(table), Some(arena)) = (self.header.leases(Self::WORDS), self.arena()) else {
            return back;
        };
        table.each_back(arena, |entry, seen| {
            let mut value = MaybeUninit::uninit();
            // SAFETY: as in `peek`.
            unsafe {
                element::load(entry.element(), &mut value);
                if entry.is_back() == Some(seen) {
                    back.push((seen.position, value.assume_init()));
                }
            }
        });
        back.sort_by(|(one, _), (other, _)| is_ahead(*one, *other).cmp(&is_ahead(*other, *one)));
        back
    }

    /// Ends a lease, which the caller has. Somebody may be waiting for its element, or for its entry.
    pub(super) fn settle(&self, entry: LeaseEntry, consumed: bool) {
        // Where there is a lease there is a table, except in a damaged pool.
        let table = self.header.leases(Self::WORDS);
        match table {
            Some(table) if !consumed => table.give_back(&entry),
            _ => entry.consume(),
        }
        if !consumed || self.is_closed() {
            self.header.pushed.0.ring();
        }
        if let Some(table) = table {
            table.bell().ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Scratch;
    use crate::{Lease, Queue, Shared};

    fn of_two(pool: &Scratch) -> Shared<Queue<u32>> {
        let queue = pool.create(Queue::bounded(4)).unwrap();
        (1..=2).for_each(|n| queue.push(n).unwrap());
        queue
    }

    /// Leases both elements. The second one comes back, and is found.
    fn with_second_back(queue: &Queue<u32>) -> (Lease<'_, u32>, Back) {
        let [first, second] = [(); 2].map(|()| queue.lease().unwrap());
        drop(second);
        let back = queue.raw.first_back(&mut MaybeUninit::uninit());
        (first, back.unwrap())
    }

    /// A thread is about to take an element that has come back. Meanwhile another leases that element and gives it
    /// back, after one that comes before it.
    #[test]
    fn what_has_come_back_anew_is_not_what_was_looked_at() {
        let pool = Scratch::new();
        let queue = of_two(&pool);
        let (first, back) = with_second_back(&queue);
        assert!(back.table.announce_after(back.changes));

        let second = queue.lease().unwrap();
        drop(first);
        drop(second);
        assert!(!back.entry.retake(back.seen, None));
        assert_eq!([queue.pop(), queue.pop()], [Ok(1), Ok(2)]);
    }

    #[test]
    fn what_comes_back_before_it_is_the_first() {
        let pool = Scratch::new();
        let queue = of_two(&pool);
        let (first, back) = with_second_back(&queue);
        assert!(back.was_first());
        drop(first);
        assert!(!back.was_first());
        assert_eq!(queue.peek(), Some(1));
    }
}
