//! The output of the derives compiles for every type that the compiler accepts, and without a warning:
//! also where the user's names are those of the prelude, or where there is no prelude.

#![deny(warnings)]
#![allow(missing_docs, missing_debug_implementations)]
#![deny(unused, unused_qualifications, single_use_lifetimes, unused_lifetimes)]
#![deny(clippy::pedantic)]

use std::marker::PhantomData;

use shmkit::{Gc, Key, KillSafe, Pool, ShmSafe, Trace};

/// Nothing of the prelude can be named here, and its names mean other things.
#[allow(dead_code, non_camel_case_types)]
mod without_prelude {
    #![no_implicit_prelude]

    pub struct Option;
    pub struct Some;
    pub struct None;
    pub struct Result;
    pub struct Ok;
    pub struct Self_;
    pub trait Key {}
    pub trait Copy {}

    #[derive(
        ::shmkit::ShmSafe,
        ::shmkit::KillSafe,
        ::shmkit::Key,
        ::shmkit::Trace,
        ::core::clone::Clone,
        ::core::marker::Copy,
    )]
    #[repr(C)]
    pub struct Pair {
        pub bytes: u32,
        pub tracer: u32,
    }

    #[derive(::shmkit::ShmSafe, ::shmkit::Trace)]
    #[repr(u8)]
    pub enum Either {
        Some(Pair),
        None,
        Ok { this: u32, field_0: u8 },
    }

    #[derive(::shmkit::ShmSafe, ::shmkit::Key, ::shmkit::Trace)]
    #[repr(i8)]
    pub enum Only {
        Some = -3,
        None,
        Err = b'a'.cast_signed(),
    }
}

/// The names of primitive types mean other things here.
#[allow(dead_code, non_camel_case_types, unused_qualifications)]
mod other_primitives {
    use shmkit::{Key, KillSafe, ShmSafe, Trace};

    pub struct bool;
    pub struct char;
    pub struct i128;
    pub struct u8;
    pub struct u32;
    pub struct usize;

    #[derive(ShmSafe, KillSafe, Key, Trace)]
    pub struct Pair(pub ::core::primitive::u32, pub ::core::primitive::u32);

    #[derive(ShmSafe, Key, Trace)]
    #[repr(u8)]
    pub enum Only {
        One,
        Two = 7,
    }

    #[derive(ShmSafe, Trace)]
    pub struct Many<const N: ::core::primitive::usize, const C: ::core::primitive::char>(
        pub [::core::primitive::u8; N],
    );
}

/// Names that are keywords, and names that the macros use.
#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
pub struct Raw {
    pub r#type: u32,
    pub r#match: u16,
    pub this: u8,
    pub field_0: u8,
}

#[derive(Clone, Copy, ShmSafe, Key, Trace)]
#[repr(u16)]
#[allow(non_camel_case_types)]
pub enum r#Enum {
    r#type,
    r#fn = 7,
    this,
}

/// Parameters with defaults, bounds, and values.
#[derive(ShmSafe, KillSafe, Trace)]
pub struct Generic<T: Copy = u32, const N: usize = 3, const B: bool = true, const C: char = 'c'>
where
    T: Ord,
    [T; N]: Sized + Clone,
{
    pub first: [T; N],
    pub of: PhantomData<T>,
}

#[derive(ShmSafe, Trace)]
#[repr(C, u8)]
pub enum Linked<T, const N: i8> {
    Nothing,
    One(T),
    Two { left: Gc<u32>, right: [Gc<u8>; 2] },
}

#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
pub struct Unit;

#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
pub struct Braces {}

#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
#[repr(transparent)]
pub struct Wrapped(pub u64);

#[derive(Clone, Copy, ShmSafe, KillSafe, Key)]
#[repr(C, packed(2))]
pub struct Packed {
    pub low: u16,
    pub high: u32,
}

#[derive(Clone, Copy, ShmSafe, KillSafe, Key)]
#[repr(C, align(16))]
pub struct Aligned(pub u128);

/// Deprecated types can be stored all the same.
#[derive(Clone, Copy, ShmSafe, Key, Trace)]
#[repr(u8)]
pub enum Deprecated {
    New,
    #[deprecated]
    Old,
}

#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
pub struct Changed {
    pub new: u32,
    #[deprecated]
    pub old: u32,
}

#[deprecated]
#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
pub struct Gone(pub u32);

#[allow(deprecated)]
#[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
pub struct Holds {
    pub gone: Gone,
}

macro_rules! types {
    ($name:ident, $ty:ty, $repr:ident, $value:expr, $parameter:ty) => {
        #[derive(Clone, Copy, ShmSafe, KillSafe, Key, Trace)]
        pub struct $name<const P: $parameter> {
            pub inner: $ty,
            pub more: [$ty; 2],
        }

        pub mod $repr {
            #[derive(Clone, Copy, shmkit::ShmSafe, shmkit::Key)]
            #[repr($repr)]
            pub enum Made {
                First = $value,
                Second,
            }
        }
    };
}

types!(Made, u16, i16, 1 << 3, char);

#[test]
fn they_are_stored() {
    let pool = Pool::builder().max_size(8 << 20).create().unwrap();
    let raw = Raw {
        r#type: 1,
        r#match: 2,
        this: 3,
        field_0: 4,
    };
    let raw = pool.create(raw).unwrap();
    assert_eq!(
        (raw.r#type, raw.r#match, raw.this, raw.field_0),
        (1, 2, 3, 4)
    );
    let generic = Generic::<u32> {
        first: [1, 2, 3],
        of: PhantomData,
    };
    assert_eq!(pool.create(generic).unwrap().first, [1, 2, 3]);
    let made = Made::<'x'> {
        inner: 5,
        more: [6, 7],
    };
    assert_eq!(pool.create(made).unwrap().more, [6, 7]);
    let map = pool.create(shmkit::HashMap::<r#Enum, u8>::new()).unwrap();
    map.insert(&r#Enum::this, 8).unwrap();
    assert_eq!(map.get_copied(&r#Enum::this), Some(8));
    assert_eq!(map.get_copied(&r#Enum::r#fn), None);
}
