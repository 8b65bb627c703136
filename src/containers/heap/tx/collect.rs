//! A collection within a transaction, which can still be undone afterwards.

use super::super::trace::{Trace, Tracer};
use super::super::{Collected, LEAST_DEBT};
use super::Tx;
use crate::Movable;
use crate::allocator::{Packed, block};
use crate::engines::heap::What;
use crate::participants::here::Here;
use crate::primitive::Ordering;

impl<R: Trace + Movable> Tx<'_, R> {
    /// Runs `f`, which allocates; if the pool is full, runs it once more after a collection.
    pub(super) fn with_room<O>(
        &mut self,
        mut f: impl FnMut(&mut Self) -> Result<O, Packed>,
    ) -> Result<O, Packed> {
        match f(self) {
            Err(error) if is_full(error) && !self.swept => {
                self.collect();
                f(self)
            }
            other => other,
        }
    }

    /// Frees what is reached neither from the heap as it is nor as it was before the transaction.
    #[cold]
    pub(in crate::containers::heap) fn collect(&mut self) -> Collected {
        let Here { arena, slot } = self.here;
        let words = self.words();
        let mut tracer = Tracer::new(&self.table);
        self.root().trace(&mut tracer);
        // Marks what the transaction has saved or made, and what the saved bytes lead to.
        let mut recorded = (0..self.recorded.len()).rev();
        words.records(arena, |record| {
            let about = recorded.next().and_then(|place| self.recorded.get(place));
            let Some(&elements) = about.map(|about| about.elements) else {
                return;
            };
            if let What::Object(index) | What::Birth(index) = record.what {
                tracer.mark(index, elements);
            }
            // SAFETY: whole elements, as they were saved; the log is not written to meanwhile.
            unsafe { elements.trace(record.bytes, record.len, usize::MAX, &mut tracer) };
        });
        tracer.run();
        let mut collected = Collected::default();
        for (index, entry) in self.table.objects() {
            let bytes = block::usable_size(arena, entry.address() as usize).unwrap_or(0);
            if tracer.is_marked(index) {
                collected.live += 1;
                collected.live_bytes += bytes;
            } else {
                words.free(arena, slot, index, entry);
                collected.freed += 1;
                collected.freed_bytes += bytes;
            }
        }
        let limit = (collected.live_bytes as u64).max(LEAST_DEBT);
        words.limit.store(limit, Ordering::Relaxed);
        words.debt.store(0, Ordering::Relaxed);
        self.swept = true;
        collected
    }
}

fn is_full(error: Packed) -> bool {
    error.unpack().is_full()
}
