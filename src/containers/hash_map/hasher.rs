//! How keys are hashed.

use crate::ShmSafe;
use crate::engines::map;

/// A way to hash keys: the third parameter of [`HashMap`](crate::HashMap) and
/// [`MultiMap`](crate::MultiMap).
///
/// The seed is drawn when a map gets its first entry, and is stored in the map. So the hash is the
/// same in every process, and different in every map.
///
/// ```
/// use shmkit::{KeyHasher, HashMap, Pool, ShmSafe};
///
/// #[derive(ShmSafe)]
/// struct Rotating;
///
/// // SAFETY: a function of its arguments, that neither panics nor uses a pool.
/// unsafe impl KeyHasher for Rotating {
///     fn hash(seed: [u64; 2], bytes: &[u8]) -> u64 {
///         let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(seed[1] | 1).rotate_left(23);
///         bytes.iter().fold(seed[0], step)
///     }
/// }
///
/// let pool = Pool::builder().create()?;
/// let map = pool.create(HashMap::<u32, u32, Rotating>::with_hasher())?;
/// map.insert(&1, 2)?;
/// assert_eq!(map.get_copied(&1), Some(2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Safety
///
/// [`hash`](Self::hash) gives the same result for the same arguments, in every program. It does not
/// panic, and does not use a pool: it is called while a lock is held.
pub unsafe trait KeyHasher: ShmSafe {
    /// The hash of a key's bytes. All bits matter: the upper half gives the part of a table that a
    /// key belongs to, and the lowest bits its place in there.
    ///
    /// ```
    /// use shmkit::{KeyHasher, SipHash13};
    ///
    /// assert_eq!(SipHash13::hash([1, 2], b"key"), SipHash13::hash([1, 2], b"key"));
    /// assert_ne!(SipHash13::hash([1, 2], b"key"), SipHash13::hash([1, 3], b"key"));
    /// assert_ne!(SipHash13::hash([1, 2], b"key"), SipHash13::hash([1, 2], b"kez"));
    /// ```
    fn hash(seed: [u64; 2], bytes: &[u8]) -> u64;
}

/// SipHash-1-3, the hash of std's maps: whoever chooses the keys, but does not know the seed,
/// cannot make them collide. It is the default.
///
/// ```
/// use shmkit::{HashMap, Pool, Shared, SipHash13};
///
/// let pool = Pool::builder().create()?;
/// let map: Shared<HashMap<str, u32>> = pool.create(HashMap::<str, u32, SipHash13>::with_hasher())?;
/// map.insert("chosen by a stranger", 1)?;
/// assert!(map.contains_key("chosen by a stranger"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, ShmSafe)]
#[shmkit(crate = "crate")]
pub struct SipHash13(());

// SAFETY: arithmetic.
unsafe impl KeyHasher for SipHash13 {
    #[inline(always)]
    fn hash(seed: [u64; 2], bytes: &[u8]) -> u64 {
        map::sip(seed, bytes)
    }
}

/// A hash that takes two multiplications a word, and is several times as fast as [`SipHash13`] for
/// short keys. It is seeded, so keys that were chosen beforehand do not collide; it is not made to
/// withstand somebody who can try out many keys and measure how long that takes.
///
/// ```
/// use shmkit::{FoldHash, HashMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let squares = pool.create(HashMap::<u64, u64, FoldHash>::with_hasher())?;
/// for n in 0..100 {
///     squares.insert(&n, n * n)?;
/// }
/// assert_eq!((squares.len(), squares.get_copied(&12)), (100, Some(144)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, ShmSafe)]
#[shmkit(crate = "crate")]
pub struct FoldHash(());

// SAFETY: arithmetic.
unsafe impl KeyHasher for FoldHash {
    #[inline]
    fn hash(seed: [u64; 2], bytes: &[u8]) -> u64 {
        map::folded(seed, bytes)
    }
}
