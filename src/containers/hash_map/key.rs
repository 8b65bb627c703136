//! [`Key`]: what can be a key; and how a key and a value are laid out in a node.

use std::alloc::Layout;
use std::marker::PhantomData;

use crate::ShmSafe;
use crate::allocator::AllocError;
use crate::containers::Value;
use crate::engines::limbo::Retirable;
use crate::layout::TypeInfo;
use crate::layout::arena::Arena;

/// A type whose values are identified by their bytes, so that it can be the key of a
/// [`HashMap`](crate::HashMap).
///
/// Keys are hashed and compared as bytes, so they mean the same in every program. Integers, `char`,
/// `bool`, arrays of these, `str` and `[u8]` are keys. The trait can be derived for a struct of keys
/// without padding between them, or for an enum without fields:
///
/// ```
/// use shmkit::{HashMap, Key, Pool, ShmSafe};
///
/// #[derive(Clone, Copy, PartialEq, ShmSafe, Key)]
/// struct Cell {
///     row: u32,
///     column: u32,
/// }
///
/// let pool = Pool::builder().create()?;
/// let cells = pool.create(HashMap::<Cell, f64>::new())?;
/// cells.insert(&Cell { row: 1, column: 2 }, 0.5)?;
/// assert_eq!(cells.get_copied(&Cell { row: 1, column: 2 }), Some(0.5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// An implementation by hand:
///
/// ```
/// use shmkit::{Key, ShmSafe};
///
/// #[derive(Clone, Copy, PartialEq, ShmSafe)]
/// #[repr(C)]
/// struct Cell {
///     row: u32,
///     column: u32,
/// }
///
/// // SAFETY: two integers of four bytes each, and nothing between them.
/// unsafe impl Key for Cell {
///     type Stored = Self;
///     const LEN: Option<usize> = Some(8);
///     const ALIGN: usize = align_of::<Self>();
///
///     fn bytes(&self) -> &[u8] {
///         // SAFETY: 8 bytes without padding.
///         unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), 8) }
///     }
///
///     unsafe fn from_bytes(bytes: &[u8]) -> &Self {
///         // SAFETY: by the caller's promise these are the bytes of a `Cell`, aligned.
///         unsafe { &*bytes.as_ptr().cast() }
///     }
/// }
/// ```
///
/// # Safety
///
/// - [`bytes`](Self::bytes) gives bytes without padding, which do not change, and as many as
///   [`LEN`](Self::LEN) says if it is not `None`. It never panics, and does not use a pool.
/// - Two keys are the same key exactly if their bytes are the same.
/// - [`from_bytes`](Self::from_bytes) of a copy of the bytes, at an address that is a multiple of
///   [`ALIGN`](Self::ALIGN), gives that key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a map",
    label = "not `Key`",
    note = "keys are told by their bytes: integers, `char`, `bool`, `Handle`s, `str` (for `String`s), \
            `[u8]` (for vectors), and arrays of numbers, `char` and `bool`; `#[derive(Key)]` admits structs of \
            keys without padding and enums without fields; a float's bits are a key, by `f64::to_bits`"
)]
pub unsafe trait Key: Send + Sync + 'static {
    /// The type by which programs recognise a map's type of key: the type itself, if that is
    /// `ShmSafe`.
    type Stored: ShmSafe;
    /// The number of bytes that every key has; `None` if it differs from key to key.
    const LEN: Option<usize>;
    /// The alignment of a key: its address is a multiple of this.
    const ALIGN: usize;

    /// The key as bytes.
    ///
    /// ```
    /// use shmkit::Key;
    ///
    /// assert_eq!(Key::bytes(&0x0102_u32), 0x0102_u32.to_ne_bytes());
    /// assert_eq!(Key::bytes("key"), b"key");
    /// ```
    fn bytes(&self) -> &[u8];

    /// The key with those bytes.
    ///
    /// # Safety
    ///
    /// The bytes are a copy of a key's bytes, at an address that is a multiple of
    /// [`ALIGN`](Self::ALIGN).
    ///
    /// ```
    /// use shmkit::Key;
    ///
    /// let bytes = Box::<[u8]>::from(Key::bytes("key"));
    /// // SAFETY: a copy of a key's bytes, and text is aligned anywhere.
    /// assert_eq!(unsafe { <str as Key>::from_bytes(&bytes) }, "key");
    /// ```
    unsafe fn from_bytes(bytes: &[u8]) -> &Self;

    /// Whether these bytes, which have the right length, are those of a key. A map asks this before
    /// it gives out a key that lies in its pool, where a stray write of any process may have
    /// damaged it; a damaged entry is passed over. By default all bytes are valid: a type for which
    /// some bytes are not a value has to override this.
    ///
    /// ```
    /// use shmkit::Key;
    ///
    /// assert!(<bool as Key>::is_valid(&[1]) && <u8 as Key>::is_valid(&[2]));
    /// assert!(!<bool as Key>::is_valid(&[2]), "no value of the type");
    /// ```
    #[inline]
    fn is_valid(bytes: &[u8]) -> bool {
        let _ = bytes;
        true
    }
}

