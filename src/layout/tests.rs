//! Descriptions, fingerprints and owned fields of derived and hand-written types.

use std::marker::PhantomData;
use std::mem::{MaybeUninit, offset_of};
use std::num::{NonZeroU32, Wrapping};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use super::{Field, OwnedField, OwnedKind};
use crate::{KillSafe, ShmSafe, TypeInfo};

/// Stands for `Link<T>`.
#[repr(transparent)]
struct TestLink<T>(AtomicU64, PhantomData<T>);

// SAFETY: the word is never used.
unsafe impl<T: ShmSafe> ShmSafe for TestLink<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::link::<Self, T>("TestLink");
    const OWNS: bool = true;
}

/// Stands for the storage of an array.
#[repr(transparent)]
struct TestBlock(AtomicU64);

// SAFETY: the word is never used.
unsafe impl ShmSafe for TestBlock {
    const TYPE: &'static TypeInfo = &TypeInfo::block::<Self>("TestBlock");
    const OWNS: bool = true;
}

/// Stands for a collection that points at a static of one program.
struct Bound;

// SAFETY: there are no bytes.
unsafe impl ShmSafe for Bound {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>("Bound", &[]);
    const IMAGE_BOUND: bool = true;
}

fn fingerprint<T: ShmSafe>() -> u128 {
    TypeInfo::of::<T>().fingerprint()
}

/// Offset, stride and count of each owned field, and the name of a link's target.
fn owned<T: ShmSafe>() -> Vec<(u32, u32, u32, &'static str)> {
    let describe = |f: OwnedField| {
        let target = match f.kind {
            OwnedKind::Link(target) => target().name(),
            OwnedKind::Block => "block",
            OwnedKind::Engine(_) => "engine",
        };
        (f.offset, f.stride, f.count, target)
    };
    let fields = TypeInfo::of::<T>().owned_fields();
    fields.into_iter().map(describe).collect()
}

/// Types that differ from `base::P` in one respect each.
macro_rules! variations {
    ($($module:ident { $($item:tt)* })*) => {$(
        mod $module {
            #[allow(unused_imports, reason = "not every variation needs them")]
            use super::*;
            #[derive(ShmSafe)]
            #[allow(dead_code, reason = "only the type is looked at")]
            $($item)*
        }
    )*};
}

