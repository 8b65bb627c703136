//! What types are made of: fields and variants, and what a type must be because of them.
//!
//! The invariants are those of `layout::type_info`.

use super::ShmSafe;
use super::type_info::{Shape, TypeFn, TypeInfo};

/// A type that is stored inside another, with what a constructor must know of it at compile time
/// (when functions such as [`TypeFn`] cannot be called).
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) ty: TypeFn,
    pub(super) size: usize,
    pub(super) align: usize,
    pub(super) owns: bool,
    pub(super) image_bound: bool,
    pub(super) in_place: bool,
    pub(super) plain: bool,
}

impl Part {
    pub(super) const fn of<F: ShmSafe>() -> Self {
        Self {
            ty: TypeInfo::of::<F>,
            size: size_of::<F>(),
            align: align_of::<F>(),
            owns: F::OWNS,
            image_bound: F::IMAGE_BOUND,
            in_place: F::TYPE.in_place,
            plain: F::TYPE.plain,
        }
    }
}

/// A named piece of a type: a field, or a type or constant that it has as a parameter.
///
/// ```
/// use core::mem::offset_of;
/// use shmkit::layout::Field;
/// use shmkit::{ShmSafe, TypeInfo};
///
/// struct Point {
///     x: f64,
///     y: f64,
/// }
///
/// // SAFETY: two numbers, which are described; no `Drop`.
/// unsafe impl ShmSafe for Point {
///     const TYPE: &'static TypeInfo = &TypeInfo::record::<Self>(
///         "Point",
///         const {
///             &[
///                 Field::at::<f64>("x", offset_of!(Self, x)),
///                 Field::at::<f64>("y", offset_of!(Self, y)),
///             ]
///         },
///     );
/// }
/// # mod derived {
/// #     #[derive(shmkit::ShmSafe)]
/// #     pub struct Point { pub x: f64, pub y: f64 }
/// # }
/// // The derive macro would say the same.
/// let derived = TypeInfo::of::<derived::Point>();
/// assert_eq!(TypeInfo::of::<Point>().fingerprint(), derived.fingerprint());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub(super) name: &'static str,
    pub(super) place: Place,
}

/// Where the piece is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    At { offset: usize, part: Part },
    Within(Part),
    Mentioned(TypeFn),
    Constant(i128),
}

