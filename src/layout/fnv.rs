//! FNV-1a (Fowler, Noll and Vo): a hash for data that nobody has a reason to forge; also in
//! constants.

/// The initial value of a hash.
pub(crate) const START: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash extended by one word, or byte.
pub(crate) const fn step(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x100_0000_01b3)
}
