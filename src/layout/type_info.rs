//! What a type looks like in memory, as data.
//!
//! Programs that share a pool need to know two things about a type without running its code: is
//! it *the same type* that another program stored ([`TypeInfo::fingerprint`]), and *where does it
//! own pool memory* ([`TypeInfo::owned_fields`]), so that any process can destroy it. Both are
//! read off a [`TypeInfo`], a constant tree that every [`ShmSafe`] type carries.
//!
//! # Rationale
//!
//! Children are held as functions (`fn() -> &'static TypeInfo`) and not as references. A constant
//! that refers to itself is refused by the compiler, and a list node that holds a link to a list
//! node is exactly that; a pointer to a function that would return it is not.
//!
//! A `TypeInfo` names its type by [`TypeId`]. Addresses would not do: a constant may be duplicated,
//! and different types may be merged.
//!
//! # Invariants, checked when the constant is evaluated
//!
//! 1. A described type has no drop glue.
//! 2. It states [`ShmSafe::OWNS`] if and only if a field of it does, or it is an owning word
//!    itself.
//! 3. It states [`ShmSafe::IMAGE_BOUND`] if a field of it does.
//! 4. Every placed field lies inside the type; owning fields are aligned.
//! 5. A field whose offset depends on a discriminant owns nothing.
//! 6. A type that owns has at most 4 GiB, so `u32` holds the offsets of its owned fields.
//! 7. What a container takes by value, or a guard lends as `&mut`, may be moved.

use core::any::TypeId;
use core::fmt;

use super::ShmSafe;
use super::field::{Field, Part, Variant, check_fields, has_in_place, is_plain};
use super::owned::{Engine, OwnedKind};

/// A function that returns the description of a type; see the module's rationale.
///
/// ```
/// use shmkit::TypeInfo;
/// use shmkit::layout::TypeFn;
///
/// let types: [TypeFn; 2] = [TypeInfo::of::<u8>, TypeInfo::of::<[u8; 4]>];
/// assert_eq!(types.map(|ty| ty().size()), [1, 4]);
/// ```
pub type TypeFn = fn() -> &'static TypeInfo;

/// The description of a type: its name, size, alignment, and what it is made of.
///
/// Every [`ShmSafe`] type has one in [`ShmSafe::TYPE`]. The derive macro writes it; an `unsafe
/// impl` by hand calls one of the constructors below, which check at compile time what can be
/// checked.
///
/// ```
/// use shmkit::{ShmSafe, TypeInfo};
///
/// #[derive(ShmSafe)]
/// struct Point {
///     x: f64,
///     y: f64,
/// }
///
/// let info = TypeInfo::of::<Point>();
/// assert_eq!((info.name(), info.size(), info.align()), ("Point", 16, 8));
/// ```
///
/// # What is compared, and when
///
/// A program attaches a pool without saying which types it will look for, so attaching compares no
/// types: only the format of the pool and the places of the library's own tables
/// ([`AttachError::OtherVersion`], [`AttachError::OtherLayout`]). A type is compared whenever an
/// object is reached by something that does not carry its type: a name ([`Pool::named`],
/// [`Pool::named_or_create`]) or a [`Handle`] that came from elsewhere. Then the
/// [fingerprint](Self::fingerprint) that is stored with the object must be that of the requested
/// type; if it is not, an error is returned, and no byte of the object is looked at.
///
/// Types have the same fingerprint if they have the same name (without its path), size and
/// alignment, and are made of fields with the same names, in the same places, of types with the
/// same fingerprint. So a program that is rebuilt agrees with the one that made the pool until it
/// changes such a type; if a field is added, removed or moved, or gets another name or type, it
/// becomes another type. If the compiler chooses where fields are placed, the places are compared.
/// To continue with a pool of an older program, keep the older type and copy:
///
/// ```
/// use shmkit::{NamedError, Pool, ShmSafe};
///
/// mod before {
///     #[derive(shmkit::ShmSafe)]
///     pub struct Limits { pub low: u32, pub high: u32 }
/// }
///
/// #[derive(ShmSafe)]
/// struct Limits { low: u32, high: u32, step: u32 }
///
/// let pool = Pool::builder().create()?;
/// pool.set_name("limits", &pool.create(before::Limits { low: 1, high: 9 })?)?;
///
/// assert!(matches!(pool.named::<Limits>("limits"), Err(NamedError::OtherType)));
/// let old = pool.named::<before::Limits>("limits")?;
/// pool.remove_name("limits")?;
/// let new = pool.create(Limits { low: old.low, high: old.high, step: 1 })?;
/// pool.set_name("limits", &new)?;
/// assert_eq!(pool.named::<Limits>("limits")?.step, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`AttachError::OtherVersion`]: crate::AttachError::OtherVersion
/// [`AttachError::OtherLayout`]: crate::AttachError::OtherLayout
/// [`Pool::named`]: crate::Pool::named
/// [`Pool::named_or_create`]: crate::Pool::named_or_create
/// [`Handle`]: crate::Handle
pub struct TypeInfo {
    pub(super) id: TypeId,
    pub(super) name: &'static str,
    pub(super) size: usize,
    pub(super) align: usize,
    pub(super) shape: Shape,
    pub(super) compiler_layout: bool,
    pub(super) image_bound: bool,
    /// A value stays where it is: it owns pool memory, or others know its address.
    pub(super) in_place: bool,
    /// A value is its bytes and nothing more: no padding, nothing that is changed through `&`.
    pub(super) plain: bool,
}

