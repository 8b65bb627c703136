//! Hash maps: compared with std's, with keys of all kinds, in one process.

use std::cell::Cell;
use std::collections::HashMap as Model;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use shmkit::process::scope;
use shmkit::{
    ChangeError, CompareError, FoldHash, HandleError, HashMap, Iter, Key, KeyHasher, NamedError,
    Pool, ShmSafe, SipHash13,
};

use crate::common::TestPool;
use crate::{allocated, assert_sound, on_random};

#[derive(Clone, Debug)]
enum Step {
    Insert(u16, u64),
    Remove(u16),
    Update(u16, Option<u64>),
    GetOrInsert(u16, u64),
    CompareExchange(u16, Option<u64>, Option<u64>),
    Get(u16),
    Retain(u16),
    Clear,
    Fill(u16, u16),
    Drain(u16, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..300_u16;
    prop_oneof![
        8 => (key(), 0..9_u64).prop_map(|(k, v)| Step::Insert(k, v)),
        6 => key().prop_map(Step::Remove),
        3 => (key(), any::<Option<u64>>()).prop_map(|(k, v)| Step::Update(k, v)),
        3 => (key(), any::<u64>()).prop_map(|(k, v)| Step::GetOrInsert(k, v)),
        3 => (key(), prop::option::of(0..9_u64), prop::option::of(0..9_u64))
            .prop_map(|(k, a, b)| Step::CompareExchange(k, a, b)),
        4 => key().prop_map(Step::Get),
        1 => (2..9_u16).prop_map(Step::Retain),
        1 => Just(Step::Clear),
        2 => (key(), 1..200_u16).prop_map(|(k, n)| Step::Fill(k, n)),
        2 => (key(), 1..300_u16).prop_map(|(k, n)| Step::Drain(k, n)),
    ]
}

/// Does a step on both; what they answer is the same.
fn run(map: &HashMap<u16, u64>, model: &mut Model<u16, u64>, step: &Step) {
    match *step {
        Step::Insert(k, v) => {
            let old = map.insert(&k, v).unwrap().map(|old| *old);
            assert_eq!(old, model.insert(k, v));
        }
        Step::Remove(k) => assert_eq!(map.remove(&k).map(|old| *old), model.remove(&k)),
        Step::Update(k, v) => {
            let old = map.update(&k, |_| v).unwrap().map(|old| *old);
            let expected = match v {
                Some(v) => model.insert(k, v),
                None => model.remove(&k),
            };
            assert_eq!(old, expected);
        }
        Step::GetOrInsert(k, v) => {
            let now = *map.get_or_insert_with(&k, || v).unwrap();
            assert_eq!(now, *model.entry(k).or_insert(v));
        }
        Step::CompareExchange(k, a, b) => {
            let outcome = map.compare_exchange(&k, a.as_ref(), b);
            let now = model.get(&k).copied();
            match outcome {
                Ok(old) => assert!(now == a && old.map(|old| *old) == now),
                Err(CompareError::Other(other)) => {
                    assert!(now != a && other.map(|other| *other) == now);
                    return;
                }
                Err(error) => panic!("{error}"),
            }
            match b {
                Some(b) => drop(model.insert(k, b)),
                None => drop(model.remove(&k)),
            }
        }
        Step::Get(k) => {
            let expected = model.get(&k).copied();
            assert_eq!(map.get_copied(&k), expected);
            assert_eq!(map.get(&k).map(|v| *v), expected);
            assert_eq!(map.contains_key(&k), expected.is_some());
        }
        Step::Retain(n) => {
            map.retain(|k, _| k % n == 0).unwrap();
            model.retain(|k, _| k % n == 0);
        }
        Step::Clear => {
            map.clear().unwrap();
            model.clear();
        }
        Step::Fill(k, n) => (k..k + n).for_each(|k| {
            let old = map.insert(&k, u64::from(k)).unwrap().map(|old| *old);
            assert_eq!(old, model.insert(k, u64::from(k)));
        }),
        Step::Drain(k, n) => (k..k + n).for_each(|k| {
            assert_eq!(map.remove(&k).map(|old| *old), model.remove(&k));
        }),
    }
}

pub fn content<K: Key + Clone + Eq + std::hash::Hash, V: shmkit::ShmSafe + Unpin + Copy>(
    map: &HashMap<K, V>,
) -> Model<K, V> {
    let mut content = Model::new();
    let mut entries = map.iter();
    while let Some((key, value)) = entries.next() {
        assert!(content.insert(key.clone(), *value).is_none(), "seen twice");
    }
    content
}

pub fn behaves_like_stds() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let steps = prop::collection::vec(step(), 1..120);
    on_random(60, &steps, |steps| {
        let map = pool.create(HashMap::new()).unwrap();
        let mut model = Model::new();
        for step in &steps {
            run(&map, &mut model, step);
            assert_eq!(map.is_empty(), model.is_empty());
        }
        assert_eq!(map.len(), model.len());
        assert_eq!(content(&map), model);
        assert_sound(*pool);
        drop(map);
        assert_eq!(allocated(*pool), before);
    });
}

