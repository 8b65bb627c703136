//! [`Value`]: what a map holds and a [`View`](super::View) shows.
//!
//! A value of a type lies in the pool as it is anywhere else. Bytes, of which each value has its own number, lie behind
//! that number. So one address is enough to find either, and the code of maps and views is the same for both: a value
//! consists of [`SIZE`](Stored::SIZE) bytes and of a tail behind them, which only bytes have.

use stored::Stored;

use super::hash_map::Bytes;
use crate::ShmSafe;

/// What a [`HashMap`](crate::HashMap) holds: values of a type, or `[u8]`, which is bytes, as many as each value has.
///
/// ```
/// use shmkit::{HashMap, Movable, Pool, Value};
///
/// fn report<V: ?Sized + Value + Movable>(map: &HashMap<str, V>, name: &str) -> String {
///     format!("{name} is {}", if map.contains_key(name) { "known" } else { "unknown" })
/// }
///
/// let pool = Pool::builder().create()?;
/// let ages = pool.create(HashMap::<str, u32>::new())?;
/// let pages = pool.create(HashMap::<str, [u8]>::new())?;
/// pages.insert_bytes("/", b"<html>")?;
/// assert_eq!(report(&ages, "/"), "/ is unknown");
/// assert_eq!(report(&pages, "/"), "/ is known");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Value: Stored {}

impl<T: ShmSafe> Value for T {}
impl Value for [u8] {}

/// Where no user can import it: each type of the pool has its functions, and `write` is also one of `io::Write`.
mod stored {
    use crate::ShmSafe;

    /// How a [`Value`](super::Value) lies in a pool.
    pub trait Stored: Send + Sync + 'static {
        /// The type by which programs recognise what a map holds.
        type Described: ShmSafe;

        /// It fits into a word, and is its bytes and nothing more.
        const FITS_WORD: bool;

        const ALIGN: usize;

        /// The size of a value without its tail.
        const SIZE: usize;

        /// The size of the tail.
        fn tail(&self) -> usize;

        /// The size of the tail of the value at an address. It is not to be trusted: the pool may be damaged.
        ///
        /// # Safety
        ///
        /// There are `SIZE` bytes, aligned, in which a value was once written.
        unsafe fn tail_at(at: *const u8) -> usize;

        /// Writes the value, with its tail.
        ///
        /// # Safety
        ///
        /// There is room for it, aligned, that nobody else has. If what is written is kept, the value is not used any more
        /// where it was (nor dropped: no `ShmSafe` type is).
        unsafe fn write(&self, to: *mut u8);

        /// The value at an address.
        ///
        /// # Safety
        ///
        /// A value was written there; its tail ends within the pool, or wherever it is; nobody writes to it for `'a`.
        unsafe fn at<'a>(at: *const u8) -> &'a Self;
    }
}

impl<T: ShmSafe> Stored for T {
    type Described = T;
    const FITS_WORD: bool = size_of::<T>() <= 8 && align_of::<T>() <= 8 && T::TYPE.is_plain();
    const ALIGN: usize = align_of::<T>();
    const SIZE: usize = size_of::<T>();

    #[inline]
    fn tail(&self) -> usize {
        0
    }

    #[inline]
    unsafe fn tail_at(_: *const u8) -> usize {
        0
    }

    #[inline]
    unsafe fn write(&self, to: *mut u8) {
        // SAFETY: by the caller's promise.
        unsafe { to.cast::<T>().copy_from_nonoverlapping(self, 1) };
    }

    #[inline]
    unsafe fn at<'a>(at: *const u8) -> &'a T {
        // SAFETY: by the caller's promise.
        unsafe { &*at.cast() }
    }
}

impl Stored for [u8] {
    type Described = Bytes;
    const FITS_WORD: bool = false;
    const ALIGN: usize = align_of::<u64>();
    const SIZE: usize = size_of::<u64>();

    #[inline]
    fn tail(&self) -> usize {
        self.len()
    }

    #[inline]
    unsafe fn tail_at(at: *const u8) -> usize {
        // SAFETY: by the caller's promise: the first word is the number.
        unsafe { at.cast::<u64>().read() as usize }
    }

    #[inline]
    unsafe fn write(&self, to: *mut u8) {
        // SAFETY: by the caller's promise.
        unsafe {
            to.cast::<u64>().write(self.len() as u64);
            to.add(Self::SIZE)
                .copy_from_nonoverlapping(self.as_ptr(), self.len());
        }
    }

    #[inline]
    unsafe fn at<'a>(at: *const u8) -> &'a [u8] {
        // SAFETY: by the caller's promise.
        unsafe { std::slice::from_raw_parts(at.add(Self::SIZE), Self::tail_at(at)) }
    }
}
