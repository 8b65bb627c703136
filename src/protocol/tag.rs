//! The name of an owner: a slot and its generation, in one word.
//!
//! ```text
//! bit  0..4   free for the flags of the word that holds the tag
//! bit  4..16  slot, from 1; 0 is nobody
//! bit 16..64  generation of the slot
//! ```
//!
//! A slot gets a new generation with each owner, so a tag is never mistaken for another's. The low
//! 32 bits, on which a futex can sleep, hold the flags, the slot and the low generation bits.

/// An owner of something in the pool. Zero means nobody.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Tag(u64);

impl Tag {
    pub const NOBODY: Tag = Tag(0);
    /// The bits of a word that hold a tag.
    pub const MASK: u64 = !Self::FLAGS;
    /// The bits of a word that are available for flags.
    pub const FLAGS: u64 = 0xf;

    pub const fn new(slot: usize, generation: u64) -> Self {
        Tag((slot as u64) << 4 | generation << 16)
    }

    /// The tag within a word, whatever its flags.
    #[inline]
    pub const fn of_word(word: u64) -> Self {
        Tag(word & Self::MASK)
    }

    #[inline]
    pub const fn word(self) -> u64 {
        self.0
    }

    #[inline]
    pub const fn slot(self) -> usize {
        (self.0 >> 4 & 0xfff) as usize
    }

    #[inline]
    pub const fn generation(self) -> u64 {
        self.0 >> 16
    }

    #[inline]
    pub const fn is_nobody(self) -> bool {
        self.0 == 0
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.slot(), self.generation())
    }
}