pub fn grows_and_shrinks() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    for key in 0..50_000 {
        assert!(map.insert(&key, key * 3).unwrap().is_none());
    }
    assert_eq!(map.len(), 50_000);
    for key in 0..50_000 {
        assert_eq!(map.get_copied(&key), Some(key * 3));
    }
    assert!(!map.contains_key(&50_000));
    assert_sound(*pool);
    let full = allocated(*pool);
    for key in 10..50_000 {
        assert_eq!(*map.remove(&key).unwrap(), key * 3);
    }
    // Who changes something moves the rest.
    for _ in 0..2000 {
        map.insert(&1, 3).unwrap();
    }
    assert_eq!(content(&map), (0..10).map(|key| (key, key * 3)).collect());
    let left = allocated(*pool) - before;
    assert!(left * 10 < full - before, "{left} bytes are left of {full}");
    drop(map);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn keys_of_all_kinds() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let texts = pool.create(HashMap::<str, u8>::new()).unwrap();
    let bytes = pool.create(HashMap::<[u8], u128>::new()).unwrap();
    let arrays = pool.create(HashMap::<[u32; 3], [u8; 100]>::new()).unwrap();
    let long = "x".repeat(100_000);
    for (i, text) in ["", "a", "b", "ab", "a\0", &long].iter().enumerate() {
        assert!(texts.insert(text, i as u8).unwrap().is_none());
        assert!(bytes.insert(text.as_bytes(), i as u128).unwrap().is_none());
    }
    assert_eq!(
        (texts.get_copied("a\0"), texts.get_copied("b\0")),
        (Some(4), None)
    );
    assert_eq!(bytes.get_copied(long.as_bytes()), Some(5));
    assert_eq!(*texts.remove(&long).unwrap(), 5);
    let mut names: Vec<String> = Vec::new();
    let mut entries = texts.iter();
    while let Some((name, _)) = entries.next() {
        names.push(name.into());
    }
    drop(entries);
    names.sort();
    assert_eq!(names, ["", "a", "a\0", "ab", "b"]);
    for i in 0..100 {
        arrays.insert(&[i, 0, i], [i as u8; 100]).unwrap();
    }
    assert_eq!(arrays.get_copied(&[7, 0, 7]), Some([7; 100]));
    assert_eq!(arrays.get_copied(&[7, 7, 0]), None);
    drop((texts, bytes, arrays));
    assert_eq!(allocated(*pool), before);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ShmSafe, Key)]
#[repr(u8)]
enum Colour {
    Red,
    Green = 7,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ShmSafe, Key)]
struct Square {
    row: u16,
    column: u8,
    colour: Colour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ShmSafe, Key)]
struct Wide<T>(T, [u64; 3]);

fn holds_keys<K: Key + Clone + Eq + std::hash::Hash + std::fmt::Debug>(
    pool: Pool,
    keys: impl Iterator<Item = K>,
) {
    let map = pool.create(HashMap::<K, u32>::new()).unwrap();
    let mut model = Model::new();
    for (n, key) in (0..).zip(keys) {
        assert_eq!(
            map.insert(&key, n).unwrap().map(|old| *old),
            model.insert(key, n)
        );
    }
    assert_eq!(content(&map), model);
    assert_sound(pool);
}

pub fn damaged_keys_are_passed_over() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<str, u8>::new()).unwrap();
    map.insert("whole", 1).unwrap();
    map.insert("harmed", 2).unwrap();
    let mut entries = map.iter();
    while let Some((key, _)) = entries.next() {
        if key == "harmed" {
            let key = key.as_ptr().expose_provenance();
            // SAFETY: what a stray write of another process does; no reference to it is used
            // any more.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(key).write(0xff) };
        }
    }
    let mut entries = map.iter();
    assert_eq!(entries.next(), Some(("whole", &1)));
    assert_eq!(entries.next(), None);
    drop(entries);
    let mut seen = 0;
    map.retain(|key, _| {
        assert_eq!(key, "whole");
        seen += 1;
        true
    })
    .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(map.get_copied("harmed"), None);
}

