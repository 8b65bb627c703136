//! One process, one array.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::collection::vec;
use proptest::prelude::*;
use shmkit::{
    AllocError, Array, ElementError, KillSafe, ObjectError, Pool, ResizeError, Shared, ShmSafe,
};

use crate::{Sealed, allocated, assert_sound, on_random, pool};

pub fn constructors() {
    let pool = pool();
    let filled = Array::filled_in(pool, 5, 7_u16).unwrap();
    assert_eq!((filled.len(), filled.is_empty()), (5, false));
    assert_eq!(*filled.claim(..).unwrap(), [7; 5]);
    let counted = Array::from_fn_in(pool, 4, |i| i as f64).unwrap();
    assert_eq!(*counted.claim(..).unwrap(), [0.0, 1.0, 2.0, 3.0]);
    let copied = Array::from_slice_in(pool, &[3_i8, -1]).unwrap();
    assert_eq!(*copied.claim(..).unwrap(), [3, -1]);
    let none = Array::<u64>::filled_in(pool, 0, 1).unwrap();
    assert_eq!((none.len(), none.claim(..).unwrap().len()), (0, 0));
    let units = Array::filled_in(pool, 1000, ()).unwrap();
    assert_eq!(
        (units.len(), units.get(999), units.set(3, ())),
        (1000, Ok(()), Ok(()))
    );
}

