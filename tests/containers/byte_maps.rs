//! Hash maps of byte strings: compared with std's, of all lengths, damaged, in full pools, and with users that are killed.

use std::collections::HashMap as Model;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use shmkit::{AllocError, ChangeError, CompareError, HashMap, Key, MultiMap, NamedError, ShmSafe};

use crate::common::{Random, TestPool};
use crate::map_users::killed_at_work;
use crate::{allocated, assert_sound, on_random};

type Text = Vec<u8>;
type Bytes = HashMap<[u8], [u8]>;

#[derive(Clone, Debug)]
enum Step {
    Insert(Text, Text),
    Remove(Text),
    Append(Text, Text),
    GetOrInsert(Text, Text),
    CompareExchange(Text, Option<Text>, Option<Text>),
    Retain(u8),
    Clear,
}

/// A few keys, and values of lengths about those at which an allocation is of another kind.
fn step() -> impl Strategy<Value = Step> {
    let key = || prop::collection::vec(0..3_u8, 0..4);
    let lengths = || prop_oneof![8 => 0..40_usize, 1 => 990..1100_usize, 1 => 60_000..70_000_usize];
    let value = move || (lengths(), any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
    let few = || prop::option::of((0..3_u8).prop_map(|byte| vec![byte; byte.into()]));
    prop_oneof![
        8 => (key(), value()).prop_map(|(k, v)| Step::Insert(k, v)),
        4 => (key(), few()).prop_map(|(k, v)| Step::Insert(k, v.unwrap_or_default())),
        4 => key().prop_map(Step::Remove),
        4 => (key(), value()).prop_map(|(k, v)| Step::Append(k, v)),
        3 => (key(), value()).prop_map(|(k, v)| Step::GetOrInsert(k, v)),
        4 => (key(), few(), few()).prop_map(|(k, a, b)| Step::CompareExchange(k, a, b)),
        1 => (1..4_u8).prop_map(Step::Retain),
        1 => Just(Step::Clear),
    ]
}

/// Does a step on both; what they answer is the same.
fn run(map: &Bytes, model: &mut Model<Text, Text>, step: &Step) {
    match step.clone() {
        Step::Insert(k, v) => {
            let old = map.insert_bytes(&k, &v).unwrap();
            assert_eq!(old.as_deref(), model.insert(k, v).as_deref());
        }
        Step::Remove(k) => assert_eq!(map.remove(&k).as_deref(), model.remove(&k).as_deref()),
        Step::Append(k, v) => {
            let appended = |old: Option<&[u8]>| [old.unwrap_or_default(), &v].concat();
            let long = |new: &Text| new.len() < 200_000;
            let old = map.update_bytes(&k, |old| Some(appended(old)).filter(long));
            let new = appended(model.get(&k).map(Vec::as_slice));
            let expected = match long(&new) {
                true => model.insert(k, new),
                false => model.remove(&k),
            };
            assert_eq!(old.unwrap().as_deref(), expected.as_deref());
        }
        Step::GetOrInsert(k, v) => {
            let now = map.get_or_insert_bytes_with(&k, || v.as_slice()).unwrap();
            assert_eq!(*now, **model.entry(k).or_insert(v.clone()));
        }
        Step::CompareExchange(k, a, b) => {
            let now = model.get(&k).cloned();
            match map.compare_exchange_bytes(&k, a.as_deref(), b.as_deref()) {
                Ok(old) => {
                    assert_eq!((&now, old.as_deref()), (&a, now.as_deref()));
                    match b {
                        Some(b) => drop(model.insert(k, b)),
                        None => drop(model.remove(&k)),
                    }
                }
                Err(CompareError::Other(other)) => {
                    assert!(now != a && other.as_deref() == now.as_deref());
                }
                Err(error) => panic!("{error}"),
            }
        }
        Step::Retain(n) => {
            let stays = |v: &[u8]| v.first().is_some_and(|byte| byte % n == 0);
            map.retain(|_, v| stays(v)).unwrap();
            model.retain(|_, v| stays(v));
        }
        Step::Clear => {
            map.clear().unwrap();
            model.clear();
        }
    }
}

fn content(map: &Bytes) -> Model<Text, Text> {
    let mut content = Model::new();
    map.for_each(|key, value| {
        let seen = content.insert(key.to_vec(), value.to_vec());
        assert!(seen.is_none(), "seen twice");
    });
    content
}

pub fn bytes_behave_like_stds() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let steps = prop::collection::vec(step(), 1..80);
    on_random(60, &steps, |steps| {
        let map = pool.create(Bytes::new()).unwrap();
        let mut model = Model::new();
        for step in &steps {
            run(&map, &mut model, step);
        }
        for (key, value) in &model {
            assert_eq!(map.get(key).as_deref(), Some(value.as_slice()));
        }
        assert_eq!(content(&map), model);
        assert_sound(*pool);
        drop(map);
        assert_eq!(allocated(*pool), before);
    });
}