/// A colour that is none, in a derived key: as bytes it is one, as a value it would be undefined behaviour.
pub fn damaged_derived_keys_are_passed_over() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<Square, [u64; 2]>::new()).unwrap();
    let square = |row| Square {
        row,
        column: 0,
        colour: Colour::Red,
    };
    (0..2).for_each(|row| drop(map.insert(&square(row), [0; 2]).unwrap()));
    let mut entries = map.iter();
    while let Some((key, _)) = entries.next() {
        if key.row == 1 {
            let colour = (&raw const key.colour).expose_provenance();
            // SAFETY: as in `damaged_keys_are_passed_over`.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(colour).write(0xff) };
        }
    }
    let mut entries = map.iter();
    assert_eq!(entries.next(), Some((&square(0), &[0; 2])));
    assert_eq!(entries.next(), None);
    drop(entries);
    map.retain(|key, _| key.row == 0).unwrap();
    assert_eq!(map.get_copied(&square(0)), Some([0; 2]));
    assert!(Square::is_valid(square(1).bytes()) && !Colour::is_valid(&[2]));
}

pub fn derived_keys() {
    let pool = TestPool::new();
    holds_keys(*pool, [Colour::Red, Colour::Green, Colour::Red].into_iter());
    let squares = (0..400).map(|n| Square {
        row: n * 100,
        column: n as u8,
        colour: if n % 2 == 0 {
            Colour::Red
        } else {
            Colour::Green
        },
    });
    holds_keys(*pool, squares);
    holds_keys(*pool, (0..400).map(|n| Wide(n, [n, !n, 0])));
}

fn hashed_by<S: KeyHasher>(pool: Pool) {
    let map = pool.create(HashMap::<u64, u64, S>::with_hasher()).unwrap();
    for key in 0..20_000 {
        map.insert(&(key << 20), key).unwrap();
    }
    for key in 0..20_000 {
        assert_eq!(map.get_copied(&(key << 20)), Some(key));
        assert_eq!(map.get_copied(&(key << 20 | 1)), None);
    }
    // Keys that differ little are spread: the table is not much larger than it has to be.
    assert!(allocated(pool) < 4 << 20, "{}", allocated(pool));
    let texts = pool.create(HashMap::<str, u64, S>::with_hasher()).unwrap();
    for key in 0..1000 {
        texts.insert(&"x".repeat(key as usize % 40), key).unwrap();
        texts.insert(&format!("key {key}"), key).unwrap();
    }
    assert_eq!(texts.get_copied("key 77"), Some(77));
    assert_eq!(texts.len(), 1040);
    assert_sound(pool);
}

pub fn hashers_of_all_kinds() {
    let pool = TestPool::new();
    hashed_by::<SipHash13>(*pool);
    hashed_by::<FoldHash>(*pool);
}

fn counted<V: ShmSafe + Unpin + std::fmt::Debug>(of: fn(u64) -> V, is: fn(&V) -> u64) {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<str, V>::new()).unwrap();
    let made = AtomicU64::new(0);
    let keys = ["a", "b", "a longer one"];
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for round in 0..1000 {
                    let entry = map.entry(keys[round % 3]);
                    let count = |n: &V| of(is(n) + 1);
                    let first = || {
                        made.fetch_add(1, Ordering::Relaxed);
                        of(1)
                    };
                    let now = entry.and_modify(count).or_insert_with(first).unwrap();
                    assert!(is(&now) >= 1);
                }
            });
        }
    });
    let sum: u64 = keys.iter().map(|key| is(&map.get(key).unwrap())).sum();
    assert_eq!(sum, 3000);
    // Each thread at most once a key, however often it was too late.
    assert!((3..=9).contains(&made.into_inner()));

    assert!(
        map.entry("new")
            .and_modify(|_| of(0))
            .or_nothing()
            .unwrap()
            .is_none()
    );
    assert_eq!(is(&map.entry("new").or_insert(of(5)).unwrap()), 5);
    assert_eq!(is(&map.entry("new").or_insert_with(|| of(6)).unwrap()), 5);
    let changed = map
        .entry("new")
        .and_modify(|n| of(is(n) * 2))
        .or_nothing()
        .unwrap();
    assert_eq!(changed.as_deref().map(is), Some(10));
    assert_eq!(map.entry("new").get().as_deref().map(is), Some(10));
    assert_eq!(
        map.entry("new").insert(of(3)).unwrap().as_deref().map(is),
        Some(10)
    );
    assert_eq!(
        map.entry("new").remove().unwrap().as_deref().map(is),
        Some(3)
    );
    assert!(map.entry("new").key() == "new" && !map.contains_key("new"));
    let outside = HashMap::<str, V>::new();
    let refused = outside.entry("new").and_modify(|_| of(0)).or_insert(of(4));
    assert_eq!(is(&refused.unwrap_err().value), 4);
}

pub fn entries_are_one_operation() {
    counted::<u64>(|n| n, |n| *n);
    counted::<[u64; 4]>(|n| [n; 4], |n| n[3]);
}