impl Field {
    /// A field of type `F` that is stored at an offset of `offset` bytes from the start.
    ///
    /// ```
    /// # use shmkit::layout::Field;
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(C)]
    /// struct Celsius(f32);
    ///
    /// // SAFETY: a number, which is described; no `Drop`.
    /// unsafe impl ShmSafe for Celsius {
    ///     const TYPE: &'static TypeInfo =
    ///         &TypeInfo::record::<Self>("Celsius", const { &[Field::at::<f32>("0", 0)] });
    /// }
    /// # mod derived {
    /// #     #[derive(shmkit::ShmSafe)]
    /// #     pub struct Celsius(f32);
    /// # }
    /// // The derive macro would say the same.
    /// let derived = TypeInfo::of::<derived::Celsius>();
    /// assert_eq!(TypeInfo::of::<Celsius>().fingerprint(), derived.fingerprint());
    /// ```
    pub const fn at<F: ShmSafe>(name: &'static str, offset: usize) -> Self {
        let part = Part::of::<F>();
        Self {
            name,
            place: Place::At { offset, part },
        }
    }

    /// A field of type `F` that is stored in some values of the type and not in others, such as
    /// the payload of an enum's variant. It owns nothing.
    ///
    /// ```
    /// # use shmkit::layout::{Field, Variant};
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(u8)]
    /// enum Shape {
    ///     Point,
    ///     Circle { radius: f64 },
    /// }
    ///
    /// // SAFETY: the one field is described; no `Drop`.
    /// unsafe impl ShmSafe for Shape {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::variants::<Self>("Shape", "u8", &[], const {
    ///         &[
    ///             Variant::new("Point", 0, &[]),
    ///             Variant::new("Circle", 1, const { &[Field::within::<f64>("radius")] }),
    ///         ]
    ///     });
    /// }
    /// # mod derived {
    /// #     #[derive(shmkit::ShmSafe)]
    /// #     #[repr(u8)]
    /// #     pub enum Shape { Point, Circle { radius: f64 } }
    /// # }
    /// // The derive macro would say the same.
    /// let derived = TypeInfo::of::<derived::Shape>();
    /// assert_eq!(TypeInfo::of::<Shape>().fingerprint(), derived.fingerprint());
    /// ```
    pub const fn within<F: ShmSafe>(name: &'static str) -> Self {
        Self {
            name,
            place: Place::Within(Part::of::<F>()),
        }
    }

    /// A type that tells one type from another without being stored in it, such as `T` in
    /// `PhantomData<T>`.
    ///
    /// ```
    /// # use core::marker::PhantomData;
    /// # use shmkit::layout::Field;
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// struct Metres<T>(f64, PhantomData<fn() -> T>);
    ///
    /// // SAFETY: a number, which is described, and no bytes; no `Drop`.
    /// unsafe impl<T: ShmSafe> ShmSafe for Metres<T> {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::record::<Self>("Metres", const {
    ///         &[Field::at::<f64>("0", core::mem::offset_of!(Self, 0)), Field::mention::<T>("T")]
    ///     });
    /// }
    ///
    /// let (one, other) = (TypeInfo::of::<Metres<u8>>(), TypeInfo::of::<Metres<u16>>());
    /// assert_ne!(one.fingerprint(), other.fingerprint());
    /// ```
    pub const fn mention<F: ShmSafe>(name: &'static str) -> Self {
        Self {
            name,
            place: Place::Mentioned(TypeInfo::of::<F>),
        }
    }

    /// A constant that tells one type from another, such as the value of a const parameter.
    ///
    /// ```
    /// # use shmkit::layout::Field;
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(C)]
    /// struct Modulo<const N: u32>(u32);
    ///
    /// // SAFETY: a number, which is described; no `Drop`.
    /// unsafe impl<const N: u32> ShmSafe for Modulo<N> {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::record::<Self>("Modulo", const {
    ///         &[Field::at::<u32>("0", 0), Field::constant("N", N as i128)]
    ///     });
    /// }
    ///
    /// let (seven, eight) = (TypeInfo::of::<Modulo<7>>(), TypeInfo::of::<Modulo<8>>());
    /// assert_ne!(seven.fingerprint(), eight.fingerprint());
    /// ```
    pub const fn constant(name: &'static str, value: i128) -> Self {
        Self {
            name,
            place: Place::Constant(value),
        }
    }

    /// Whether the field is stored and owns pool memory.
    ///
    /// ```
    /// # use shmkit::layout::Field;
    /// # use shmkit::{Array, Link};
    /// assert!(Field::at::<Array<u8>>("bytes", 0).owns());
    /// assert!(Field::at::<Link<u8>>("next", 0).owns());
    /// assert!(!Field::at::<[u8; 100]>("bytes", 0).owns());
    /// assert!(!Field::mention::<Array<u8>>("T").owns());
    /// ```
    pub const fn owns(&self) -> bool {
        matches!(self.place, Place::At { part, .. } | Place::Within(part) if part.owns)
    }

    /// Whether the field is stored and bound to one program image.
    ///
    /// ```
    /// # use shmkit::Foreign;
    /// # use shmkit::layout::Field;
    /// assert!(Field::at::<Foreign<u8>>("name", 0).image_bound());
    /// assert!(!Field::at::<[u8; 100]>("name", 0).image_bound());
    /// ```
    pub const fn image_bound(&self) -> bool {
        matches!(self.place, Place::At { part, .. } | Place::Within(part) if part.image_bound)
    }
}

/// One variant of an enum.
///
/// ```
/// use shmkit::layout::Variant;
/// use shmkit::{ShmSafe, TypeInfo};
///
/// #[repr(u8)]
/// enum Light {
///     Red = 1,
///     Green = 2,
/// }
///
/// // SAFETY: no fields, and no `Drop`.
/// unsafe impl ShmSafe for Light {
///     const TYPE: &'static TypeInfo = &TypeInfo::variants::<Self>("Light", "u8", &[], const {
///         &[Variant::new("Red", 1, &[]), Variant::new("Green", 2, &[])]
///     });
/// }
/// # mod derived {
/// #     #[derive(shmkit::ShmSafe)]
/// #     #[repr(u8)]
/// #     pub enum Light { Red = 1, Green = 2 }
/// # }
/// // The derive macro would say the same.
/// let derived = TypeInfo::of::<derived::Light>();
/// assert_eq!(TypeInfo::of::<Light>().fingerprint(), derived.fingerprint());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub(super) name: &'static str,
    pub(super) discriminant: i128,
    pub(super) fields: &'static [Field],
}