/// Behind a value of any length, a key is where its type wants it.
fn behind_any_length<K: Key + PartialEq + std::fmt::Debug>(key: impl Fn(usize) -> K) {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(HashMap::<K, [u8]>::new()).unwrap();
    let lengths = (0..70).chain([1 << 12, (1 << 16) + 1, 5 << 20]);
    let value = |length: usize| vec![length as u8 + 1; length];
    for length in lengths.clone() {
        assert!(
            map.insert_bytes(&key(length), &value(length))
                .unwrap()
                .is_none()
        );
    }
    for length in lengths.clone() {
        assert_eq!(map.get(&key(length)).as_deref(), Some(&*value(length)));
    }
    let mut seen = 0;
    map.for_each(|found, value| {
        assert_eq!(*found, key(value.len()));
        seen += 1;
    });
    assert_eq!(seen, lengths.clone().count());
    for length in lengths {
        let old = map.insert_bytes(&key(length), &value(length + 1)).unwrap();
        assert_eq!(old.as_deref(), Some(&*value(length)));
        drop(old);
        assert_eq!(map.remove(&key(length)).unwrap().len(), length + 1);
    }
    assert_sound(*pool);
    drop(map);
    assert_eq!(allocated(*pool), before);
}

#[derive(Clone, Copy, Debug, PartialEq, ShmSafe, Key)]
struct Place(u64, u64);

pub fn bytes_of_all_lengths() {
    behind_any_length(|n| n as u32);
    behind_any_length(|n| Place(n as u64, !n as u64));
    behind_any_length(|n| n as u128);
}

pub fn maps_of_bytes_outside_of_a_pool() {
    let map = HashMap::<str, [u8]>::new();
    let refused = |outcome: Result<(), ChangeError>| {
        assert_eq!(outcome, Err(ChangeError::NotInPool));
    };
    refused(map.insert_bytes("a", b"1").map(drop));
    refused(map.update_bytes("a", |_| Some([1])).map(drop));
    refused(map.get_or_insert_bytes_with("a", || [1]).map(drop));
    let exchanged = map.compare_exchange_bytes("a", None, Some(b"1"));
    let Err(CompareError::Change(cause)) = exchanged else {
        panic!("{exchanged:?}");
    };
    refused(Err(cause));
    assert!(map.get("a").is_none());
}

pub fn maps_of_bytes_are_told_apart() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<str, [u8]>::new()).unwrap();
    pool.set_name("map", &map).unwrap();
    let wrong = pool.named::<HashMap<str, u8>>("map");
    assert!(matches!(wrong, Err(NamedError::OtherType)));
    let wrong = pool.named::<HashMap<[u8], [u8]>>("map");
    assert!(matches!(wrong, Err(NamedError::OtherType)));
    map.insert_bytes("a", b"1").unwrap();
    let same = pool.named::<HashMap<str, [u8]>>("map").unwrap();
    assert_eq!(same.get("a").as_deref(), Some(&b"1"[..]));
    assert_eq!(format!("{same:?}"), r#"{"a": [49]}"#);
}

/// A length that leads out of the pool is that of no value, and one that leads elsewhere in it shows what is there.
pub fn damaged_lengths_are_passed_over() {
    let pool = TestPool::new();
    for length in [u64::MAX, u64::MAX - 7, 1 << 47, 1 << 30] {
        let map = pool.create(HashMap::<u64, [u8]>::new()).unwrap();
        map.insert_bytes(&1, b"whole").unwrap();
        map.insert_bytes(&2, b"harmed").unwrap();
        let word = map.get(&2).unwrap().as_ptr().expose_provenance() - 8;
        // SAFETY: what a stray write of another process does; no reference to it is used any more.
        unsafe { std::ptr::with_exposed_provenance_mut::<u64>(word).write(length) };
        assert!(map.get(&2).is_none() && !map.contains_key(&2));
        let mut seen = Vec::new();
        map.for_each(|key, value| seen.push((*key, value.to_vec())));
        assert_eq!(seen, [(1, b"whole".to_vec())]);
        assert!(map.remove(&2).is_none());
        map.update_bytes(&1, |old| old.map(<[u8]>::to_ascii_uppercase))
            .unwrap();
        assert_eq!(map.get(&1).as_deref(), Some(&b"WHOLE"[..]));
        // There is a key that nobody finds; the whole one is found as before.
        map.insert_bytes(&2, b"anew").unwrap();
        assert_eq!(map.get(&2).as_deref(), Some(&b"anew"[..]));
    }
}

