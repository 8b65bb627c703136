//! The three sets of bits of a span. Rationale, steps and invariants: `allocator::span`.

use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// A block's place in its span.
#[derive(Clone, Copy)]
pub struct Place {
    pub word: usize,
    pub bit: u64,
}

/// The sets of a span, of `W` words at most.
#[derive(Clone, Copy)]
pub struct Sets<'a, const W: usize> {
    pub bits: &'a AtomicU64,
    pub word: &'a AtomicU32,
    /// Rises with each refill, before `word` changes.
    pub refills: &'a AtomicU32,
    pub freed: &'a [AtomicU64; W],
    pub remote: &'a [AtomicU64; W],
}

impl<const W: usize> Sets<'_, W> {
    #[inline]
    fn freed(&self, word: usize) -> &AtomicU64 {
        &self.freed[word % W]
    }

    #[inline]
    fn remote(&self, word: usize) -> &AtomicU64 {
        &self.remote[word % W]
    }

    /// Takes the lowest block of `bits`; its index. `record` is told it beforehand.
    #[inline]
    pub fn take(&self, record: impl FnOnce(u32)) -> Option<u32> {
        let bits = self.bits.load(Ordering::Relaxed);
        if bits == 0 {
            return None;
        }
        let block = self.word.load(Ordering::Relaxed) * 64 + bits.trailing_zeros();
        record(block);
        // The block is allocated by this store.
        self.bits.store(bits & (bits - 1), Ordering::Release);
        Some(block)
    }

    /// Frees a block. The caller is the owner.
    #[inline]
    pub fn free_own(&self, place: Place) {
        let freed = self.freed(place.word);
        // The block is free by this store. Only the owner writes the word.
        freed.store(freed.load(Ordering::Relaxed) | place.bit, Ordering::Release);
    }

    /// Frees a block of another's; what had been freed so before.
    #[inline]
    pub fn free_remote(&self, place: Place) -> u64 {
        // Release: what this thread did with the block is done before the owner hands it out again.
        self.remote(place.word)
            .fetch_or(place.bit, Ordering::SeqCst)
    }

    /// True if the block is in one of the sets. Read in this order, a block that was freed before
    /// the call, in the order that synchronisation gives, is always found.
    #[inline]
    pub fn is_free(&self, place: Place) -> bool {
        let remote = self.remote(place.word).load(Ordering::Acquire);
        let freed = self.freed(place.word).load(Ordering::Acquire);
        let bits = self.bits.load(Ordering::Acquire);
        let current = self.word.load(Ordering::Relaxed) as usize == place.word;
        let set = remote | freed | if current { bits } else { 0 };
        set & place.bit != 0 && ((remote | freed) & place.bit != 0 || self.is_at_hand(place))
    }

    /// True if the block is in `bits`, and not one of the same number in another word that `bits`
    /// held while `word` was read.
    #[cold]
    fn is_at_hand(&self, place: Place) -> bool {
        loop {
            // Acquire pairs with the Release of a refill: what is seen of one shows in the count.
            let refills = self.refills.load(Ordering::Acquire);
            let bits = self.bits.load(Ordering::Acquire);
            let word = self.word.load(Ordering::Acquire);
            if self.refills.load(Ordering::Relaxed) == refills {
                return word as usize == place.word && bits & place.bit != 0;
            }
        }
    }

    /// The free blocks of a word, of all three sets.
    pub fn free_bits(&self, word: usize) -> u64 {
        let current = self.word.load(Ordering::Relaxed) as usize == word;
        self.remote(word).load(Ordering::Acquire)
            | self.freed(word).load(Ordering::Acquire)
            | if current {
                self.bits.load(Ordering::Acquire)
            } else {
                0
            }
    }

    /// Moves a word of freed blocks to `bits`, which is 0. False if there is none.
    pub fn refill(&self, words: usize) -> bool {
        for word in 0..words {
            let freed = self.freed(word).load(Ordering::Relaxed);
            if freed != 0 {
                let refills = self.refills.load(Ordering::Relaxed).wrapping_add(1);
                self.refills.store(refills, Ordering::Release);
                self.word.store(word as u32, Ordering::Release);
                if cfg!(shmkit_planted = "allocator_crash") {
                    self.freed(word).store(0, Ordering::Release);
                }
                self.bits.store(freed, Ordering::Release);
                self.freed(word).store(0, Ordering::Release);
                return true;
            }
        }
        false
    }

    /// Moves what others freed to `freed`. True if there was anything. `being_freed` gives the
    /// blocks of a word that `freeing` words name.
    pub fn collect(&self, words: usize, being_freed: impl Fn(usize) -> u64) -> bool {
        let mut any = false;
        for word in 0..words {
            // Acquire pairs with the Release of the or: what the other did with the block is done.
            let mut taken = self.remote(word).load(Ordering::SeqCst);
            if taken != 0 {
                taken &= !being_freed(word);
                let freed = self.freed(word).load(Ordering::Relaxed);
                self.freed(word).store(freed | taken, Ordering::Release);
                self.remote(word).fetch_and(!taken, Ordering::AcqRel);
                any |= taken != 0;
            }
        }
        any
    }

    /// Puts `bits` back to `freed` and collects: what recovery does for a dead owner.
    pub fn settle(&self, words: usize, being_freed: impl Fn(usize) -> u64) {
        let word = self.word.load(Ordering::Relaxed) as usize;
        let bits = self.bits.load(Ordering::Acquire);
        if bits != 0 {
            self.freed(word).fetch_or(bits, Ordering::AcqRel);
            self.bits.store(0, Ordering::Release);
        }
        self.collect(words, being_freed);
    }
}