impl Variant {
    /// A variant with its discriminant and its fields, which are made by [`Field::within`].
    ///
    /// ```
    /// # use shmkit::layout::{Field, Variant};
    /// # use shmkit::{ShmSafe, TypeInfo};
    /// #[repr(u8)]
    /// enum Step {
    ///     By(u32) = 5,
    /// }
    ///
    /// // SAFETY: the one field is described; no `Drop`.
    /// unsafe impl ShmSafe for Step {
    ///     const TYPE: &'static TypeInfo = &TypeInfo::variants::<Self>("Step", "u8", &[], const {
    ///         &[Variant::new("By", 5, const { &[Field::within::<u32>("0")] })]
    ///     });
    /// }
    /// # mod derived {
    /// #     #[derive(shmkit::ShmSafe)]
    /// #     #[repr(u8)]
    /// #     pub enum Step { By(u32) = 5 }
    /// # }
    /// // The derive macro would say the same.
    /// let derived = TypeInfo::of::<derived::Step>();
    /// assert_eq!(TypeInfo::of::<Step>().fingerprint(), derived.fingerprint());
    /// ```
    pub const fn new(name: &'static str, discriminant: i128, fields: &'static [Field]) -> Self {
        Self {
            name,
            discriminant,
            fields,
        }
    }
}

/// Whether a type of that shape stores something that must stay where it is.
pub(super) const fn has_in_place(shape: Shape) -> bool {
    match shape {
        Shape::Scalar | Shape::Owned(_) => false,
        Shape::Sequence { element, .. } => element.in_place,
        Shape::Record(fields) | Shape::Library(fields) => any_in_place(fields),
        Shape::Variants { variants, .. } => {
            let mut i = 0;
            while i < variants.len() {
                if any_in_place(variants[i].fields) {
                    return true;
                }
                i += 1;
            }
            false
        }
    }
}

const fn any_in_place(fields: &[Field]) -> bool {
    let mut i = 0;
    while i < fields.len() {
        if matches!(fields[i].place, Place::At { part, .. } | Place::Within(part) if part.in_place)
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether a type of that shape and size consists of plain types, without gaps.
pub(super) const fn is_plain(shape: Shape, size: usize) -> bool {
    match shape {
        Shape::Scalar | Shape::Owned(_) | Shape::Library(_) => false,
        Shape::Sequence { element, .. } => element.plain,
        Shape::Record(fields) => {
            let (mut i, mut sum) = (0, 0);
            while i < fields.len() {
                match fields[i].place {
                    Place::At { part, .. } if part.plain => sum += part.size,
                    Place::At { .. } | Place::Within(_) => return false,
                    Place::Mentioned(_) | Place::Constant(_) => {}
                }
                i += 1;
            }
            sum == size
        }
        Shape::Variants { repr, variants, .. } => {
            let mut i = 0;
            while i < variants.len() {
                if !variants[i].fields.is_empty() {
                    return false;
                }
                i += 1;
            }
            // `repr(u8, align(8))` has seven bytes of padding.
            size == size_of_repr(repr)
        }
    }
}

/// The size in bytes of an enum without fields that has that `repr`, padding aside; 0 for a `repr`
/// that no such enum has.
const fn size_of_repr(repr: &str) -> usize {
    match repr.as_bytes() {
        b"u8" | b"i8" => 1,
        b"u16" | b"i16" => 2,
        b"u32" | b"i32" => 4,
        b"u64" | b"i64" | b"usize" | b"isize" => 8,
        _ => 0,
    }
}

/// Checks fields against their type `T`, by invariants 2 to 5.
pub(super) const fn check_fields<T: ShmSafe>(fields: &[Field]) {
    let (mut owns, mut image_bound) = (false, false);
    let mut i = 0;
    while i < fields.len() {
        let field = &fields[i];
        match field.place {
            Place::At { offset, part } => {
                assert!(
                    part.size <= size_of::<T>() && offset <= size_of::<T>() - part.size,
                    "a field lies inside its type"
                );
                assert!(
                    !part.owns || offset.is_multiple_of(part.align),
                    "a field that owns pool memory is aligned: no repr(packed) around it"
                );
            }
            Place::Within(part) => assert!(
                !part.owns,
                "a field that is stored in some values only owns nothing"
            ),
            Place::Mentioned(_) | Place::Constant(_) => {}
        }
        owns |= field.owns();
        image_bound |= field.image_bound();
        i += 1;
    }
    assert!(T::OWNS == owns, "OWNS says what the fields say");
    assert!(
        T::IMAGE_BOUND || !image_bound,
        "a type with an image-bound field is image-bound"
    );
}