/// Compiles for keys only. The derive macro checks fields with it.
#[doc(hidden)]
pub const fn is_key<T: Key>() {}

macro_rules! plain_keys {
    ($($ty:ty: $valid:expr),+ $(,)?) => {$(
        plain_keys!(@ [] $ty, $ty, $valid);
        plain_keys!(@ [const N: usize] [$ty; N], $ty, $valid);
    )+};
    (@ [$($parameter:tt)*] $ty:ty, $part:ty, $valid:expr) => {
        // SAFETY: the types have no padding; equal bytes are equal values.
        unsafe impl<$($parameter)*> Key for $ty {
            type Stored = Self;
            const LEN: Option<usize> = Some(size_of::<Self>());
            const ALIGN: usize = align_of::<Self>();

            #[inline]
            fn bytes(&self) -> &[u8] {
                let first = std::ptr::from_ref(self).cast();
                // SAFETY: the value's own bytes, all of them initialised.
                unsafe { std::slice::from_raw_parts(first, size_of::<Self>()) }
            }

            #[inline]
            unsafe fn from_bytes(bytes: &[u8]) -> &Self {
                // SAFETY: by the caller's promise they are a value's bytes, aligned.
                unsafe { &*bytes.as_ptr().cast() }
            }

            #[inline]
            fn is_valid(bytes: &[u8]) -> bool {
                bytes.chunks_exact(size_of::<$part>()).all($valid)
            }
        }
    };
}

plain_keys! {
    u8: |_| true, u16: |_| true, u32: |_| true, u64: |_| true, u128: |_| true, usize: |_| true,
    i8: |_| true, i16: |_| true, i32: |_| true, i64: |_| true, i128: |_| true, isize: |_| true,
    bool: |byte| byte[0] <= 1,
    char: |word| matches!(word, &[a, b, c, d] if char::from_u32(u32::from_ne_bytes([a, b, c, d])).is_some()),
}

/// Stands for `str` in a map's description.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Text(());

/// Stands for `[u8]` in a map's description.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes(());

// SAFETY: no data.
unsafe impl ShmSafe for Text {
    const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("str");
}

// SAFETY: no data.
unsafe impl ShmSafe for Bytes {
    const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("[u8]");
}

// SAFETY: a string is its bytes.
unsafe impl Key for str {
    type Stored = Text;
    const LEN: Option<usize> = None;
    const ALIGN: usize = 1;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    #[inline]
    unsafe fn from_bytes(bytes: &[u8]) -> &Self {
        // SAFETY: by the caller's promise they are a copy of a string's bytes.
        unsafe { std::str::from_utf8_unchecked(bytes) }
    }

    #[inline]
    fn is_valid(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok()
    }
}

// SAFETY: it is bytes.
unsafe impl Key for [u8] {
    type Stored = Bytes;
    const LEN: Option<usize> = None;
    const ALIGN: usize = 1;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }

    #[inline]
    unsafe fn from_bytes(bytes: &[u8]) -> &Self {
        bytes
    }
}

/// A word that begins with these bytes, of which there are at most eight.
#[inline]
pub(super) fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

/// The key, of `len` bytes, with which a word begins; `None` if its bytes are damaged.
///
/// # Safety
///
/// The word begins with such a key, and is aligned for it.
#[inline]
pub(super) unsafe fn key_of<K: ?Sized + Key>(word: &u64, len: usize) -> Option<&K> {
    let first = std::ptr::from_ref(word).cast::<u8>();
    // SAFETY: bytes of the word.
    let bytes = unsafe { std::slice::from_raw_parts(first, len.min(8)) };
    // SAFETY: a key's bytes, aligned by the caller's promise.
    K::is_valid(bytes).then(|| unsafe { K::from_bytes(bytes) })
}

/// A node with a key and a value, given by its address. It consists of what `limbo` needs, the
/// key's length unless all keys have the same, the value, and the key. In a stacked map, the
/// address of the node that it hides follows what `limbo` needs.
pub(super) struct Node<K: ?Sized, V: ?Sized, const STACKED: bool>(
    PhantomData<(*const K, *const V)>,
);

impl<K: ?Sized + Key, V: ?Sized + Value, const STACKED: bool> Node<K, V, STACKED> {
    const LEN_AT: usize = size_of::<Retirable>() + 8 * STACKED as usize;
    const VALUE_AT: usize = {
        let before = if K::LEN.is_some() {
            Self::LEN_AT
        } else {
            Self::LEN_AT + 8
        };
        before.next_multiple_of(V::ALIGN)
    };
    const TAIL_AT: usize = Self::VALUE_AT + V::SIZE;
    const ALIGN: usize = {
        let align = if V::ALIGN > K::ALIGN {
            V::ALIGN
        } else {
            K::ALIGN
        };
        if align > 8 { align } else { 8 }
    };

