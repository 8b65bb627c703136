//! Objects by name.

use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::scope;
use shmkit::{NamedError, Pool, Shared, ShmSafe};

use super::common::{TestPool, assert_sound};

pub fn by_name() {
    let pool = TestPool::new();
    assert!(matches!(pool.named::<u64>("a"), Err(NamedError::NotFound)));
    assert_eq!(pool.remove_name("a"), Err(NamedError::NotFound));
    let a = pool.create(1_u64).unwrap();
    pool.set_name("a", &a).unwrap();
    assert_eq!(pool.set_name("a", &a), Err(NamedError::NameTaken));
    pool.set_name("also a", &a).unwrap();
    let b = pool.named_or_create("b", || 2_u64).unwrap();
    assert_eq!(
        *pool
            .named_or_create("b", || -> u64 { unreachable!() })
            .unwrap(),
        2
    );
    let mut names = pool.names();
    names.sort();
    assert_eq!(names, ["a", "also a", "b"]);
    pool.remove_name("a").unwrap();
    assert!(matches!(pool.named::<u64>("a"), Err(NamedError::NotFound)));
    assert_eq!(*pool.named::<u64>("also a").unwrap(), 1);
    // The object of another pool has no name here.
    let other = TestPool::new();
    let theirs = other.create(1_u64).unwrap();
    let refused = pool.set_name("theirs", &theirs);
    assert_eq!(refused, Err(NamedError::OtherPool));
    drop((a, b, theirs));
    pool.remove_name("also a").unwrap();
    pool.remove_name("b").unwrap();
    assert!(pool.names().is_empty());
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn names_have_limits() {
    let pool = TestPool::new();
    let object = pool.create(1_u8).unwrap();
    let (longest, longer) = ("n".repeat(232), "n".repeat(233));
    for name in ["", &longer, &"ü".repeat(117)] {
        assert_eq!(pool.set_name(name, &object), Err(NamedError::InvalidName));
        let made = pool.named_or_create(name, || 1_u8);
        assert_eq!(made.unwrap_err(), NamedError::InvalidName);
    }
    for name in [longest.as_str(), "/", "a b\n", "\0", "ü", "名"] {
        pool.set_name(name, &object).unwrap();
        assert!(pool.named::<u8>(name).is_ok());
        assert!(pool.names().iter().any(|n| n == name));
        pool.remove_name(name).unwrap();
    }
    drop(object);
    assert_eq!(pool.stats().allocated, 0, "what was refused a name is gone");
    assert_sound(*pool);
}

pub fn a_name_keeps_its_object() {
    let pool = TestPool::new();
    let handle = pool.named_or_create("kept", || 9_u32).unwrap().handle();
    pool.recover();
    assert_eq!(*handle.open().unwrap(), 9);
    assert_eq!(*pool.named::<u32>("kept").unwrap(), 9);
    // A process that ends does not take it along.
    scope(|s| {
        let pool = *pool;
        let child = s.spawn(move || *pool.named::<u32>("kept").unwrap());
        assert_eq!(child.unwrap().join().unwrap(), 9);
    });
    let held = pool.named::<u32>("kept").unwrap();
    pool.remove_name("kept").unwrap();
    assert_eq!((*held, *handle.open().unwrap()), (9, 9));
    drop(held);
    assert!(handle.open().is_err());
    assert_eq!(pool.stats().allocated, 0);
}

pub fn of_another_type() {
    let pool = TestPool::new();
    let made = pool.named_or_create("x", || 1_u64).unwrap();
    fn refused<T: shmkit::ShmSafe + std::fmt::Debug>(pool: Pool, make: fn() -> T) {
        assert_eq!(pool.named::<T>("x").unwrap_err(), NamedError::OtherType);
        let made = pool.named_or_create("x", make);
        assert_eq!(made.unwrap_err(), NamedError::OtherType);
    }
    refused(*pool, || 1_i64);
    refused(*pool, || 1_u32);
    refused(*pool, || [1_u64]);
    refused(*pool, || AtomicU64::new(1));
    refused(*pool, || (1_u32, 1_u32));
    drop(made);
    pool.remove_name("x").unwrap();
    assert_eq!(*pool.named_or_create("x", || 1_i64).unwrap(), 1);
    assert_sound(*pool);
}

/// Of the fingerprint that an earlier version gave types, the constants were found in seven billion attempts.
pub fn of_a_type_made_to_look_alike() {
    #[derive(ShmSafe)]
    struct X<const A: u128>(u64);
    #[derive(ShmSafe)]
    struct Y<const A: u128>(Kind, [u8; 7]);
    #[derive(ShmSafe)]
    #[repr(u8)]
    enum Kind {
        A,
        B,
        C,
    }
    type Number = X<0xd3ae_94da_11e8_180f_2155_f94a_c60c_ab48>;
    type Choice = Y<0x95f3_fc97_8816_7366_9fd2_a91b_59a8_fc6f>;
    assert!([Kind::A, Kind::B, Kind::C].len() == 3);

    let pool = TestPool::new();
    let number: Shared<Number> = pool.named_or_create("x", || X(7)).unwrap();
    assert_eq!(number.0, 7);
    let alike = pool.named::<Choice>("x").err();
    assert_eq!(alike, Some(NamedError::OtherType));
    drop(number);
    assert_sound(*pool);
}

pub fn the_table_of_names_fills_up() {
    let pool = TestPool::new();
    let object = pool.create(1_u8).unwrap();
    for i in 0..4096 {
        pool.set_name(&format!("name {i}"), &object).unwrap();
    }
    assert_eq!(
        pool.set_name("one more", &object),
        Err(NamedError::TableFull)
    );
    let made = pool.named_or_create("one more", || 1_u8);
    assert_eq!(made.unwrap_err(), NamedError::TableFull);
    assert_eq!(pool.names().len(), 4096);
    pool.remove_name("name 77").unwrap();
    pool.set_name("one more", &object).unwrap();
    assert!(pool.named::<u8>("name 4095").is_ok());
    drop(object);
    for name in pool.names() {
        pool.remove_name(&name).unwrap();
    }
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn a_race_has_one_winner() {
    const ROUNDS: usize = 300;
    const WORKERS: u64 = 8;
    let pool = TestPool::new();
    let gate = pool.create([const { AtomicU64::new(0) }; ROUNDS]).unwrap();
    let fixed = pool.stats().allocated;
    let (pool_copy, gate) = (*pool, &gate);
    scope(|s| {
        for me in 1..=WORKERS {
            let child = s.spawn(move || {
                for (round, gate) in gate.iter().enumerate() {
                    gate.fetch_add(1, Ordering::AcqRel);
                    while gate.load(Ordering::Acquire) < WORKERS {
                        std::thread::yield_now();
                    }
                    let name = format!("counter {round}");
                    let counter = pool_copy.named_or_create(&name, || AtomicU64::new(0));
                    counter.unwrap().fetch_add(me, Ordering::Relaxed);
                }
            });
            child.unwrap();
        }
    });
    assert_eq!(pool.names().len(), ROUNDS);
    for name in pool.names() {
        let counter = pool.named::<AtomicU64>(&name).unwrap();
        let sum = counter.load(Ordering::Relaxed);
        assert_eq!(sum, WORKERS * (WORKERS + 1) / 2, "{name} is one object");
        pool.remove_name(&name).unwrap();
    }
    assert_eq!(pool.stats().allocated, fixed);
    assert_sound(*pool);
}

pub fn made_and_removed_at_once() {
    let pool = TestPool::new();
    scope(|s| {
        let pool = *pool;
        for me in 0..4_u64 {
            let child = s.spawn(move || {
                for i in 0..3000 {
                    let name = format!("n{}", (i + me) % 3);
                    let object: Shared<u64> = pool.named_or_create(&name, || 7).unwrap();
                    assert_eq!(*object, 7);
                    match pool.remove_name(&name) {
                        Ok(()) | Err(NamedError::NotFound) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                    assert_eq!(*object, 7);
                }
            });
            child.unwrap();
        }
    });
    for name in pool.names() {
        pool.remove_name(&name).unwrap();
    }
    pool.recover();
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}
