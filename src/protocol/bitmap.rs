//! The two sets of bits of a span. For the rationale, steps and invariants, see `allocator::span`.

use crate::primitive::{AtomicU64, Ordering, fence};

/// A block's place in its span: its number.
#[derive(Clone, Copy)]
pub struct Place(pub u32);

impl Place {
    /// The index of the word that has its bit, in either set.
    #[inline(always)]
    pub fn word(self) -> usize {
        self.0 as usize / 64
    }

    /// Its bit in that word.
    #[inline(always)]
    pub fn bit(self) -> u64 {
        1 << (self.0 % 64)
    }
}

/// One word of each set.
#[repr(C)]
pub struct Pair {
    pub freed: AtomicU64,
    pub remote: AtomicU64,
}

/// The sets of a span, of at most `W` words each.
#[derive(Clone, Copy)]
pub struct Sets<'a, const W: usize>(pub &'a [Pair; W]);

/// What was found of blocks that others have freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Collected {
    Nothing,
    /// Some are left where they are, as `freeing` words name them. The owner [is told](tell); the caller has to do
    /// that, since a thread that frees one of them, or a neighbour, tells nobody if another bit is set already.
    Named,
    /// Some can be handed out. There may be more: the owner looks again when it has handed these
    /// out.
    Some,
}

/// The word, with the bit of a block set.
///
/// It is one instruction; the compiler, which knows from the test before that the bit is clear,
/// would compute a mask in four.
#[cfg(all(target_arch = "x86_64", not(shmkit_loom)))]
#[inline(always)]
fn with_bit(word: u64, block: u32) -> u64 {
    let mut word = word;
    // SAFETY: sets bit `block % 64` of a register.
    unsafe {
        std::arch::asm!("bts {word}, {block}", word = inout(reg) word, block = in(reg) u64::from(block),
            options(pure, nomem, nostack));
    }
    word
}

#[cfg(not(all(target_arch = "x86_64", not(shmkit_loom))))]
#[inline(always)]
fn with_bit(word: u64, block: u32) -> u64 {
    word | Place(block).bit()
}

/// Takes the lowest block of a word of `freed`; true if there was one. `record` is given the
/// block's number in the word beforehand. The caller is the owner.
#[inline(always)]
pub fn take(word: &AtomicU64, record: impl FnOnce(u32)) -> bool {
    let free = word.load(Ordering::Relaxed);
    if free == 0 {
        return false;
    }
    record(free.trailing_zeros());
    // The block is allocated from this store on. Only the owner writes the word.
    word.store(free & (free - 1), Ordering::Release);
    true
}

/// Tells an owner that somebody has freed a block of one of its spans. Called after the free.
#[inline]
pub fn tell(hints: &AtomicU64, hint: u64) {
    // If the hint is still set, the owner, which clears it and then looks, has not looked yet. The
    // free and this load, and the owner's exchange and its look, are all in one total order.
    if hints.load(Ordering::SeqCst) & hint == 0 {
        hints.fetch_or(hint, Ordering::SeqCst);
    }
}

/// True if the owner has been told; the caller looks at its spans after that.
#[inline]
pub fn was_told(hints: &AtomicU64, hint: u64) -> bool {
    let told = hints.load(Ordering::Relaxed) & hint != 0;
    if told {
        hints.fetch_and(!hint, Ordering::SeqCst);
    }
    told
}

/// Gives up the ownership of a span. Others may free its last blocks meanwhile; a thread that frees a block
/// looks at the tag after that. True if the span is empty now, and perhaps nobody else knows: the caller
/// has to take it back.
#[inline]
pub fn disown(tag: &AtomicU64, nobodys: u64, is_empty: impl FnOnce() -> bool) -> bool {
    tag.store(nobodys, Ordering::Release);
    // If a thread that freed the last block still saw an owner, it freed the block before this.
    fence(Ordering::SeqCst);
    is_empty()
}

impl<'a, const W: usize> Sets<'a, W> {
    /// A word of `freed`.
    #[inline]
    pub fn freed(&self, word: usize) -> &'a AtomicU64 {
        &self.0[word % W].freed
    }

    /// A word of `remote`.
    #[inline]
    pub fn remote(&self, word: usize) -> &'a AtomicU64 {
        &self.0[word % W].remote
    }

    /// Frees a block, unless it is free already. True if it did. The caller is the owner.
    #[inline]
    pub fn free_own(&self, place: Place) -> bool {
        let remote = self.remote(place.word()).load(Ordering::Acquire);
        let freed = self.freed(place.word());
        let free = freed.load(Ordering::Relaxed);
        if (remote | free) & place.bit() != 0 {
            return false;
        }
        // The block is free from this store on. Only the owner writes the word.
        freed.store(with_bit(free, place.0), Ordering::Release);
        true
    }

    /// Frees a block of a span that another owns, and gives the bits that had been set so before.
    #[inline]
    pub fn free_remote(&self, place: Place) -> u64 {
        // Release: what this thread did with the block is done before the owner hands it out again.
        self.remote(place.word())
            .fetch_or(place.bit(), Ordering::SeqCst)
    }

    /// True if the block is in one of the sets. As they are read in this order, a block whose
    /// freeing happened before the call is always found.
    #[inline]
    pub fn is_free(&self, place: Place) -> bool {
        self.free_bits(place.word()) & place.bit() != 0
    }

    /// The free blocks of a word, of both sets. A caller that has cleared a hint before sees the
    /// bits of the frees that had raised the hint.
    #[inline]
    pub fn free_bits(&self, word: usize) -> u64 {
        let remote = self.remote(word).load(Ordering::SeqCst);
        remote | self.freed(word).load(Ordering::Acquire)
    }

    /// A word with blocks in `freed`: the first one from word `from` on, wrapping around.
    #[inline]
    pub fn stocked(&self, words: usize, from: usize) -> Option<usize> {
        let from = from.min(words);
        (from..words)
            .chain(0..from)
            .find(|&word| self.freed(word).load(Ordering::Relaxed) != 0)
    }

    /// Moves the blocks that others have freed to `freed`. `keep_named` removes those that `freeing` words name
    /// from the sets that it is given.
    pub fn collect(&self, words: usize, keep_named: impl FnOnce(&mut [u64; W])) -> Collected {
        let mut taken = [0; W];
        for (word, taken) in taken.iter_mut().enumerate().take(words) {
            // Acquire pairs with the Release of the `fetch_or`: what the other did with the block
            // is done.
            *taken = self.remote(word).load(Ordering::SeqCst);
        }
        if taken.iter().all(|&word| word == 0) {
            return Collected::Nothing;
        }
        // After the loads: a thread that names a block later than this sets its bit later than
        // those loads.
        keep_named(&mut taken);
        for (word, &taken) in taken.iter().enumerate().filter(|&(_, &taken)| taken != 0) {
            let freed = self.freed(word);
            if cfg!(shmkit_planted = "allocator_crash") {
                self.remote(word).fetch_and(!taken, Ordering::AcqRel);
            }
            freed.store(freed.load(Ordering::Relaxed) | taken, Ordering::Release);
            self.remote(word).fetch_and(!taken, Ordering::AcqRel);
        }
        match taken.iter().any(|&word| word != 0) {
            true => Collected::Some,
            false => Collected::Named,
        }
    }
}
