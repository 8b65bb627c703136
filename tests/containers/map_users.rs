//! Hash maps that are shared by processes, some of which are killed.

use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::{JoinError, scope};
use shmkit::{HashMap, Pool};

use crate::common::{Random, TestPool};
use crate::maps::content;
use crate::{Sealed, allocated, assert_sound};

fn mixed(map: &HashMap<u64, Sealed>, seed: u64, keys: usize, rounds: usize) {
    let mut random = Random::new(seed);
    for _ in 0..rounds {
        let key = random.below(keys) as u64;
        let value = Sealed::new(random.next() << 16 | key);
        let fits = |value: &Sealed| assert!(value.is_whole() && value.a & 0xffff == key);
        match random.below(8) {
            0 | 1 => map
                .insert(&key, value)
                .unwrap()
                .iter()
                .for_each(|v| fits(v)),
            2 | 3 => map.remove(&key).iter().for_each(|v| fits(v)),
            4 => {
                let update = |old: Option<&Sealed>| {
                    old.inspect(|old| fits(old));
                    Some(value)
                };
                map.update(&key, update).unwrap();
            }
            5 => fits(&map.get_or_insert_with(&key, || value).unwrap()),
            _ => map.get(&key).iter().for_each(|v| fits(v)),
        }
    }
}

pub fn a_mixed_load_of_processes() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(HashMap::new()).unwrap();
    scope(|s| {
        for worker in 0..4 {
            let map = &map;
            s.spawn(move || {
                for keys in [10, 3000, 100, 10_000, 50] {
                    mixed(map, worker, keys, 4000);
                }
            })
            .unwrap();
        }
    });
    assert_sound(*pool);
    let content = content(&map);
    assert_eq!(map.len(), content.len());
    for (key, value) in content {
        assert_eq!(map.get_copied(&key), Some(value));
    }
    drop(map);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn killed_at_work(pool: Pool, rounds: u64, work: impl Fn(u64, &AtomicU64) + Copy + Send) {
    let steps = pool.create(AtomicU64::new(0)).unwrap();
    for round in 0..rounds {
        scope(|s| {
            let children: Vec<_> = (0..2)
                .map(|worker| {
                    let steps = &steps;
                    let seed = round * 2 + worker;
                    s.spawn(move || work(seed, steps)).unwrap()
                })
                .collect();
            let start = steps.load(Ordering::Relaxed);
            while steps.load(Ordering::Relaxed) - start < 20 + round * 7 % 400 {
                std::thread::yield_now();
            }
            for child in children {
                child.kill().unwrap();
                assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
            }
        });
    }
}

pub fn the_killed_leave_a_map_whole() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(HashMap::new()).unwrap();
    killed_at_work(*pool, 120, |seed, steps| {
        // Sizes differ, so that the table grows and shrinks under the kills.
        let keys = [20, 400, 3000][seed as usize % 3];
        for n in 0.. {
            mixed(&map, seed << 20 | n, keys, 5);
            steps.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_sound(*pool);
    let content = content(&map);
    for (key, value) in &content {
        assert!(value.is_whole() && value.a & 0xffff == *key);
    }
    mixed(&map, 1, 3000, 10_000);
    map.clear().unwrap();
    assert!(map.is_empty());
    drop(map);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn increments_of_the_killed_are_counted() {
    // In a table of one chunk, or of several.
    for keys in [64, 640] {
        increments_are_counted(keys);
    }
}

fn increments_are_counted(keys: usize) {
    const ROUNDS: u64 = 50;
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    let done = pool.create(AtomicU64::new(0)).unwrap();
    killed_at_work(*pool, ROUNDS, |seed, steps| {
        let mut random = Random::new(seed);
        loop {
            let key = random.below(keys) as u64;
            map.update(&key, |n| Some(n.map_or(1, |n| n + 1))).unwrap();
            done.fetch_add(1, Ordering::Relaxed);
            steps.fetch_add(1, Ordering::Relaxed);
        }
    });
    let sum: u64 = content(&map).values().sum();
    let counted = done.load(Ordering::Relaxed);
    // Each of the dead may have been between its update and its count.
    assert!(
        (counted..=counted + 2 * ROUNDS).contains(&sum),
        "{sum} of {counted}"
    );
    assert_sound(*pool);
}

pub fn killed_fillers_of_a_growing_map() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    let acknowledged = pool
        .create(std::array::from_fn::<_, 200, _>(|_| AtomicU64::new(0)))
        .unwrap();
    killed_at_work(*pool, 100, |seed, steps| {
        for n in 1.. {
            map.insert(&(seed << 32 | n), n).unwrap();
            acknowledged[seed as usize].store(n, Ordering::Release);
            steps.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_sound(*pool);
    let mut expected = 0;
    for seed in 0..200 {
        let last = acknowledged[seed as usize].load(Ordering::Acquire);
        for n in 1..=last {
            assert_eq!(map.get_copied(&(seed << 32 | n)), Some(n));
        }
        expected += last + u64::from(map.contains_key(&(seed << 32 | (last + 1))));
    }
    assert_eq!(map.len() as u64, expected);
    drop((map, acknowledged));
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}