    /// Where the key is, behind a value with a tail of that size.
    #[inline]
    fn key_at(tail: usize) -> Option<usize> {
        Self::TAIL_AT
            .checked_add(tail)?
            .checked_next_multiple_of(K::ALIGN)
    }

    /// The size of a node with a key of `len` bytes.
    #[inline]
    fn size(len: usize, tail: usize) -> Option<usize> {
        Self::key_at(tail)?.checked_add(len)
    }

    #[inline]
    pub(super) fn layout(len: usize, value: &V) -> Result<Layout, AllocError> {
        let size = Self::size(len, value.tail()).ok_or(AllocError::TooLarge)?;
        Layout::from_size_align(size, Self::ALIGN).map_err(|_| AllocError::TooLarge)
    }

    /// The size of a node that has a key of `len` bytes.
    ///
    /// # Safety
    ///
    /// As for [`bytes`](Self::bytes), which has given the key.
    #[inline]
    pub(super) unsafe fn size_of(node: u64, len: usize) -> usize {
        // SAFETY: by the caller's promise.
        let tail = unsafe { V::tail_at(Self::value(node)) };
        Self::size(len, tail).unwrap_or(0)
    }

    #[inline]
    fn at<T>(node: u64, offset: usize) -> *mut T {
        std::ptr::with_exposed_provenance_mut(node as usize + offset)
    }

    /// Writes a new node.
    ///
    /// # Safety
    ///
    /// The block at `node` is new, and has the layout for the key and the value. If the node is kept, the value is
    /// no longer used where it was (nor dropped: no `ShmSafe` type is).
    #[inline]
    pub(super) unsafe fn write(node: u64, key: &[u8], value: &V) {
        let key_at = Self::key_at(value.tail()).expect("there is a layout");
        // SAFETY: within the block, by the caller's promise and the constants above.
        unsafe {
            if K::LEN.is_none() {
                Self::at::<u64>(node, Self::LEN_AT).write(key.len() as u64);
            }
            value.write(Self::at(node, Self::VALUE_AT));
            Self::at::<u8>(node, key_at).copy_from_nonoverlapping(key.as_ptr(), key.len());
        }
    }

    /// The bytes of the key; `None` if no whole node can be at that address, which a word that is
    /// garbage may give. If there is a key, the value is whole, too.
    ///
    /// # Safety
    ///
    /// A word of such a map named the node, and the node stays for at least `'a`.
    #[inline]
    pub(super) unsafe fn bytes<'a>(arena: Arena, node: u64) -> Option<&'a [u8]> {
        let room = arena.room_at(node as usize);
        if room < Self::TAIL_AT || !(node as usize).is_multiple_of(Self::ALIGN) {
            return None;
        }
        // SAFETY: in committed data of the pool, aligned, and before the tail.
        let (len, tail) = unsafe {
            let len = match K::LEN {
                Some(len) => len,
                None => Self::at::<u64>(node, Self::LEN_AT).read() as usize,
            };
            (len, V::tail_at(Self::value(node)))
        };
        let key_at = Self::key_at(tail).filter(|&key_at| key_at <= room)?;
        // SAFETY: in committed data; by the caller's promise nobody writes there.
        (len <= room - key_at)
            .then(|| unsafe { std::slice::from_raw_parts(Self::at(node, key_at), len) })
    }

    /// The key, if [`bytes`](Self::bytes) gives bytes, and they are not damaged.
    ///
    /// # Safety
    ///
    /// As for [`bytes`](Self::bytes).
    #[inline]
    pub(super) unsafe fn key<'a>(arena: Arena, node: u64) -> Option<&'a K> {
        // SAFETY: by the caller's promise.
        let bytes = unsafe { Self::bytes(arena, node) }.filter(|bytes| K::is_valid(bytes))?;
        // SAFETY: a key's bytes, at its alignment.
        Some(unsafe { K::from_bytes(bytes) })
    }

    /// The address of the value in a node that has a key.
    #[inline]
    pub(super) fn value(node: u64) -> *const u8 {
        Self::at(node, Self::VALUE_AT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_no_keys() {
        assert!(str::is_valid("blå".as_bytes()) && !str::is_valid(b"bl\xe5"));
        let last = [0, 0x10_ffff_u32].map(u32::to_ne_bytes).concat();
        assert!(<[char; 2]>::is_valid(&last));
        for bad in [0xd800, 0x11_0000_u32] {
            let word = u64::from(bad).to_le();
            // SAFETY: a word, aligned.
            assert_eq!(unsafe { key_of::<char>(&word, 4) }, None);
        }
        // SAFETY: as above.
        let bools = unsafe { [1, 2].each_ref().map(|word| key_of::<bool>(word, 1)) };
        assert_eq!(bools, [Some(&true), None]);
        assert!(<[bool; 3]>::is_valid(&[0, 1, 0]) && !<[bool; 3]>::is_valid(&[0, 1, 3]));
    }
}
