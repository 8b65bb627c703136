//! What a value owns in the pool, and where: all that a thread needs to know that destroys it.

use super::field::Place;
use super::type_info::{Shape, TypeFn, TypeInfo};

/// How a field owns pool memory.
///
/// ```
/// use shmkit::layout::OwnedKind;
/// use shmkit::{Link, TypeInfo};
///
/// let owned = TypeInfo::of::<Link<u64>>().owned_fields();
/// match owned[0].kind {
///     OwnedKind::Link(target) => assert_eq!(target().name(), "u64"),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum OwnedKind {
    /// A counted reference to an object of the given type in the same pool.
    Link(TypeFn),
    /// The address of a raw block that belongs only to this field, or zero.
    Block,
    /// The first word of a container of the library, which owns what its engine says.
    Engine(Engine),
}

/// The containers of this library that own more than a block, by the engine that knows what they
/// own.
///
/// The numbers are part of a pool's format.
///
/// ```
/// use shmkit::layout::{Engine, OwnedKind};
/// use shmkit::{Queue, TypeInfo};
///
/// let owned = TypeInfo::of::<Queue<u64>>().owned_fields();
/// assert!(matches!(owned[0].kind, OwnedKind::Engine(Engine::Queue)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)]
pub enum Engine {
    /// A hash map.
    Map = 1,
    /// A cell.
    Cell = 2,
    /// A queue.
    Queue = 3,
    /// A buffer of bytes.
    Buffer = 4,
    /// A heap of objects that lead to each other.
    Heap = 5,
}

impl Engine {
    /// The engine with that number.
    pub(crate) const fn numbered(number: u32) -> Option<Engine> {
        match number {
            1 => Some(Engine::Map),
            2 => Some(Engine::Cell),
            3 => Some(Engine::Queue),
            4 => Some(Engine::Buffer),
            5 => Some(Engine::Heap),
            _ => None,
        }
    }
}

/// `count` owning words at `offset`, `offset + stride`, and so on, in a value of the type that was
/// asked; see [`TypeInfo::owned_fields`].
///
/// ```
/// use shmkit::{Link, TypeInfo};
///
/// // Twelve pairs: a number and a link, of 8 bytes each.
/// let owned = TypeInfo::of::<[(u64, Link<u8>); 12]>().owned_fields();
/// assert_eq!(owned.len(), 1);
/// assert_eq!((owned[0].stride, owned[0].count), (16, 12));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OwnedField {
    /// Where the first word is, in bytes from the start of the value.
    pub offset: u32,
    /// The distance from one word to the next, in bytes.
    pub stride: u32,
    /// How many words there are.
    pub count: u32,
    /// What each word owns.
    pub kind: OwnedKind,
}

impl TypeInfo {
    /// The words in a value of this type that own pool memory.
    ///
    /// Fields of nested structs are listed at their place in the whole. Words at regular distances
    /// share an entry; where arrays nest irregularly, the entries are as few as one stride allows.
    ///
    /// ```
    /// # use shmkit::{Link, TypeInfo};
    /// let owned = TypeInfo::of::<(Link<u8>, [Link<u8>; 10])>().owned_fields();
    /// assert_eq!(owned.iter().map(|field| field.count).sum::<u32>(), 11);
    /// assert!(TypeInfo::of::<[u64; 10]>().owned_fields().is_empty());
    /// ```
    pub fn owned_fields(&'static self) -> Vec<OwnedField> {
        match self.shape {
            Shape::Scalar | Shape::Variants { .. } => Vec::new(),
            Shape::Owned(kind) => vec![OwnedField {
                offset: 0,
                stride: offset_u32(self.size),
                count: 1,
                kind,
            }],
            Shape::Record(fields) | Shape::Library(fields) => {
                let mut owned = Vec::new();
                for field in fields {
                    if let Place::At { offset, part } = field.place
                        && field.owns()
                    {
                        let inner = (part.ty)().owned_fields();
                        owned.extend(inner.into_iter().map(|f| OwnedField {
                            offset: offset_u32(offset) + f.offset,
                            ..f
                        }));
                    }
                }
                owned
            }
            Shape::Sequence { element, len } if element.owns && len > 0 => {
                let inner = (element.ty)().owned_fields();
                let (size, len) = (offset_u32(element.size), offset_u32(len));
                inner
                    .into_iter()
                    .flat_map(|f| repeat(f, size, len))
                    .collect()
            }
            Shape::Sequence { .. } => Vec::new(),
        }
    }
}

/// The words of field `f` in each of `len` neighbouring elements that are `size` bytes apart.
fn repeat(f: OwnedField, size: u32, len: u32) -> Vec<OwnedField> {
    let shifted = |stride, count, (times, distance): (u32, u32)| -> Vec<OwnedField> {
        let at = |i| OwnedField {
            offset: f.offset + i * distance,
            stride,
            count,
            ..f
        };
        (0..times).map(at).collect()
    };
    if f.count == 1 {
        shifted(size, len, (1, 0))
    } else if u64::from(f.stride) * u64::from(f.count) == u64::from(size) {
        // The run goes on in the next element.
        shifted(f.stride, f.count * len, (1, 0))
    } else if len <= f.count {
        shifted(f.stride, f.count, (len, size))
    } else {
        shifted(size, len, (f.count, f.stride))
    }
}

/// Narrows an offset or a length inside a type that owns pool memory.
fn offset_u32(n: usize) -> u32 {
    u32::try_from(n).expect("invariant 6: a type that owns has at most 4 GiB")
}