#[derive(Clone, Debug)]
enum Step {
    Get(usize),
    Set(usize, u64),
    Update(usize, u64),
    Grow(usize, u64),
    Extend(Vec<u64>),
    Read(usize, usize),
    Write(usize, usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..60_usize;
    prop_oneof![
        index.clone().prop_map(Step::Get),
        (index.clone(), any::<u64>()).prop_map(|(i, v)| Step::Set(i, v)),
        (index.clone(), any::<u64>()).prop_map(|(i, v)| Step::Update(i, v)),
        (index.clone(), any::<u64>()).prop_map(|(n, v)| Step::Grow(n, v)),
        vec(any::<u64>(), 0..4).prop_map(Step::Extend),
        (index.clone(), index.clone()).prop_map(|(a, b)| Step::Read(a, b)),
        (index.clone(), index, any::<u64>()).prop_map(|(a, b, v)| Step::Write(a, b, v)),
    ]
}

/// Runs the steps on an array of elements that `of` makes, and on a `Vec`.
fn compare<T: KillSafe + Unpin + Copy + PartialEq + std::fmt::Debug>(
    pool: Pool,
    steps: &[Step],
    of: fn(u64) -> T,
) {
    let array = Array::from_slice_in(pool, &[of(1), of(2)]).unwrap();
    let mut model = vec![of(1), of(2)];
    for step in steps {
        let inside = |i: usize| i < model.len();
        match *step {
            Step::Get(i) => assert_eq!(array.get(i).ok(), model.get(i).copied()),
            Step::Set(i, v) => {
                assert_eq!(array.set(i, of(v)).is_ok(), inside(i));
                if inside(i) {
                    model[i] = of(v);
                }
            }
            Step::Update(i, v) => {
                assert_eq!(array.update(i, |_| of(v)).ok(), model.get(i).copied());
                if inside(i) {
                    model[i] = of(v);
                }
            }
            Step::Grow(n, v) => {
                assert_eq!(array.grow(n, of(v)).is_ok(), n >= model.len());
                model.resize(n.max(model.len()), of(v));
            }
            Step::Extend(ref more) => {
                let more: Vec<T> = more.iter().map(|&v| of(v)).collect();
                assert_eq!(array.extend_from_slice(&more), Ok(model.len()));
                model.extend(more);
            }
            Step::Read(a, b) => {
                let claim = array.claim(a..b).ok();
                assert_eq!(claim.as_deref(), model.get(a..b));
            }
            Step::Write(a, b, v) => {
                let claim = array.claim_mut(a..b).ok();
                let part = model.get_mut(a..b);
                assert_eq!(claim.is_some(), part.is_some());
                if let (Some(mut claim), Some(part)) = (claim, part) {
                    assert_eq!((&*claim, claim.was_orphaned()), (&*part, false));
                    claim.fill(of(v));
                    part.fill(of(v));
                }
            }
        }
        assert_eq!(array.len(), model.len());
    }
    assert_eq!(*array.claim(..).unwrap(), *model);
}

pub fn behaves_like_a_vec() {
    let pool = pool();
    let before = allocated(pool);
    on_random(200, &vec(step(), 0..40), |steps| {
        compare(pool, &steps, |v| v as u8);
        compare(pool, &steps, |v| v as f64);
        compare(pool, &steps, Sealed::new);
        compare(pool, &steps, |v| (v as u8, v as u32));
    });
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

pub fn bounds() {
    let array = Array::filled_in(pool(), 3, 1_u32).unwrap();
    let out = |index| ElementError::OutOfBounds { index, len: 3 };
    assert_eq!(array.get(3), Err(out(3)));
    assert_eq!(array.set(usize::MAX, 1), Err(out(usize::MAX)));
    assert_eq!(array.update(4, |_| unreachable!()), Err(out(4)));
    #[expect(clippy::reversed_empty_ranges, reason = "it must be refused")]
    let reversed = array.claim(2..1);
    assert!(reversed.is_err() && array.claim(..=3).is_err() && array.claim_mut(4..).is_err());
    assert!(array.claim(0..=usize::MAX).is_err() && array.claim(..=2).is_ok());
    // Of no size there are as many as can be counted, and none behind them.
    let many = Array::filled_in(pool(), usize::MAX, ()).unwrap();
    assert_eq!(many.claim(..).unwrap().len(), usize::MAX);
    assert!(many.claim(usize::MAX - 1..=usize::MAX).is_err());
}

fn sizes<T: KillSafe + Unpin + Copy + PartialEq + std::fmt::Debug>(pool: Pool, a: T, b: T) {
    let array = Array::filled_in(pool, 9, a).unwrap();
    array.set(4, b).unwrap();
    assert_eq!(
        (array.get(3), array.get(4), array.get(5)),
        (Ok(a), Ok(b), Ok(a))
    );
    assert_eq!(array.update(4, |was| if was == b { a } else { b }), Ok(b));
    assert_eq!(array.get(4), Ok(a));
    assert_eq!(*array.claim(..).unwrap(), [a; 9]);
    let start = array.claim(..).unwrap().as_ptr().addr();
    assert_eq!(start % align_of::<T>(), 0);
}

#[derive(Clone, Copy, Debug, PartialEq, ShmSafe, KillSafe)]
#[repr(C, align(64))]
struct Aligned(u64);

#[derive(Clone, Copy, Debug, PartialEq, ShmSafe, KillSafe)]
#[repr(align(8))]
struct Padded(u8, u16);

pub fn elements_of_every_size() {
    let pool = pool();
    sizes(pool, 1_u8, 2);
    sizes(pool, 1_u16, 2);
    sizes(pool, 1_i32, -2);
    sizes(pool, 1.0_f64, 2.0);
    sizes(pool, 1_u128, u128::MAX);
    sizes(pool, [1_u8; 3], [2; 3]);
    sizes(pool, Sealed::new(1), Sealed::new(2));
    sizes(pool, Aligned(1), Aligned(2));
    sizes(pool, Padded(1, 2), Padded(3, 4));
    sizes(pool, [7_u8; 4096], [8; 4096]);
    let large = Array::filled_in(pool, 3, [1_u8; 5000]).unwrap();
    assert_eq!(large.get(1), Err(ElementError::TooLarge));
    assert_eq!(large.set(1, [0; 5000]), Err(ElementError::TooLarge));
    large.claim_mut(1..2).unwrap()[0] = [2; 5000];
    large.grow(4, [3; 5000]).unwrap();
    assert_eq!(
        *large.claim(..).unwrap(),
        [[1; 5000], [2; 5000], [1; 5000], [3; 5000]]
    );
}

pub fn updates() {
    let array = Array::filled_in(pool(), 2, 10_u64).unwrap();
    // Somebody changes the element in between: `f` runs again, with what is there then.
    let mut seen = Vec::new();
    let old = array.update(1, |value| {
        seen.push(value);
        if seen.len() == 1 {
            array.set(1, 20).unwrap();
        }
        value + 1
    });
    assert_eq!((old, array.get(1), seen), (Ok(20), Ok(21), vec![10, 20]));
    let wide = Array::filled_in(array.pool(), 2, Sealed::new(1)).unwrap();
    let mut runs = 0;
    wide.update(0, |value| {
        runs += 1;
        if runs == 1 {
            wide.set(0, Sealed::new(5)).unwrap();
        }
        Sealed::new(value.a + 1)
    })
    .unwrap();
    assert_eq!((wide.get(0), runs), (Ok(Sealed::new(6)), 2));
    let panicked = catch_unwind(AssertUnwindSafe(|| array.update(0, |_| panic!("meant"))));
    assert!(panicked.is_err());
    assert_eq!((array.get(0), array.set(0, 1)), (Ok(10), Ok(())));
}

pub fn grows() {
    let pool = pool();
    let array = Array::from_slice_in(pool, &[1_u32, 2]).unwrap();
    array.grow(2, 9).unwrap();
    array.grow(5, 9).unwrap();
    assert_eq!(array.grow(4, 0), Err(ResizeError::Shorter { len: 5 }));
    assert_eq!(array.extend_from_slice(&[4, 4]), Ok(5));
    let claim = array.claim(..).unwrap();
    assert_eq!(*claim, [1, 2, 9, 9, 9, 4, 4]);
    // Nothing is in nobody's way.
    assert_eq!(array.extend_from_slice(&[]), Ok(7));
    drop(claim);
    array.grow(100_000, 3).unwrap();
    assert_eq!(array.get(99_999), Ok(3));
    assert_sound(pool);
}

pub fn outside_of_a_pool() {
    let array = Array::<u32>::new();
    assert_eq!(
        (array.len(), array.get(0)),
        (0, Err(ElementError::NotInPool))
    );
    assert_eq!(array.grow(3, 0), Err(ResizeError::NotInPool));
    assert_eq!(array.extend_from_slice(&[]), Err(ResizeError::NotInPool));
    assert!(array.claim(..).is_err());
}

pub fn a_panic_makes_nothing() {
    let pool = pool();
    drop(Array::filled_in(pool, 10, 0_u64).unwrap());
    let before = allocated(pool);
    let made = catch_unwind(|| {
        Array::from_fn_in(pool, 1000, |i| {
            assert!(i < 500, "meant");
            i
        })
        .is_ok()
    });
    assert!(made.is_err());
    assert_eq!(allocated(pool), before);
    // The closure may use the pool.
    let twice = Array::from_fn_in(pool, 3, |i| {
        let inner = Array::filled_in(pool, 3, i).unwrap();
        inner.get(0).unwrap()
    });
    assert_eq!(*twice.unwrap().claim(..).unwrap(), [0, 1, 2]);
}

pub fn a_full_pool_loses_nothing() {
    let pool = pool();
    let array = Array::filled_in(pool, 100, 5_u64).unwrap();
    let before = allocated(pool);
    let too_many = (16 << 20) / 8;
    let refused = Array::filled_in(pool, too_many, 1_u64).unwrap_err();
    assert_eq!(refused.cause, ObjectError::Alloc(AllocError::PoolFull));
    let refused = Array::filled_in(pool, usize::MAX, 1_u64).unwrap_err();
    assert_eq!(refused.cause, ObjectError::Alloc(AllocError::TooLarge));
    assert!(Array::from_fn_in(pool, usize::MAX, |_| 1_u64).is_err());
    assert_eq!(array.grow(too_many, 1), Err(AllocError::PoolFull.into()));
    assert_eq!(array.grow(usize::MAX, 1), Err(AllocError::TooLarge.into()));
    assert_eq!(allocated(pool), before);
    assert_eq!(*array.claim(..).unwrap(), [5; 100]);
    array.grow(200, 6).unwrap();
    assert_sound(pool);
}

pub fn destruction_returns_every_byte() {
    let pool = pool();
    drop(Array::filled_in(pool, 1, 0_u8).unwrap());
    drop(pool.create(Tables::new()).unwrap());
    let before = allocated(pool);
    for len in [0, 1, 100, 10_000, 1_000_000] {
        let array = Array::filled_in(pool, len, 1_u8).unwrap();
        array.grow(len + 10, 2).unwrap();
        let clone = Shared::clone(&array);
        drop(array);
        assert_eq!(clone.len(), len + 10);
        drop(clone);
        assert_eq!(allocated(pool), before, "{len}");
    }
    let tables = pool.create(Tables::new()).unwrap();
    tables.numbers.grow(1000, 1.0).unwrap();
    tables.pairs[1].grow(1000, Sealed::new(1)).unwrap();
    drop(tables);
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

#[derive(ShmSafe)]
struct Tables {
    numbers: Array<f64>,
    pairs: [Array<Sealed>; 2],
}

impl Tables {
    fn new() -> Self {
        Tables {
            numbers: Array::new(),
            pairs: [const { Array::new() }; 2],
        }
    }
}

pub fn fields_of_a_struct() {
    let pool = pool();
    let tables = pool.create(Tables::new()).unwrap();
    assert!(tables.numbers.is_empty());
    tables.numbers.grow(3, 1.5).unwrap();
    tables.pairs[1]
        .extend_from_slice(&[Sealed::new(4)])
        .unwrap();
    let again = tables.handle().open().unwrap();
    assert_eq!(again.numbers.get(2), Ok(1.5));
    assert_eq!(again.pairs[1].get(0), Ok(Sealed::new(4)));
    assert_eq!(again.pairs[0].len(), 0);
}
