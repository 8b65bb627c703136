//! FNV-1a (Fowler, Noll and Vo): a hash for what nobody has a reason to forge, also in constants.

/// What a hash begins with.
pub(crate) const START: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash with one word, or byte, more.
pub(crate) const fn step(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x100_0000_01b3)
}