variations! {
    base { #[repr(C)] pub struct P { a: u32, b: u32, c: [u8; 4] } }
    same { #[repr(C)] pub struct P { a: u32, b: u32, c: [u8; 4] } }
    renamed_type { #[repr(C)] pub struct Q { a: u32, b: u32, c: [u8; 4] } }
    renamed_field { #[repr(C)] pub struct P { a: u32, x: u32, c: [u8; 4] } }
    swapped { #[repr(C)] pub struct P { b: u32, a: u32, c: [u8; 4] } }
    other_type { #[repr(C)] pub struct P { a: u32, b: i32, c: [u8; 4] } }
    other_len { #[repr(C)] pub struct P { a: u32, b: u32, c: [u8; 3] } }
    other_align { #[repr(C, align(16))] pub struct P { a: u32, b: u32, c: [u8; 4] } }
    other_offset { #[repr(C)] pub struct P { a: u32, b: u32, c: [u8; 4], d: [u32; 0] } }
    shorter { #[repr(C)] pub struct P { a: u32, b: u32 } }
    unit { pub struct P; }
    tuple { pub struct P(u32, u32, [u8; 4]); }
}

#[test]
fn fingerprints_tell_structs_apart() {
    let all = [
        fingerprint::<base::P>(),
        fingerprint::<renamed_type::Q>(),
        fingerprint::<renamed_field::P>(),
        fingerprint::<swapped::P>(),
        fingerprint::<other_type::P>(),
        fingerprint::<other_len::P>(),
        fingerprint::<other_align::P>(),
        fingerprint::<other_offset::P>(),
        fingerprint::<shorter::P>(),
        fingerprint::<unit::P>(),
        fingerprint::<tuple::P>(),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(
            !all[i + 1..].contains(one),
            "type {i} is confused with a later one"
        );
    }
    assert_eq!(fingerprint::<base::P>(), fingerprint::<same::P>());
}

#[test]
fn a_changed_offset_changes_the_fingerprint() {
    #[repr(C)]
    struct At<const OFFSET: usize>([u8; 8]);
    // SAFETY: plain bytes.
    unsafe impl<const OFFSET: usize> ShmSafe for At<OFFSET> {
        const TYPE: &'static TypeInfo =
            &TypeInfo::record::<Self>("At", const { &[Field::at::<u32>("0", OFFSET)] });
    }
    assert_ne!(fingerprint::<At<0>>(), fingerprint::<At<4>>());
}

variations! {
    e_base { #[repr(u8)] pub enum E { A, B { x: u32 } } }
    e_same { #[repr(u8)] pub enum E { A = 0, B { x: u32 } = 1 } }
    e_repr { #[repr(i8)] pub enum E { A, B { x: u32 } } }
    e_repr_c { #[repr(C, u8)] pub enum E { A, B { x: u32 } } }
    e_renamed { #[repr(u8)] pub enum E { A, C { x: u32 } } }
    e_numbered { #[repr(u8)] pub enum E { A, B { x: u32 } = 5 } }
    e_field { #[repr(u8)] pub enum E { A, B { y: u32 } } }
    e_type { #[repr(u8)] pub enum E { A, B { x: f32 } } }
    e_more { #[repr(u8)] pub enum E { A, B { x: u32 }, C } }
}

trait Pick<const N: usize> {
    type T;
}
impl Pick<0> for () {
    type T = u8;
}
impl Pick<5> for () {
    type T = bool;
}
const SHMKIT_DISCRIMINANT_0: usize = 5;

variations! {
    e_constant { #[repr(usize)] pub enum E { A(<() as Pick<SHMKIT_DISCRIMINANT_0>>::T) } }
    e_bool { #[repr(usize)] pub enum E { A(bool) } }
}

/// The macro's output has no constants that would capture names in a field's type, and its integers
/// are not the ones to which the user gives those names.
#[test]
fn a_types_names_mean_what_they_mean_in_it() {
    assert_eq!(fingerprint::<e_constant::E>(), fingerprint::<e_bool::E>());

    mod renamed {
        #[allow(non_camel_case_types, dead_code, reason = "that is the point")]
        type u8 = i8;
        #[derive(crate::ShmSafe)]
        #[repr(u8)]
        #[allow(dead_code, reason = "only the type is looked at")]
        pub enum E {
            A = 200,
            B,
        }
    }
    mod plain {
        #[derive(crate::ShmSafe)]
        #[repr(u8)]
        #[allow(dead_code, reason = "only the type is looked at")]
        pub enum E {
            A = 200,
            B = 201,
        }
    }
    assert_eq!(fingerprint::<renamed::E>(), fingerprint::<plain::E>());
}

#[test]
fn an_enum_without_fields_is_plain_unless_it_is_padded() {
    #[derive(ShmSafe)]
    #[repr(u8)]
    #[allow(dead_code, reason = "only the type is looked at")]
    enum Tight {
        A,
    }
    #[derive(ShmSafe)]
    #[repr(isize)]
    #[allow(dead_code, reason = "only the type is looked at")]
    enum Wide {
        A,
    }
    #[derive(ShmSafe)]
    #[repr(u8, align(8))]
    #[allow(dead_code, reason = "only the type is looked at")]
    enum Padded {
        A,
    }
    assert!(Tight::TYPE.is_plain() && Wide::TYPE.is_plain());
    assert!(!Padded::TYPE.is_plain() && !<(Padded, u64)>::TYPE.is_plain());
}

#[test]
fn fingerprints_tell_enums_apart() {
    let all = [
        fingerprint::<e_base::E>(),
        fingerprint::<e_repr::E>(),
        fingerprint::<e_repr_c::E>(),
        fingerprint::<e_renamed::E>(),
        fingerprint::<e_numbered::E>(),
        fingerprint::<e_field::E>(),
        fingerprint::<e_type::E>(),
        fingerprint::<e_more::E>(),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(
            !all[i + 1..].contains(one),
            "enum {i} is confused with a later one"
        );
    }
    assert_eq!(fingerprint::<e_base::E>(), fingerprint::<e_same::E>());
}

#[derive(ShmSafe)]
struct Generic<T, const N: u64> {
    #[allow(dead_code, reason = "only the type is looked at")]
    of: PhantomData<T>,
}

#[derive(ShmSafe)]
#[repr(u8)]
enum Marked<const N: u64> {
    #[allow(dead_code, reason = "only the type is looked at")]
    Only,
}

#[derive(ShmSafe)]
struct Wide<const N: u128>;

#[derive(ShmSafe)]
struct Initial<const C: char, const B: bool>;

#[test]
fn parameters_that_are_not_stored_tell_types_apart() {
    assert_ne!(fingerprint::<Marked<1>>(), fingerprint::<Marked<2>>());
    assert_ne!(
        fingerprint::<Generic<u8, 1>>(),
        fingerprint::<Generic<i8, 1>>()
    );
    assert_ne!(
        fingerprint::<Generic<u8, 1>>(),
        fingerprint::<Generic<u8, 2>>()
    );
    assert_ne!(
        fingerprint::<Wide<1>>(),
        fingerprint::<Wide<{ 1 + (1 << 64) }>>()
    );
    assert_ne!(
        fingerprint::<Initial<'a', true>>(),
        fingerprint::<Initial<'b', true>>()
    );
    assert_ne!(
        fingerprint::<Initial<'a', true>>(),
        fingerprint::<Initial<'a', false>>()
    );
}

#[derive(ShmSafe)]
#[allow(dead_code, reason = "only the type is looked at")]
struct Node {
    value: u64,
    next: TestLink<Self>,
    children: [TestLink<Node>; 2],
    down: TestLink<Leaf>,
}

#[derive(ShmSafe)]
#[allow(dead_code, reason = "only the type is looked at")]
struct Leaf {
    up: TestLink<Node>,
    spoken_of: PhantomData<Leaf>,
}

#[test]
fn recursive_types_have_fingerprints() {
    assert_ne!(fingerprint::<Node>(), fingerprint::<Leaf>());
    assert_ne!(
        fingerprint::<TestLink<Node>>(),
        fingerprint::<TestLink<Leaf>>()
    );
    assert_eq!(fingerprint::<Node>(), fingerprint::<Node>());
}

/// Each level refers to the one below twice: a walk without memory would take 2^64 steps.
#[test]
fn shared_types_are_visited_once() {
    #[derive(ShmSafe)]
    #[allow(dead_code, reason = "only the type is looked at")]
    struct Twice<T>(PhantomData<T>, PhantomData<T>);
    type Four<T> = Twice<Twice<Twice<Twice<T>>>>;
    type Sixteen<T> = Four<Four<Four<Four<T>>>>;
    type SixtyFour<T> = Sixteen<Sixteen<Sixteen<Sixteen<T>>>>;
    assert_ne!(
        fingerprint::<SixtyFour<u8>>(),
        fingerprint::<SixtyFour<i8>>()
    );
}

#[test]
fn a_type_met_again_is_told_by_its_number() {
    #[derive(ShmSafe)]
    struct X;
    #[derive(ShmSafe)]
    struct Y;
    assert_ne!(fingerprint::<(X, Y, X)>(), fingerprint::<(X, Y, Y)>());
}

/// Types that differ only in a flag.
macro_rules! flagged {
    ($($module:ident $bound:literal $($with:ident)?;)*) => {$(
        mod $module {
            use super::*;
            pub struct Flagged;
            // SAFETY: there are no bytes.
            unsafe impl ShmSafe for Flagged {
                const TYPE: &'static TypeInfo =
                    &TypeInfo::library::<Self>("Flagged", &[])$(.$with())?;
                const IMAGE_BOUND: bool = $bound;
            }
        }
    )*};
}

flagged! {
    plain false;
    image true;
    compiler false compiler_layout;
}

#[test]
fn image_and_compiler_show_in_the_fingerprint() {
    assert_ne!(
        fingerprint::<plain::Flagged>(),
        fingerprint::<image::Flagged>()
    );
    assert_ne!(
        fingerprint::<plain::Flagged>(),
        fingerprint::<compiler::Flagged>()
    );
    // Through a link as well, although the link itself is not bound to an image.
    assert_ne!(
        fingerprint::<TestLink<plain::Flagged>>(),
        fingerprint::<TestLink<image::Flagged>>()
    );
}

#[test]
fn image_bound_types_spread() {
    #[derive(ShmSafe)]
    #[allow(dead_code, reason = "only the type is looked at")]
    struct Holder(u32, [Bound; 2]);
    #[derive(ShmSafe)]
    #[repr(u8)]
    #[allow(dead_code, reason = "only the type is looked at")]
    enum Perhaps {
        Not,
        Is(Option<Bound>),
    }
    const { assert!(Holder::IMAGE_BOUND && Perhaps::IMAGE_BOUND && <(u8, Bound)>::IMAGE_BOUND) };
    const { assert!(!Node::IMAGE_BOUND && !TestLink::<Holder>::IMAGE_BOUND) };
}

#[test]
fn owned_fields_of_flat_types() {
    assert_eq!(owned::<u64>(), []);
    assert_eq!(owned::<TestBlock>(), [(0, 8, 1, "block")]);
    let (next, children) = (
        offset_of!(Node, next) as u32,
        offset_of!(Node, children) as u32,
    );
    let down = offset_of!(Node, down) as u32;
    assert_eq!(
        owned::<Node>(),
        [
            (next, 8, 1, "Node"),
            (children, 8, 2, "Node"),
            (down, 8, 1, "Leaf")
        ]
    );
}

#[test]
fn phantoms_own_nothing() {
    const { assert!(!<PhantomData<Node>>::OWNS && Node::OWNS) };
    assert_eq!(owned::<PhantomData<Node>>(), []);
    assert_eq!(owned::<Generic<Node, 1>>(), []);
}

#[derive(ShmSafe)]
#[repr(C)]
#[allow(dead_code, reason = "only the type is looked at")]
struct Entry {
    key: u64,
    block: TestBlock,
    state: Option<u8>,
}

#[derive(ShmSafe)]
#[repr(C)]
#[allow(dead_code, reason = "only the type is looked at")]
struct Row {
    label: u64,
    cells: [TestBlock; 3],
}

#[test]
fn owned_fields_of_arrays_are_strided() {
    assert_eq!(owned::<[Entry; 5]>(), [(8, 24, 5, "block")]);
    assert_eq!(owned::<[Entry; 0]>(), []);
    assert_eq!(owned::<(u8, [Entry; 1])>().len(), 1);
    // Arrays of arrays are one long array.
    assert_eq!(owned::<[[Entry; 5]; 7]>(), [(8, 24, 35, "block")]);
}

#[test]
fn owned_fields_of_arrays_of_structs_with_arrays() {
    // Few rows: an entry for each row. Many rows: an entry for each cell.
    assert_eq!(
        owned::<[Row; 2]>(),
        [(8, 8, 3, "block"), (40, 8, 3, "block")]
    );
    assert_eq!(
        owned::<[Row; 100]>(),
        [
            (8, 32, 100, "block"),
            (16, 32, 100, "block"),
            (24, 32, 100, "block")
        ]
    );
    #[derive(ShmSafe)]
    #[repr(C)]
    #[allow(dead_code, reason = "only the type is looked at")]
    struct Table {
        head: TestBlock,
        rows: [Row; 2],
        tail: TestBlock,
    }
    assert_eq!(
        owned::<Table>(),
        [
            (0, 8, 1, "block"),
            (16, 8, 3, "block"),
            (48, 8, 3, "block"),
            (72, 8, 1, "block")
        ]
    );
}

/// Compares every word that `owned_fields` lists with an enumeration by hand.
#[test]
fn owned_fields_list_every_word_once() {
    fn words<T: ShmSafe>() -> Vec<u32> {
        let runs = owned::<T>().into_iter();
        let mut all: Vec<u32> = runs
            .flat_map(|(at, stride, count, _)| (0..count).map(move |i| at + i * stride))
            .collect();
        all.sort_unstable();
        all
    }
    let by_hand: Vec<u32> = (0..4 * 2)
        .flat_map(|row| (0..3).map(move |cell| row * 32 + 8 + cell * 8))
        .collect();
    assert_eq!(words::<[[Row; 2]; 4]>(), by_hand);
    assert_eq!(words::<[[Row; 4]; 2]>(), by_hand);
    assert_eq!(words::<[Row; 8]>(), by_hand);
}

#[test]
fn standard_types_qualify() {
    fn shm_safe<T: ShmSafe>() {}
    fn kill_safe<T: KillSafe>() {}
    shm_safe::<(bool, char, NonZeroU32, Duration, Option<f64>, AtomicBool)>();
    shm_safe::<Wrapping<MaybeUninit<[u128; 3]>>>();
    kill_safe::<(
        u8,
        i64,
        f32,
        [AtomicU32; 2],
        Wrapping<u16>,
        PhantomData<bool>,
        (),
    )>();
    kill_safe::<MaybeUninit<[i128; 3]>>();

    #[derive(ShmSafe, KillSafe)]
    #[shmkit(crate = "crate")]
    #[allow(dead_code, reason = "only the type is looked at")]
    struct Inside<T: Copy, const N: usize>
    where
        T: PartialEq,
    {
        r#type: [T; N],
        own: PhantomData<Self>,
    }
    kill_safe::<Inside<u8, 3>>();
    assert_eq!(TypeInfo::of::<Inside<u8, 3>>().size(), 3);
}