pub fn a_full_pool_keeps_the_bytes() {
    let pool = TestPool::with(|builder| builder.initial_size(1 << 20).max_size(1 << 20));
    let before = allocated(*pool);
    let map = pool.create(HashMap::<str, [u8]>::new()).unwrap();
    map.insert_bytes("a", &[7; 100_000]).unwrap();
    let large = vec![8; 1 << 20];
    let full = ChangeError::Alloc(AllocError::PoolFull);
    assert_eq!(map.insert_bytes("a", &large).err(), Some(full));
    assert_eq!(
        map.update_bytes("a", |_| Some(&large[..])).err(),
        Some(full)
    );
    assert_eq!(
        map.get_or_insert_bytes_with("b", || &large[..]).err(),
        Some(full)
    );
    let exchanged = map.compare_exchange_bytes("a", Some(&[7; 100_000]), Some(&large));
    assert!(matches!(exchanged, Err(CompareError::Change(cause)) if cause == full));
    drop(exchanged);
    assert_eq!(map.get("a").as_deref(), Some(&[7; 100_000][..]));
    assert_eq!(map.len(), 1);
    // What is replaced makes room for what comes after the next.
    for n in 0..100 {
        map.insert_bytes("a", &[n; 200_000]).unwrap();
    }
    assert_sound(*pool);
    drop(map);
    assert_eq!(allocated(*pool), before);
}

/// What views hold back is told with its tail.
pub fn replaced_bytes_are_counted() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<str, [u8]>::new()).unwrap();
    map.insert_bytes("a", &[7; 100_000]).unwrap();
    pool.recover();
    let view = map.get("a").unwrap();
    map.insert_bytes("a", b"").unwrap();
    let retired = pool.stats().retired;
    assert!(retired.bytes >= 100_000, "{retired:?}");
    assert!(view.iter().all(|&byte| byte == 7));
    drop(view);
    pool.recover();
    assert_eq!(pool.stats().retired.bytes, 0);
}

/// What is removed while somebody looks, is told with its bytes.
pub fn removed_bytes_are_counted() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u8, [u64; 100]>::new()).unwrap();
    let stacks = pool.create(MultiMap::<u8, [u64; 100]>::new()).unwrap();
    map.insert(&1, [7; 100]).unwrap();
    (0..3).for_each(|_| stacks.push(&1, [7; 100]).unwrap());
    let removals: [(usize, &dyn Fn()); 3] = [
        (1, &|| assert!(map.remove(&1).is_some())),
        (1, &|| assert!(stacks.pop(&1).is_some())),
        (2, &|| stacks.clear().unwrap()),
    ];
    for (values, remove) in removals {
        pool.recover();
        let look = map.iter();
        remove();
        let retired = pool.stats().retired;
        assert!(retired.bytes >= values * 800, "{retired:?}");
        drop(look);
    }
}

/// Bytes that say which key they belong to, how many they are, and by their sum that they are whole.
fn sealed(random: &mut Random, key: u64) -> Vec<u8> {
    let mut bytes = key.to_le_bytes().to_vec();
    let length = [0, 10, 100, 3000, 10_000][random.below(5)] + random.below(9);
    bytes.extend((length as u64).to_le_bytes());
    bytes.extend(std::iter::repeat_with(|| random.below(256) as u8).take(length));
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    bytes.push(sum.wrapping_neg());
    bytes
}

fn assert_whole(key: u64, bytes: &[u8]) {
    let length = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    assert_eq!(bytes[..8], key.to_le_bytes());
    assert_eq!(bytes.len() as u64, length + 17);
    assert_eq!(
        bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)),
        0
    );
}

fn mixed(map: &HashMap<u64, [u8]>, seed: u64, rounds: usize) {
    let mut random = Random::new(seed);
    for _ in 0..rounds {
        let key = random.below(40) as u64;
        let new = sealed(&mut random, key);
        let whole = |bytes: Option<&[u8]>| bytes.into_iter().for_each(|b| assert_whole(key, b));
        match random.below(6) {
            0 | 1 => whole(map.insert_bytes(&key, &new).unwrap().as_deref()),
            2 => whole(map.remove(&key).as_deref()),
            3 => {
                let update = |old: Option<&[u8]>| {
                    whole(old);
                    Some(new.as_slice())
                };
                whole(map.update_bytes(&key, update).unwrap().as_deref());
            }
            4 => whole(Some(&*map.get_or_insert_bytes_with(&key, || new).unwrap())),
            _ => whole(map.get(&key).as_deref()),
        }
    }
}

pub fn the_killed_leave_bytes_whole() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(HashMap::new()).unwrap();
    killed_at_work(*pool, 100, |seed, steps: &AtomicU64| {
        for n in 0.. {
            mixed(&map, seed << 20 | n, 3);
            steps.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_sound(*pool);
    map.for_each(|&key, bytes| assert_whole(key, bytes));
    mixed(&map, 1, 2000);
    map.clear().unwrap();
    drop(map);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}