/// What a type is made of.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// The name identifies it.
    Scalar,
    /// `len` elements, one after the other.
    Sequence { element: Part, len: usize },
    /// A struct or a tuple.
    Record(&'static [Field]),
    /// An enum; `repr` is the text of its representation attribute.
    Variants {
        repr: &'static str,
        parameters: &'static [Field],
        variants: &'static [Variant],
    },
    /// A type whose inside belongs to a library; fields describe what it holds of its parameters.
    Library(&'static [Field]),
    /// One word that owns pool memory.
    Owned(OwnedKind),
}

impl TypeInfo {
    /// The description of `T`: the same as `T::TYPE`, as a function that can be pointed to.
    ///
    /// ```
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// let of: fn() -> &'static TypeInfo = TypeInfo::of::<[u16; 3]>;
    /// assert_eq!(of().fingerprint(), <[u16; 3]>::TYPE.fingerprint());
    /// ```
    pub const fn of<T: ShmSafe>() -> &'static TypeInfo {
        T::TYPE
    }

    /// Describes a type that is identified by its name and size.
    ///
    /// # Panics
    ///
    /// When the constant is evaluated, at compile time, as all constructors do: if the type has
    /// drop glue or owns pool memory.
    ///
    /// ```
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(transparent)]
    /// struct Colour(u32);
    ///
    /// // SAFETY: a number, of which the name says all; no `Drop`.
    /// unsafe impl ShmSafe for Colour {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("Colour");
    /// }
    ///
    /// assert_eq!((Colour::TYPE.name(), Colour::TYPE.size()), ("Colour", 4));
    /// ```
    pub const fn scalar<T: ShmSafe>(name: &'static str) -> Self {
        assert!(!T::OWNS, "a scalar owns nothing");
        Self::new::<T>(name, Shape::Scalar)
    }

    /// Describes `len` values of type `E` in a row.
    ///
    /// # Panics
    ///
    /// At compile time: if that is not the type's size, or if the [`ShmSafe::OWNS`] and
    /// [`ShmSafe::IMAGE_BOUND`] of the type do not agree with those of `E`.
    ///
    /// ```
    /// # use shmkit::{Link, ShmSafe, TypeInfo};
    /// #[repr(transparent)]
    /// struct Row<T>([T; 8]);
    ///
    /// // SAFETY: eight of them, which are described; no `Drop`.
    /// unsafe impl<T: ShmSafe> ShmSafe for Row<T> {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::sequence::<Self, T>("Row", 8);
    ///     const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    ///     const OWNS: bool = T::OWNS;
    /// }
    ///
    /// assert_eq!(Row::<Link<u8>>::TYPE.owned_fields()[0].count, 8);
    /// ```
    pub const fn sequence<T: ShmSafe, E: ShmSafe>(name: &'static str, len: usize) -> Self {
        let element = Part::of::<E>();
        assert!(
            matches!(element.size.checked_mul(len), Some(bytes) if bytes == size_of::<T>()),
            "a sequence is as long as its elements"
        );
        assert!(T::OWNS == element.owns, "OWNS says what the elements say");
        assert!(
            T::IMAGE_BOUND || !element.image_bound,
            "a sequence of image-bound elements is image-bound"
        );
        Self::new::<T>(name, Shape::Sequence { element, len })
    }

    /// Describes a struct or a tuple. Its fields are made by [`Field::at`], and every field must be
    /// listed.
    ///
    /// # Panics
    ///
    /// At compile time: if a field does not lie in the type, or if the [`ShmSafe::OWNS`] and
    /// [`ShmSafe::IMAGE_BOUND`] of the type do not agree with those of the fields.
    ///
    /// ```
    /// # use shmkit::layout::Field;
    /// # use shmkit::{Link, ShmSafe, TypeInfo};
    /// #[repr(C)]
    /// struct Node(u64, Link<Node>);
    ///
    /// // SAFETY: both fields are described; no `Drop`.
    /// unsafe impl ShmSafe for Node {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::record::<Self>("Node", const {
    ///         &[Field::at::<u64>("0", 0), Field::at::<Link<Node>>("1", 8)]
    ///     });
    ///     const OWNS: bool = true;
    /// }
    ///
    /// assert_eq!(Node::TYPE.owned_fields()[0].offset, 8);
    /// ```
    pub const fn record<T: ShmSafe>(name: &'static str, fields: &'static [Field]) -> Self {
        check_fields::<T>(fields);
        Self::new::<T>(name, Shape::Record(fields))
    }

    /// Describes an enum. `repr` is what its `repr` attribute says, because `repr(u8)` and
    /// `repr(C, u8)` place the same fields differently. `parameters` are mentions and constants.
    ///
    /// # Panics
    ///
    /// At compile time: if the type or a field of it owns pool memory, or if a field is bound to an
    /// image and the type does not state that.
    ///
    /// ```
    /// # use shmkit::layout::Variant;
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(u16)]
    /// enum Answer {
    ///     No,
    ///     Yes,
    /// }
    ///
    /// // SAFETY: no fields, and no `Drop`.
    /// unsafe impl ShmSafe for Answer {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::variants::<Self>("Answer", "u16", &[], const {
    ///         &[Variant::new("No", 0, &[]), Variant::new("Yes", 1, &[])]
    ///     });
    /// }
    /// # mod derived {
    /// #     #[derive(shmkit::ShmSafe)]
    /// #     #[repr(u16)]
    /// #     pub enum Answer { No, Yes }
    /// # }
    /// // The derive macro would say the same.
    /// let derived = TypeInfo::of::<derived::Answer>();
    /// assert_eq!(Answer::TYPE.fingerprint(), derived.fingerprint());
    /// ```
    pub const fn variants<T: ShmSafe>(
        name: &'static str,
        repr: &'static str,
        parameters: &'static [Field],
        variants: &'static [Variant],
    ) -> Self {
        assert!(!T::OWNS, "an enum owns nothing");
        check_fields::<T>(parameters);
        let mut i = 0;
        while i < variants.len() {
            check_fields::<T>(variants[i].fields);
            i += 1;
        }
        let shape = Shape::Variants {
            repr,
            parameters,
            variants,
        };
        Self::new::<T>(name, shape)
    }

    /// Describes a type of a library whose inside is the library's own affair, such as `Mutex<T>`.
    ///
    /// `fields` lists what belongs to the user: values stored inside ([`Field::at`]) and types that
    /// are only referred to ([`Field::mention`]). A field in an `UnsafeCell` is listed as what the
    /// cell holds. The name stands for everything else; a library that changes the inside changes
    /// the name.
    ///
    /// ```
    /// use core::mem::offset_of;
    /// use core::sync::atomic::AtomicU64;
    /// use shmkit::layout::Field;
    /// use shmkit::{ShmSafe, TypeInfo};
    ///
    /// #[repr(C)]
    /// struct Versioned<T> {
    ///     version: AtomicU64,
    ///     value: T,
    /// }
    ///
    /// // SAFETY: both fields are ShmSafe, the value is described, and there is no Drop.
    /// unsafe impl<T: ShmSafe> ShmSafe for Versioned<T> {
    ///     const OWNS: bool = T::OWNS;
    ///     const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    ///     const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
    ///         "Versioned",
    ///         const { &[Field::at::<T>("value", offset_of!(Self, value))] },
    ///     );
    /// }
    ///
    /// assert_eq!(TypeInfo::of::<Versioned<u32>>().size(), 16);
    /// ```
    pub const fn library<T: ShmSafe>(name: &'static str, fields: &'static [Field]) -> Self {
        check_fields::<T>(fields);
        Self::new::<T>(name, Shape::Library(fields))
    }

    /// Describes a word that is a counted reference to a `Target` in the same pool.
    ///
    /// ```
    /// # use shmkit::layout::OwnedKind;
    /// # use shmkit::{Link, ShmSafe, TypeInfo};
    /// #[repr(transparent)]
    /// struct Next(Link<u64>);
    ///
    /// // SAFETY: one word, which is such a reference; no `Drop`.
    /// unsafe impl ShmSafe for Next {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::link::<Self, u64>("Next");
    ///     const OWNS: bool = true;
    /// }
    ///
    /// assert!(matches!(Next::TYPE.owned_fields()[0].kind, OwnedKind::Link(_)));
    /// ```
    pub const fn link<T: ShmSafe, Target: ShmSafe>(name: &'static str) -> Self {
        Self::owned::<T>(name, OwnedKind::Link(TypeInfo::of::<Target>))
    }

    /// Describes a word that holds the address of a block that only it owns, or zero.
    ///
    /// ```
    /// # use std::sync::atomic::AtomicU64;
    /// # use shmkit::layout::OwnedKind;
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(transparent)]
    /// struct Text(AtomicU64);
    ///
    /// // SAFETY: one word, which is zero or the address of its own block; no `Drop`.
    /// unsafe impl ShmSafe for Text {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::block::<Self>("Text");
    ///     const OWNS: bool = true;
    /// }
    ///
    /// assert!(matches!(Text::TYPE.owned_fields()[0].kind, OwnedKind::Block));
    /// ```
    pub const fn block<T: ShmSafe>(name: &'static str) -> Self {
        Self::owned::<T>(name, OwnedKind::Block)
    }

    /// Describes the first word of a container, from which its engine finds all that it owns.
    pub(crate) const fn engine<T: ShmSafe>(name: &'static str, engine: Engine) -> Self {
        Self::owned::<T>(name, OwnedKind::Engine(engine))
    }

    const fn owned<T: ShmSafe>(name: &'static str, kind: OwnedKind) -> Self {
        assert!(T::OWNS, "an owning word says OWNS");
        assert!(
            size_of::<T>() == 8 && align_of::<T>() == 8,
            "an owning word has 8 bytes"
        );
        Self::new::<T>(name, Shape::Owned(kind))
    }

    /// Marks a type whose layout is the compiler's choice and cannot be described. The compiler's
    /// version is mixed into its fingerprint.
    ///
    /// ```
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// struct Known(u8, u32);
    /// # struct Unknown(u8, u32);
    ///
    /// // SAFETY: two numbers, without `Drop`; where they are is the compiler's choice.
    /// unsafe impl ShmSafe for Known {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("Pair").compiler_layout();
    /// }
    /// # // SAFETY: as above, and nobody shares a pool with a program of another compiler.
    /// # unsafe impl ShmSafe for Unknown {
    /// #     const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("Pair");
    /// # }
    /// // Without it, a program of another compiler would find the same type.
    /// assert_ne!(Known::TYPE.fingerprint(), Unknown::TYPE.fingerprint());
    /// ```
    #[must_use]
    pub const fn compiler_layout(mut self) -> Self {
        self.compiler_layout = true;
        self
    }

    /// Marks a type whose values stay where they are, although they own no pool memory: others know
    /// their address, such as threads that wait for a lock. Types that own, and types with a field
    /// that stays, stay anyway.
    ///
    /// Such values are not moved: containers do not take them, and guards do not lend them as
    /// `&mut`. (`Unpin` alone would not do: it is a safe trait.)
    ///
    /// ```compile_fail,E0080
    /// # use std::sync::atomic::AtomicU32;
    /// # use shmkit::{Mutex, Pool, ShmSafe, TypeInfo};
    /// struct Bell(AtomicU32);
    ///
    /// // SAFETY: an atomic number; no `Drop`.
    /// unsafe impl ShmSafe for Bell {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("Bell").in_place();
    /// }
    ///
    /// let pool = Pool::builder().create().unwrap();
    /// let bell = pool.create(Mutex::new(Bell(AtomicU32::new(0)))).unwrap();
    /// // Does not compile: it would put another one in its place.
    /// *bell.lock().unwrap() = Bell(AtomicU32::new(1));
    /// ```
    #[must_use]
    pub const fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Marks a type whose values are just their bytes, as for numbers.
    #[must_use]
    pub(super) const fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// For the description of a container of `T`s, which are moved in and out by value.
    #[must_use]
    pub(crate) const fn holding<T: ShmSafe>(self) -> Self {
        T::TYPE.assert_moves();
        self
    }

    /// Does not compile for a type whose values stay where they are.
    pub(crate) const fn assert_moves(&self) {
        assert!(
            !self.in_place,
            "a value that owns pool memory, or that others know the address of (a lock, a link, a \
             container), is used in place: it is not moved, whatever `Unpin` says"
        );
    }

    /// Whether a value of the type is its bytes and nothing more: no padding, and nothing that is
    /// changed through `&`.
    pub(crate) const fn is_plain(&self) -> bool {
        self.plain
    }

    const fn new<T: ShmSafe>(name: &'static str, shape: Shape) -> Self {
        assert!(
            !core::mem::needs_drop::<T>(),
            "a ShmSafe type has no Drop: other processes destroy it without its code"
        );
        assert!(
            !T::OWNS || size_of::<T>() as u64 <= u32::MAX as u64,
            "a type that owns pool memory has at most 4 GiB"
        );
        Self {
            id: TypeId::of::<T>(),
            name,
            size: size_of::<T>(),
            align: align_of::<T>(),
            shape,
            compiler_layout: false,
            image_bound: T::IMAGE_BOUND,
            in_place: T::OWNS || has_in_place(shape),
            plain: is_plain(shape, size_of::<T>()),
        }
    }

    /// The type's name, without its path and its parameters.
    ///
    /// ```
    /// # use shmkit::{Mutex, TypeInfo};
    /// assert_eq!(TypeInfo::of::<Mutex<u32>>().name(), "Mutex");
    /// ```
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The type's size in bytes.
    ///
    /// ```
    /// # use shmkit::TypeInfo;
    /// assert_eq!(TypeInfo::of::<[u32; 5]>().size(), 20);
    /// ```
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The type's alignment in bytes.
    ///
    /// ```
    /// # use shmkit::TypeInfo;
    /// assert_eq!(TypeInfo::of::<[u32; 5]>().align(), 4);
    /// ```
    pub const fn align(&self) -> usize {
        self.align
    }
}

impl fmt::Debug for TypeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the children: types may be recursive.
        f.debug_struct("TypeInfo")
            .field("name", &self.name)
            .field("size", &self.size)
            .field("align", &self.align)
            .finish_non_exhaustive()
    }
}
