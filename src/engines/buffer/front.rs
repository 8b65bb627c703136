//! The front of a buffer: deleting, and freeing chunks that nobody looks at any more.

use super::chunk::{Found, Next};
use super::{FREE, Words, address_of};
use crate::allocator::block;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::{epoch, lock};
use crate::primitive::{Ordering, compiler_fence};

/// Evidence that no hint leads to a chunk before this one any more. Killing a thread cannot show whether the
/// hints were moved before the stamp was taken, as the next holder of the lock takes another stamp; so
/// `stamp` asks for this.
struct Unlinked {
    before: Found,
}

impl Words {
    /// Deletes the bytes before a position; if the end is before the position, gives the end
    /// instead.
    pub(crate) fn truncate(&self, arena: Arena, slot: &Slot, to: u64) -> Result<(), u64> {
        epoch::pin(arena, slot);
        let last = self.last(arena);
        let end = last.map_or(0, Found::end);
        if to > end {
            epoch::unpin(slot);
            return Err(end);
        }
        // A caller that has gone beyond this position rings for that.
        if self.start() < to {
            self.start.fetch_max(to, Ordering::SeqCst);
        }
        if last.is_some_and(|last| last.is_large_end() && last.end() == to) {
            // No bytes are left, but the last chunk is a large one. It can be freed once an empty one follows. If there
            // is no memory, it stays.
            let _ = self.append_chunk(arena, slot, &[]);
        }
        let old = self.has_old(arena);
        epoch::unpin(slot);
        self.departures.ring_all();
        if old {
            self.free_old(arena, slot);
        }
        Ok(())
    }

    /// True if there are chunks to free. The caller is pinned, and must not be when they are freed.
    #[inline]
    pub(crate) fn has_old(&self, arena: Arena) -> bool {
        let start = self.start();
        let hint = self.first.load(Ordering::SeqCst);
        let oldest = self.oldest.load(Ordering::SeqCst);
        let first = Found::at(arena, if hint == 0 { oldest } else { hint });
        first.is_some_and(|first| {
            oldest != first.address as u64
                || first.end() <= start && matches!(first.next(), Next::Chunk(_))
        })
    }

    /// The number of bytes in all chunks that are not freed. Nobody frees any meanwhile.
    #[cfg(feature = "testing")]
    pub(crate) fn memory(&self, arena: Arena) -> usize {
        let mut at = Found::at(arena, self.oldest.load(Ordering::SeqCst));
        let mut bytes = 0;
        while let Some(chunk) = at {
            bytes += block::usable_size(arena, chunk.address).unwrap_or(0);
            at = match chunk.next() {
                Next::Chunk(next) => Some(next),
                _ => None,
            };
        }
        bytes
    }

    /// Frees the chunks before `start` at which nobody looks, including the caller. True if it freed any.
    pub(crate) fn free_old(&self, arena: Arena, slot: &Slot) -> bool {
        // What a dead holder was doing is completed, by its intent, or is done anew here.
        if !lock::try_take(arena, slot, &self.lock) {
            return false;
        }
        let freed = self.reclaim_locked(arena, slot);
        lock::unlock(&self.lock, slot.tag(), 0);
        freed
    }

    /// As [`free_old`](Self::free_old). The caller has the lock, so nobody else frees chunks.
    fn reclaim_locked(&self, arena: Arena, slot: &Slot) -> bool {
        let mut freed = self.free_stamped(arena, slot);
        let Some(oldest) = Found::at(arena, self.oldest.load(Ordering::SeqCst)) else {
            return freed;
        };
        if oldest.index() < self.stamped.load(Ordering::Relaxed) {
            // The stamped chunks are still looked at, and a new stamp would only be later.
            return freed;
        }
        let start = self.start();
        let mut first = Found::at(arena, self.first.load(Ordering::SeqCst)).unwrap_or(oldest);
        while let Next::Chunk(next) = first.next()
            && first.end() <= start
        {
            first = next;
        }
        let unlinked = self.unlink_before(arena, first);
        if first.index() > oldest.index() {
            self.stamp(arena, unlinked);
            freed |= self.free_stamped(arena, slot);
        }
        freed
    }

    /// Moves those hints to a chunk that are behind it.
    fn unlink_before(&self, arena: Arena, first: Found) -> Unlinked {
        self.first.store(first.address as u64, Ordering::Release);
        loop {
            let hint = self.last.load(Ordering::SeqCst);
            let behind = Found::at(arena, hint).is_none_or(|last| last.index() < first.index());
            if !behind
                || self
                    .last
                    .compare_exchange(
                        hint,
                        first.address as u64,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )
                    .is_ok()
            {
                break Unlinked { before: first };
            }
        }
    }

    /// Stamps what is unlinked, by invariant 3: a thread that is pinned later than the stamp, which is taken
    /// after a full fence, has found the hints moved.
    fn stamp(&self, arena: Arena, unlinked: Unlinked) {
        // By invariant 4, which is about kills, and the next holder of the lock.
        self.stamp.store(epoch::stamp(arena), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        self.stamped
            .store(unlinked.before.index(), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// Frees the chunks that are stamped, if all pins are past the stamp.
    fn free_stamped(&self, arena: Arena, slot: &Slot) -> bool {
        let stamped = self.stamped.load(Ordering::Relaxed);
        let mut freed = false;
        let mut past = false;
        while let Some(old) = Found::at(arena, self.oldest.load(Ordering::SeqCst))
            && old.index() < stamped
            && let Next::Chunk(next) = old.next()
        {
            past = past || epoch::is_past(arena, self.stamp.load(Ordering::Acquire));
            if !past {
                break;
            }
            let (field, next) = (&self.oldest, next.address as u64);
            let args = [address_of(field), old.address as u64, next];
            slot.intent.open(FREE, &args);
            block::about_to_free(slot, old.address as u64);
            // Release: the words of `next`. By invariant 3, no thread that looks finds the old one here.
            field.store(next, Ordering::Release);
            compiler_fence(Ordering::SeqCst);
            // If the block cannot be freed, it was not a block; there is nobody to report this to.
            let _ = block::free_named(arena, slot, old.address);
            slot.intent.close();
            freed = true;
        }
        freed
    }
}