/// What was made comes too late, and is put once there is no other value any more.
pub fn an_entry_makes_one_value() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u32, u64>::new()).unwrap();
    let made = Cell::new(0);
    let make = || {
        made.set(made.get() + 1);
        map.insert(&1, 5).unwrap();
        7
    };
    let count = |n: &u64| {
        map.remove(&1);
        n + 1
    };
    let now = map.entry(&1).and_modify(count).or_insert_with(make);
    assert_eq!((*now.unwrap(), made.get()), (7, 1));
}

/// Adds the keys of what is left of an iteration, and sorts: nothing has been seen twice.
fn rest_of<V: ShmSafe + Unpin>(mut entries: Iter<'_, u64, V>, seen: &mut Vec<u64>) {
    while let Some((key, _)) = entries.next() {
        seen.push(*key);
    }
    seen.sort_unstable();
    assert!(seen.windows(2).all(|two| two[0] < two[1]));
}

/// All that was there is seen once, nothing twice; in a time that is in proportion.
fn grown_under_an_iteration<V: ShmSafe + Unpin>(of: fn(u64) -> V) {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u64, V>::new()).unwrap();
    for key in 0..300 {
        map.insert(&key, of(key)).unwrap();
    }
    let mut entries = map.iter();
    let mut seen: Vec<u64> = (0..10).map(|_| *entries.next().unwrap().0).collect();
    for key in 300..200_000 {
        map.insert(&key, of(key)).unwrap();
    }
    rest_of(entries, &mut seen);
    assert!(seen.len() > 300 && seen[..300].iter().copied().eq(0..300));

    // The same while it shrinks.
    let mut entries = map.iter();
    let mut seen: Vec<u64> = (0..10).map(|_| *entries.next().unwrap().0).collect();
    for key in 300..200_000 {
        map.remove(&key).unwrap();
    }
    for key in 0..1000 {
        map.insert(&(key + 1_000_000), of(0)).unwrap();
    }
    rest_of(entries, &mut seen);
    assert!((0..300).all(|key| seen.binary_search(&key).is_ok()));
    assert_sound(*pool);
}

pub fn maps_that_grow_under_an_iteration() {
    grown_under_an_iteration::<u64>(|n| n);
    grown_under_an_iteration::<[u64; 2]>(|n| [n; 2]);
}

pub fn maps_outside_of_a_pool() {
    let map = HashMap::<u8, u64>::new();
    let refused = map.insert(&1, 5).unwrap_err();
    assert_eq!((refused.value, refused.cause), (5, ChangeError::NotInPool));
    assert_eq!(map.get_or_insert_with(&1, || 6).unwrap_err().value, 6);
    assert!(matches!(map.try_remove(&1), Err(ChangeError::NotInPool)));
    let changed = map.entry(&1).and_modify(|n| n + 1).or_nothing();
    assert!(matches!(changed, Err(ChangeError::NotInPool)));
    assert_eq!(map.clear(), Err(ChangeError::NotInPool));
    assert!(map.get(&1).is_none() && map.is_empty());
    assert_eq!(map.len(), 0);
    assert!(map.iter().next().is_none());
}

pub fn handles_and_names_of_maps() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u32, u64>::new()).unwrap();
    pool.set_name("map", &map).unwrap();
    let wrong = pool.named::<HashMap<u64, u64>>("map");
    assert!(matches!(wrong, Err(NamedError::OtherType)));
    let wrong = pool.named::<HashMap<u32, u32>>("map");
    assert!(matches!(wrong, Err(NamedError::OtherType)));
    let handle = map.handle();
    pool.remove_name("map").unwrap();
    drop(map);
    assert!(matches!(handle.open(), Err(HandleError::Gone)));
}

pub fn closures_may_panic_and_re_enter() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u32, u64>::new()).unwrap();
    map.insert(&1, 1).unwrap();
    let panics = || map.update(&1, |_| panic!("no")).map(drop);
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    let panics = || map.get_or_insert_with(&2, || panic!("no")).map(drop);
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    let panics = || map.retain(|_, _| panic!("no"));
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert_eq!((map.get_copied(&1), map.len()), (Some(1), 1));
    let mut runs = 0;
    let old = map.update(&1, |now| {
        runs += 1;
        if runs == 1 {
            map.insert(&1, 10).unwrap();
            map.remove(&7);
        }
        now.map(|n| n + 1)
    });
    assert_eq!(*old.unwrap().unwrap(), 10);
    assert_eq!((runs, map.get_copied(&1)), (2, Some(11)));
    let seen = *map
        .get_or_insert_with(&3, || {
            map.insert(&3, 30).unwrap();
            31
        })
        .unwrap();
    assert_eq!(seen, 30);
    scope(|s| s.spawn(|| ()).unwrap().join().unwrap());
}
