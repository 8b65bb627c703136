//! Hash maps of `u64` to `u64`, all with SipHash-1-3 and a random key.

use std::collections::hash_map::RandomState;
use std::hint::black_box;

use shmkit::{Pool, Shared};

use crate::crew::Crew;
use crate::gate::Random;
use crate::lmdb::Lmdb;

/// What is asked of a map that many use at once.
pub trait Map: Sync {
    fn get(&self, key: u64) -> Option<u64>;
    fn put(&self, key: u64, value: u64);
    /// Fills a new map, by whatever is quickest.
    fn fill(&self, keys: impl Iterator<Item = u64>) {
        keys.for_each(|key| self.put(key, key));
    }
}

pub type Ours = Shared<shmkit::HashMap<u64, u64>>;
type Papaya = papaya::HashMap<u64, u64, RandomState>;
type Scc = scc::HashMap<u64, u64, RandomState>;
type DashMap = dashmap::DashMap<u64, u64, RandomState>;

impl Map for Ours {
    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.get_copied(&key)
    }

    #[inline]
    fn put(&self, key: u64, value: u64) {
        drop(self.insert(&key, value).expect("room"));
    }
}

impl Map for Papaya {
    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.pin().get(&key).copied()
    }

    #[inline]
    fn put(&self, key: u64, value: u64) {
        self.pin().insert(key, value);
    }
}

impl Map for Scc {
    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.read_sync(&key, |_, value| *value)
    }

    #[inline]
    fn put(&self, key: u64, value: u64) {
        self.upsert_sync(key, value);
    }
}

impl Map for DashMap {
    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        DashMap::get(self, &key).map(|value| *value)
    }

    #[inline]
    fn put(&self, key: u64, value: u64) {
        self.insert(key, value);
    }
}

/// Our pool has room for whatever a bench puts into it, all of it mapped once.
pub fn pool() -> Pool {
    Pool::builder().create().expect("a pool")
}

fn ours(pool: Pool) -> Ours {
    pool.create(shmkit::HashMap::new()).expect("a map")
}

pub fn run(crew: &Crew, bench: &str, subject: &str) {
    match subject {
        "shmkit" => {
            let pool = pool();
            if bench == "table_view" {
                table_view(crew, &ours(pool));
            } else {
                bench_of(crew, bench, || ours(pool), 1);
            }
        }
        "papaya" => bench_of(crew, bench, Papaya::default, 1),
        "scc" => bench_of(crew, bench, Scc::default, 1),
        "dashmap" => bench_of(crew, bench, DashMap::default, 1),
        "lmdb" => bench_of(crew, bench, Lmdb::new, 10),
        other => panic!("{other}"),
    }
}

/// One of the benches, with fewer operations for who is slower.
fn bench_of<M: Map>(crew: &Crew, bench: &str, map: impl Fn() -> M, fewer: u64) {
    match bench {
        "map_get" => map_get(crew, &map()),
        "map_insert" => map_insert(crew, &map()),
        "map_mixed" => map_mixed(crew, &map()),
        "table_get" => {
            let map = full_table(&map);
            table(crew, 4_000_000 / fewer, |key| {
                black_box(map.get(key));
            });
        }
        "table_replace" => {
            let map = full_table(&map);
            table(crew, 1_000_000 / fewer, |key| map.put(key, key));
        }
        "table_insert" => {
            let tables = (8 / fewer).max(1);
            let maps: Vec<M> = (0..tables).map(|_| map()).collect();
            table_insert(crew, &maps);
        }
        other => panic!("{other}"),
    }
}

/// The keys of a large map.
const KEYS: usize = 1_000_000;
/// Operations of a worker on it.
const OPERATIONS: usize = 1_000_000;

/// A key for a number: an odd factor, so that different numbers are different keys.
#[inline]
fn key(number: usize) -> u64 {
    (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn map_get(crew: &Crew, map: &impl Map) {
    map.fill((0..KEYS).map(key));
    crew.run(|worker, gate| {
        let mut random = Random::new(worker);
        gate.work(|| {
            for _ in 0..OPERATIONS {
                assert!(map.get(key(random.below(KEYS))).is_some());
            }
        });
        OPERATIONS as u64
    });
}

fn map_insert(crew: &Crew, map: &impl Map) {
    crew.run(|worker, gate| {
        let mine = (worker..KEYS).step_by(crew.workers());
        let count = mine.len() as u64;
        gate.work(|| mine.for_each(|number| map.put(key(number), 1)));
        count
    });
}

/// Nine of ten get, one replaces, by Zipf's law with the exponent of YCSB.
fn map_mixed(crew: &Crew, map: &impl Map) {
    use rand::{Rng as _, RngExt as _, SeedableRng as _};
    map.fill((0..KEYS).map(key));
    crew.run(|worker, gate| {
        let mut random = rand::rngs::SmallRng::seed_from_u64(worker as u64);
        let law = rand_distr::Zipf::new(KEYS as f64, 0.99).expect("a law");
        let numbers: Vec<u32> = (0..OPERATIONS)
            .map(|_| random.sample(law) as u32 - 1)
            .collect();
        let seed = random.next_u32();
        gate.work(|| {
            for (i, &number) in numbers.iter().enumerate() {
                let key = key(number as usize);
                if (i as u32 ^ seed).is_multiple_of(10) {
                    map.put(key, u64::from(seed));
                } else {
                    assert!(map.get(key).is_some());
                }
            }
        });
        OPERATIONS as u64
    });
}

/// The keys of the original's table, which are small numbers.
const TABLE: u64 = 100_000;

fn full_table<M: Map>(map: impl Fn() -> M) -> M {
    let map = map();
    map.fill(0..TABLE);
    map
}

/// An operation on the keys in an order that comes to all: the step is prime.
fn table(crew: &Crew, times: u64, operation: impl Fn(u64) + Sync) {
    crew.run(|worker, gate| {
        // The first one is this process's: it may have to open something.
        operation(0);
        let mut at = worker as u64 * (TABLE / 2);
        gate.work(|| {
            for _ in 0..times {
                operation(at);
                at = (at + 7919) % TABLE;
            }
        });
        times
    });
}

fn table_view(crew: &Crew, map: &Ours) {
    map.fill(0..TABLE);
    table(crew, 4_000_000, |key| {
        let map: &shmkit::HashMap<u64, u64> = map;
        black_box(map.get(&key).as_deref());
    });
}

/// The keys are shared out among the workers, table after table.
fn table_insert(crew: &Crew, maps: &[impl Map]) {
    crew.run(|worker, gate| {
        maps.iter().for_each(|map| {
            black_box(map.get(0));
        });
        let mine = || (worker as u64..TABLE).step_by(crew.workers());
        gate.work(|| {
            for map in maps {
                mine().for_each(|key| map.put(key, key));
            }
        });
        (mine().count() * maps.len()) as u64
    });
}
