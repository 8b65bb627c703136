//! Stacks of values by keys: against a model, and with workers that are killed.

use std::collections::HashMap as Model;
use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::{JoinError, scope};
use shmkit::{ChangeError, MultiMap};

use crate::common::{Random, TestPool};
use crate::full_maps::lives_on_what_it_outgrows;
use crate::{Sealed, allocated, assert_sound};

fn all(map: &MultiMap<u64, Sealed>, key: u64) -> Vec<Sealed> {
    let mut bindings = map.get_all(&key);
    let mut all = Vec::new();
    while let Some(value) = bindings.next() {
        all.push(*value);
    }
    all
}

pub fn stacks_behave_like_vecs() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(MultiMap::new()).unwrap();
    let mut model: Model<u64, Vec<Sealed>> = Model::new();
    let mut random = Random::new(5);
    for step in 0..30_000 {
        let key = random.below(if step % 3000 < 1500 { 20 } else { 400 }) as u64;
        let value = Sealed::new(step);
        let stack = model.entry(key).or_default();
        match random.below(9) {
            0..3 => {
                map.push(&key, value).unwrap();
                stack.push(value);
            }
            3..6 => assert_eq!(map.pop(&key).map(|v| *v), stack.pop()),
            6 => {
                let old = map.replace(&key, value).unwrap().map(|old| *old);
                assert_eq!(old, stack.pop());
                stack.push(value);
            }
            _ => {
                assert_eq!(map.get(&key).map(|v| *v), stack.last().copied());
                assert_eq!(map.contains_key(&key), !stack.is_empty());
                let expected: Vec<_> = stack.iter().rev().copied().collect();
                assert_eq!(all(&map, key), expected);
            }
        }
    }
    assert_eq!(map.len(), model.values().map(Vec::len).sum::<usize>());
    assert_eq!(map.is_empty(), model.values().all(Vec::is_empty));
    assert_sound(*pool);
    drop(map);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn pushes_live_on_what_they_outgrow() {
    type Map = MultiMap<u64, [u64; 8]>;
    type Change = fn(&Map, u64) -> Result<(), ChangeError>;
    let changes: [Change; 3] = [
        |map, new| map.push(&new, [7; 8]).map_err(|refused| refused.cause),
        |map, _| map.push(&3, [7; 8]).map_err(|refused| refused.cause),
        |map, _| {
            map.replace(&3, [7; 8])
                .map(drop)
                .map_err(|refused| refused.cause)
        },
    ];
    for change in changes {
        let push = |map: &Map, key| map.push(&key, [0; 8]).unwrap();
        lives_on_what_it_outgrows(Map::new(), push, change);
    }
}

pub fn stacks_outside_of_a_pool() {
    let map = MultiMap::<str, u8>::new();
    let refused = map.push("a", 1).unwrap_err();
    assert_eq!((refused.value, refused.cause), (1, ChangeError::NotInPool));
    assert!(map.pop("a").is_none() && map.get_all("a").next().is_none());
}

pub fn killed_users_of_stacks_lose_nothing() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(MultiMap::<u64, Sealed>::new()).unwrap();
    let balance = pool.create([const { AtomicU64::new(0) }; 2]).unwrap();
    let rounds = 80;
    for round in 0..rounds {
        scope(|s| {
            let children: Vec<_> = (0..2)
                .map(|worker| {
                    let (map, balance) = (&map, &balance);
                    s.spawn(move || {
                        let mut random = Random::new(round * 2 + worker);
                        for n in 0_u64.. {
                            let key = random.below(200) as u64;
                            if random.below(2) == 0 {
                                map.push(&key, Sealed::new(n << 8 | key)).unwrap();
                                balance[0].fetch_add(1, Ordering::Relaxed);
                            } else if let Some(old) = map.pop(&key) {
                                assert!(old.is_whole() && old.a & 0xff == key);
                                balance[1].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                    .unwrap()
                })
                .collect();
            let start = balance[0].load(Ordering::Relaxed);
            while balance[0].load(Ordering::Relaxed) - start < 10 + round * 5 {
                std::thread::yield_now();
            }
            for child in children {
                child.kill().unwrap();
                assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
            }
        });
    }
    assert_sound(*pool);
    let [pushed, popped] = [&balance[0], &balance[1]].map(|n| n.load(Ordering::Relaxed));
    let len = map.len() as u64;
    // Each of the dead may have been between its change and its count.
    assert!(len <= pushed + 2 * rounds - popped && len + 2 * rounds >= pushed - popped);
    for key in 0..200 {
        let fits = |value: &Sealed| value.is_whole() && value.a & 0xff == key;
        assert!(all(&map, key).iter().all(fits));
    }
    drop((map, balance));
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}
