//! Claims in one process.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shmkit::process::{SpawnError, scope};
use shmkit::{Array, ClaimError, ElementError, ResizeError};

use crate::common::TestPool;
use crate::pool;

pub fn overlaps() {
    let array = Array::filled_in(pool(), 10, 0_u32).unwrap();
    let me = std::process::id();
    for (range, meets) in [
        (0..3, false),
        (0..4, true),
        (3..4, true),
        (4..5, true),
        (2..9, true),
        (5..6, true),
        (6..8, false),
        (8..10, false),
    ] {
        let shared = array.claim(3..6).unwrap();
        assert!(
            array.claim(range.clone()).is_ok(),
            "shared, shared {range:?}"
        );
        let refused = array.claim_mut(range.clone()).err();
        assert_eq!(refused.is_some(), meets, "shared, exclusive {range:?}");
        drop(shared);
        let _exclusive = array.claim_mut(3..6).unwrap();
        for refused in [
            array.claim(range.clone()).err(),
            array.claim_mut(range.clone()).err(),
        ] {
            assert_eq!(refused.is_some(), meets, "exclusive {range:?}");
            if let Some(ClaimError::Claimed { by }) = refused {
                assert_eq!(by.pid(), me);
            } else {
                assert!(refused.is_none(), "{refused:?}");
            }
        }
    }
    let mut whole = array.claim_mut(..).unwrap();
    assert!(!whole.was_orphaned());
    whole[9] = 1;
}

pub fn empty_ranges() {
    let array = Array::filled_in(pool(), 10, 0_u32).unwrap();
    let _all = array.claim_mut(..).unwrap();
    for start in 0..=10 {
        assert!(array.claim(start..start).unwrap().is_empty());
        assert!(array.claim_mut(start..start).unwrap().is_empty());
    }
    assert!(array.claim(11..11).is_err());
}

pub fn elements_against_claims() {
    let array = Array::filled_in(pool(), 10, 1_u32).unwrap();
    let shared = array.claim(2..5).unwrap();
    assert_eq!((array.get(2), array.get(4)), (Ok(1), Ok(1)));
    assert!(matches!(array.set(4, 2), Err(ElementError::Claimed { .. })));
    assert!(matches!(
        array.update(2, |v| v),
        Err(ElementError::Claimed { .. })
    ));
    assert_eq!((array.set(1, 2), array.set(5, 2)), (Ok(()), Ok(())));
    drop(shared);
    let exclusive = array.claim_mut(2..5).unwrap();
    assert!(matches!(array.get(2), Err(ElementError::Claimed { .. })));
    assert!(matches!(array.set(4, 3), Err(ElementError::Claimed { .. })));
    assert_eq!((array.get(1), array.get(5)), (Ok(2), Ok(2)));
    drop(exclusive);
    assert_eq!((array.set(3, 9), array.get(3)), (Ok(()), Ok(9)));
}

pub fn as_many_as_there_are() {
    let array = Array::filled_in(pool(), 100, 0_u32).unwrap();
    let mut claims: Vec<_> = (0..62).map(|i| array.claim_mut(i..=i).unwrap()).collect();
    assert!(matches!(array.claim(80..), Err(ClaimError::TooManyClaims)));
    assert_eq!(array.set(99, 1), Ok(()));
    drop(claims.remove(30));
    claims.push(array.claim_mut(80..).unwrap());
    assert_eq!(array.set(30, 1), Ok(()));
    assert!(array.set(99, 1).is_err());
    drop(claims);
    assert!(array.claim_mut(..).is_ok());
}

pub fn a_panic_with_a_claim_is_told() {
    let pool = TestPool::new();
    let numbers = Array::filled_in(*pool, 8, 1_u64).unwrap();
    let panics = || resume_unwind(Box::new(()));
    let unwinds = |with: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(with)).is_err());
    let told = |range| numbers.claim_mut(range).unwrap().was_orphaned();
    // What is over before the panic is whole.
    unwinds(&|| {
        drop(numbers.claim_mut(..).unwrap());
        panics()
    });
    assert!(!told(0..8));
    unwinds(&|| {
        let _read = numbers.claim(..4).unwrap();
        numbers.claim_mut(6..).unwrap().fill(2);
        let mut half = numbers.claim_mut(4..6).unwrap();
        half[0] = 3;
        panics()
    });
    // It is in nobody's way, and the next writer is told, once.
    assert_eq!(numbers.get(4), Ok(3));
    numbers.set(5, 5).unwrap();
    assert!(!told(0..4) && told(3..5) && !told(3..5) && told(5..8) && !told(0..8));

    /// Writes when it is dropped.
    struct Late<'a>(&'a Array<u64>);
    impl Drop for Late<'_> {
        fn drop(&mut self) {
            self.0.claim_mut(..).unwrap().fill(2);
        }
    }
    // A claim that is taken while the thread unwinds is as whole as any.
    unwinds(&|| {
        let _late = Late(&numbers);
        panics()
    });
    assert!(!told(0..8));
    assert!(numbers.claim(..).unwrap().iter().all(|&number| number == 2));
}

pub fn claims_refuse_growth() {
    let array = Array::filled_in(pool(), 4, 0_u32).unwrap();
    let claim = array.claim(3..).unwrap();
    assert!(matches!(array.grow(5, 0), Err(ResizeError::Claimed { .. })));
    assert_eq!(claim.len(), 1);
    drop(claim);
    array.grow(5, 0).unwrap();
    let _nothing = array.claim(..0).unwrap();
    array.grow(6, 0).unwrap();
}

pub fn claims_refuse_spawn() {
    let array = Array::filled_in(pool(), 4, 0_u32).unwrap();
    scope(|s| {
        let claim = array.claim(..2).unwrap();
        let mut other = array.claim_mut(2..).unwrap();
        other[0] = 1;
        let refused = s.spawn(|| ()).err();
        assert!(
            matches!(refused, Some(SpawnError::GuardsHeld { count: 2 })),
            "{refused:?}"
        );
        drop((claim, other));
        s.spawn(|| ()).unwrap().join().unwrap();
    });
}
