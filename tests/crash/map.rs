//! Maps: entries put, replaced, removed; tables made, moved, retired.

use std::alloc::Layout;
use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::ptr::NonNull;

use shmkit::{HashMap, KeyHasher, Pool, ShmSafe, SipHash13};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, Named, ensure, happened, sound};

pub type Map<V, S = SipHash13> = HashMap<u64, V, S>;

/// What the maps hold: something that has a node, or that lies in the table.
pub trait Held: ShmSafe + Unpin + Copy + PartialEq + Debug {
    const NAME: &str;
    const FLAT: bool;
    fn of(n: u64) -> Self;
    /// What it was made of.
    fn number(self) -> u64;
}

impl Held for [u64; 3] {
    const NAME: &str = "map";
    const FLAT: bool = false;
    fn of(n: u64) -> Self {
        [n, n ^ 0x5555, !n]
    }
    fn number(self) -> u64 {
        self[0]
    }
}

impl Held for u64 {
    const NAME: &str = "flat map";
    const FLAT: bool = true;
    fn of(n: u64) -> Self {
        n ^ 0x5555
    }
    fn number(self) -> u64 {
        self ^ 0x5555
    }
}

/// Numbers belong to a table's chunks by turns; all runs are alike.
#[derive(ShmSafe)]
pub struct InOrder;

// SAFETY: a function of its arguments, that neither panics nor uses a pool.
unsafe impl KeyHasher for InOrder {
    fn hash(_: [u64; 2], bytes: &[u8]) -> u64 {
        let number = bytes
            .iter()
            .rev()
            .fold(0, |n, &byte| n << 8 | u64::from(byte));
        let spread = (number as u32).wrapping_mul(0x9e37_79b1);
        number << 32 | u64::from(spread.rotate_left(16))
    }
}

/// Keys that are in the map in every case, unless it says otherwise.
pub const KEYS: u64 = 5;

/// A pool with a map.
pub struct Bench<V: Held, S: KeyHasher = SipHash13> {
    pub map: Named<Map<V, S>>,
    /// What takes all the room that there is, if anything does.
    ballast: Vec<NonNull<u8>>,
    /// The first key that the map does not have.
    pub new: u64,
    /// More keys that it has.
    pub crowd: Vec<u64>,
}

impl<V: Held, S: KeyHasher> InPool for Bench<V, S> {
    fn pool(&self) -> Pool {
        self.map.pool
    }
}

impl<V: Held, S: KeyHasher> Bench<V, S> {
    pub fn new(keys: u64) -> Self {
        Self::in_pool(keys, 16 << 20)
    }

    fn in_pool(keys: u64, max_size: usize) -> Self {
        let pool = Pool::builder().max_size(max_size).create().expect("a pool");
        let map = Named::new(pool, Map::with_hasher(), |map| {
            for key in 0..keys {
                map.insert(&key, V::of(key)).expect("room");
            }
        });
        Bench {
            map,
            ballast: Vec::new(),
            new: keys,
            crowd: Vec::new(),
        }
    }

    /// A map that has been given another table by its last change: a larger one, of chunks that are as many again.
    pub fn moving(chunks: usize) -> Self {
        let mut bench = Self::new(0);
        bench.open();
        while !bench.gets_a_table(chunks, |map, new| {
            drop(map.insert(&new, V::of(new)).expect("room"))
        }) {
            bench.new += 1;
        }
        bench.new += 1;
        bench.pool().recover();
        bench.map.close();
        bench
    }

    /// A map of several chunks that has been given a smaller table by a removal, to which some chunks have moved.
    pub fn shrinking() -> Self {
        let mut bench = Self::moving(4);
        bench.open();
        // It has to move before it can shrink.
        (0..8).for_each(|_| drop(bench.map.insert(&0, V::of(0)).expect("room")));
        while !bench.gets_a_table(4, |map, new| drop(map.remove(&new))) {
            bench.new -= 1;
        }
        for key in 0..2 {
            bench.map.insert(&key, V::of(key)).expect("room");
        }
        bench.pool().recover();
        bench.map.close();
        bench
    }

    /// A map of 16 chunks, of which all but one have one key at most, that has been given a smaller table by a removal. To
    /// that the one with more has moved: it fills the chunk that it shares with the one of key 15, which is still to move.
    pub fn crowded() -> Self {
        const CHUNKS: u64 = 16;
        const FULL: u64 = 7;
        let mut bench = Self::moving(CHUNKS as usize / 2);
        bench.open();
        let map = &bench.map;
        // It has to move before it can shrink.
        (0..CHUNKS).for_each(|_| drop(map.insert(&0, V::of(0)).expect("room")));
        let crowd = (1..96).map(|n| CHUNKS * n + FULL);
        bench.crowd = crowd.chain([FULL + CHUNKS / 2]).collect();
        for &key in &bench.crowd {
            map.insert(&key, V::of(key)).expect("room");
        }
        while !bench.gets_a_table(CHUNKS as usize / 2, |map, new| {
            if !bench.crowd.contains(&new) {
                map.remove(&new);
            }
        }) {
            bench.new -= 1;
        }
        assert_eq!(bench.new, CHUNKS - 2);
        bench.map.insert(&FULL, V::of(FULL)).expect("room");
        bench.pool().recover();
        bench.map.close();
        bench
    }

    /// Makes the change that is about the next key. True if a table with so many own chunks came of it: no node is as
    /// large, and none of the smaller tables.
    fn gets_a_table(&self, chunks: usize, change: impl Fn(&Map<V, S>, u64)) -> bool {
        // What goes at the same time would hide it.
        self.pool().recover();
        let before = self.pool().stats().allocated;
        change(&self.map, self.new);
        self.pool().stats().allocated > before + (chunks << 11)
    }

    /// A full pool, with a map that shrinks, of whose table one chunk is left to be moved: whoever moves that and changes
    /// something next gives that table back, part of which is slices that go back to the pool.
    fn outgrown() -> Self {
        const CHUNKS: usize = 64;
        let mut bench = Self::in_pool(0, 2 << 20);
        bench.open();
        let pool = bench.pool();
        while !bench.gets_a_table(CHUNKS / 2, |map, new| {
            drop(map.insert(&new, V::of(new)).expect("room"))
        }) {
            bench.new += 1;
        }
        // It has to move before it can shrink.
        (0..CHUNKS).for_each(|_| drop(bench.map.insert(&0, V::of(0)).expect("room")));
        while !bench.gets_a_table(CHUNKS / 2, |map, new| drop(map.remove(&new))) {
            bench.new -= 1;
        }
        pool.recover();
        for size in [256 << 10, 16 << 10, 4096, 1024, 256, 96, 48, 40, 16] {
            let layout = Layout::from_size_align(size, 8).expect("a layout");
            let blocks = std::iter::from_fn(|| pool.allocate(layout).ok());
            bench.ballast.extend(blocks.map(NonNull::cast::<u8>));
        }
        // Each of them tries twice, and moves a chunk each time.
        for _ in 1..CHUNKS / 2 {
            let refused = bench.map.insert(&bench.new, V::of(bench.new));
            refused.expect_err("the pool is full");
        }
        // One more, of two.
        assert!(bench.map.remove(&bench.new).is_none());
        bench.map.close();
        bench
    }

    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        self.open();
        self.map.insert(&0, V::of(0)).expect("room");
        self.pool().recover();
    }

    pub fn open(&mut self) {
        self.map.open();
    }

    /// Whether the operation is known to be over, once all is sound.
    pub fn check(&self, crash: &Crash) -> Result<bool, String> {
        sound(self.pool())?;
        let retired = self.pool().stats().retired;
        ensure(retired.blocks == 0, || format!("{retired:?}"))?;
        Ok(crash.done())
    }

    /// Exactly those keys are there, but for `key`; nothing else is allocated.
    fn holds(&self, keys: u64, key: u64) -> Result<Option<V>, String> {
        let map = &self.map;
        for other in (0..keys).filter(|&other| other != key) {
            let found = map.get_copied(&other);
            ensure(found == Some(V::of(other)), || {
                format!("{other}: {found:?}")
            })?;
        }
        let found = map.get_copied(&key);
        let expected = keys as usize - (key < keys) as usize + found.is_some() as usize;
        let mut entries = map.iter();
        let mut seen = 0;
        while entries.next().is_some() {
            seen += 1;
        }
        drop(entries);
        ensure(map.len() == expected && seen == expected, || {
            format!("{} and {seen} entries, not {expected}", map.len())
        })?;
        Ok(found)
    }

    /// The map can be changed, and gives back all that it has when it goes.
    pub fn ends(&mut self) -> Result<(), String> {
        for key in 0..KEYS {
            let inserted = self.map.insert(&key, V::of(key));
            inserted.map(drop).map_err(|e| format!("{e:?}"))?;
        }
        self.map.ends()
    }
}

fn case<V: Held>(
    name: &str,
    keys: u64,
    operation: impl Fn(&mut Bench<V>) + 'static,
) -> Case<Bench<V>> {
    in_pool::case(format!("{}/{name}", V::NAME), move || Bench::new(keys))
        .attach(Bench::enter)
        .operation(move |bench| {
            operation(bench);
            progress(1);
        })
        .survivor(Bench::open)
}

/// A case about one key, which has `old` before and `new` afterwards.
fn about<V: Held>(
    name: &str,
    keys: u64,
    key: u64,
    (old, new): (Option<V>, Option<V>),
    operation: impl Fn(&Map<V>) + 'static,
) -> Case<Bench<V>> {
    case(name, keys, move |bench| operation(&bench.map)).verify(move |bench, crash| {
        bench.check(crash)?;
        happened(crash, bench.holds(keys, key)?, old, new)?;
        bench.ends()
    })
}

/// Even keys stay, and odd ones go one by one.
fn retain<V: Held>() -> Case<Bench<V>> {
    case("retain", KEYS, |bench: &mut Bench<V>| {
        let retained = bench.map.retain(|key, _| key % 2 == 0);
        retained.expect("retained");
    })
    .verify(|bench, crash| {
        let done = bench.check(crash)?;
        let mut expected = 0;
        for key in 0..KEYS {
            let found = bench.map.get_copied(&key);
            let goes = key % 2 != 0;
            let right = match found {
                Some(value) => value == V::of(key) && !(goes && done),
                None => goes,
            };
            ensure(right, || format!("{key}: {found:?}"))?;
            expected += usize::from(found.is_some());
        }
        let len = bench.map.len();
        ensure(len == expected, || format!("{len} entries, not {expected}"))?;
        bench.ends()
    })
}

/// Keys are added, for which the table may get too small.
fn added<V: Held>(name: &str, keys: u64) -> Case<Bench<V>> {
    let end = keys + 4;
    case(name, keys, move |bench: &mut Bench<V>| {
        for key in keys..end {
            bench.map.insert(&key, V::of(key)).expect("room");
        }
    })
    .verify(move |bench, crash| all_of_the_first(bench, crash, keys..=end))
}

/// Keys are added to a map of several chunks that is moving to a larger table. Or it is destroyed as the victim has left it.
fn added_while_moving<V: Held>(name: &str, is_destroyed: bool) -> Case<Bench<V>> {
    in_pool::case(format!("{}/{name}", V::NAME), || Bench::<V>::moving(4))
        .attach(Bench::enter)
        .operation(|bench| {
            for key in bench.new..bench.new + 4 {
                bench.map.insert(&key, V::of(key)).expect("room");
            }
            progress(1);
        })
        .survivor(Bench::open)
        .verify(move |bench, crash| {
            if is_destroyed {
                bench.check(crash)?;
                return bench.map.ends();
            }
            let new = bench.new;
            all_of_the_first(bench, crash, new..=new + 4)
        })
}

/// Keys from 0 on are there, as many as there may be.
fn all_of_the_first<V: Held>(
    bench: &mut Bench<V>,
    crash: &Crash,
    may: RangeInclusive<u64>,
) -> Result<(), String> {
    let done = bench.check(crash)?;
    let len = bench.map.len() as u64;
    ensure(may.contains(&len) && (len == *may.end() || !done), || {
        format!("{len} entries")
    })?;
    // The last one is there, and the one after it is not. Also once what the victim has begun to move has moved.
    for _ in 0..2 {
        let last = bench.holds(len, len - 1)?;
        ensure(last == Some(V::of(len - 1)), || format!("{last:?}"))?;
        for key in 0..len {
            bench.map.insert(&key, V::of(key + 1)).expect("room");
            bench.map.insert(&key, V::of(key)).expect("room");
        }
    }
    bench.ends()
}

/// An insertion that finds no room, moves the last chunk, gives the old table back, and has room once
/// that is freed.
fn outgrown<V: Held>() -> Case<Bench<V>> {
    in_pool::case(format!("{}/outgrown", V::NAME), Bench::<V>::outgrown)
        .attach(Bench::open)
        .operation(|bench| {
            let new = bench.new;
            bench.map.insert(&new, V::of(new)).expect("room");
            progress(1);
        })
        .survivor(Bench::open)
        .verify(|bench, crash| {
            for block in std::mem::take(&mut bench.ballast) {
                // SAFETY: blocks that nobody uses.
                let freed = unsafe { bench.pool().deallocate(block) };
                freed.map_err(|e| format!("{e:?}"))?;
            }
            bench.check(crash)?;
            let new = bench.new;
            happened(crash, bench.holds(new, new)?, None, Some(V::of(new)))?;
            bench.ends()
        })
}

/// What a death at every instruction must leave of maps.
pub fn cases(suite: &mut Suite) {
    cases_of::<[u64; 3]>(suite);
    cases_of::<u64>(suite);
}

fn cases_of<V: Held>(suite: &mut Suite) {
    let new = Some(<V as Held>::of(77));
    suite.run(about("insert", KEYS, 9, (None, new), |map| {
        assert!(map.insert(&9, V::of(77)).expect("room").is_none());
    }));
    suite.run(about("replace", KEYS, 3, (Some(V::of(3)), new), |map| {
        let old = map.insert(&3, V::of(77)).expect("room");
        assert_eq!(*old.expect("there"), V::of(3));
    }));
    suite.run(about("remove", KEYS, 3, (Some(V::of(3)), None), |map| {
        assert_eq!(*map.remove(&3).expect("there"), V::of(3))
    }));
    suite.run(about("update", KEYS, 3, (Some(V::of(3)), new), |map| {
        let mut once = true;
        // The first attempt fails.
        let update = |old: Option<&V>| {
            if std::mem::take(&mut once) {
                map.insert(&3, V::of(3)).expect("room");
            }
            old.map(|_| V::of(77))
        };
        map.update(&3, update).expect("room");
    }));
    suite.run(about(
        "update to none",
        KEYS,
        3,
        (Some(V::of(3)), None),
        |map| {
            let was = map.update(&3, |_| None).expect("removed");
            assert_eq!(*was.expect("there"), V::of(3));
        },
    ));
    suite.run(about(
        "compare_exchange",
        KEYS,
        3,
        (Some(V::of(3)), new),
        |map| {
            let other = map.compare_exchange(&3, Some(&V::of(4)), Some(V::of(5)));
            assert!(other.is_err());
            let was = map.compare_exchange(&3, Some(&V::of(3)), Some(V::of(77)));
            assert_eq!(was.ok().flatten().map(|was| *was), Some(V::of(3)));
        },
    ));
    suite.run(retain::<V>());
    suite.run(about("get_or_insert_with", KEYS, 9, (None, new), |map| {
        let view = map.get_or_insert_with(&9, || V::of(77)).expect("room");
        assert_eq!(*view, V::of(77));
    }));
    suite.run(
        case("first", 0, |bench: &mut Bench<V>| {
            bench.map.insert(&1, V::of(1)).expect("room");
        })
        .attach(|bench| {
            bench.open();
            bench.pool().recover();
        })
        .verify(|bench, crash| {
            bench.check(crash)?;
            happened(crash, bench.holds(0, 1)?, None, Some(V::of(1)))?;
            bench.ends()
        }),
    );
    suite.run(about("entry", KEYS, 3, (Some(V::of(3)), new), |map| {
        let entry = map.entry(&3).and_modify(|_| V::of(77));
        assert_eq!(*entry.or_insert(V::of(5)).expect("room"), V::of(77));
    }));
    // A chunk of 48 that is full is moved to one that is twice as long, one of 96 to two.
    suite.run(added::<V>("grow", 47));
    suite.run(added::<V>("split", 95));
    suite.run(added_while_moving::<V>("split many", false));
    suite.run(added_while_moving::<V>("split many, and go", true));
    // Among several chunks, where a look finds at once what it mostly finds.
    suite.run(added::<V>("insert among many", 200));
    suite.run(about(
        "replace among many",
        200,
        3,
        (Some(V::of(3)), new),
        |map| {
            let old = map.insert(&3, V::of(77)).expect("room");
            assert_eq!(*old.expect("there"), V::of(3));
        },
    ));
    suite.run(
        case("clear", KEYS, |bench: &mut Bench<V>| {
            bench.map.clear().expect("cleared");
        })
        .verify(|bench, crash| {
            let done = bench.check(crash)?;
            let len = bench.map.len();
            ensure(len == 0 || !done, || format!("{len} entries"))?;
            bench.ends()
        }),
    );
    if !V::FLAT {
        suite.run(outgrown::<V>());
    }
    suite.run(shrink::<V>("shrink", 60, 3));
    // All of a table's parts go.
    suite.run(shrink::<V>("shrink many", 200, 8));
    suite.run(destroy::<V>("destroy", || Bench::new(60)));
    suite.run(destroy::<V>("destroy growing", || Bench::moving(2)));
    suite.run(destroy::<V>("destroy shrinking", Bench::shrinking));
}

/// A table of which a chunk gets empty.
fn shrink<V: Held>(name: &str, keys: u64, left: u64) -> Case<Bench<V>> {
    case(name, 0, move |bench: &mut Bench<V>| {
        for key in 0..keys {
            bench.map.remove(&key);
        }
        for _ in 0..left {
            bench.map.insert(&9, V::of(77)).expect("room");
        }
    })
    .attach(move |bench| {
        bench.open();
        for key in 0..keys {
            bench.map.insert(&key, V::of(key)).expect("room");
        }
        for key in left..keys {
            bench.map.remove(&key);
        }
        bench.pool().recover();
    })
    .verify(move |bench, crash| {
        let done = bench.check(crash)?;
        let found = bench.map.get_copied(&9);
        ensure(found == Some(V::of(77)) || !done, || format!("{found:?}"))?;
        let len = bench.map.len() as u64;
        ensure(len <= left + 1 && (len == 1 || !done), || {
            format!("{len} entries")
        })?;
        bench.ends()
    })
}

fn destroy<V: Held>(name: &str, bench: impl Fn() -> Bench<V> + 'static) -> Case<Bench<V>> {
    in_pool::case(format!("{}/{name}", V::NAME), bench)
        .attach(|bench| {
            bench.open();
            bench.map.unname().expect("named");
        })
        .operation(|bench| {
            bench.map.close();
            progress(1);
        })
        .survivor(Bench::open)
        .verify(|bench, crash| {
            bench.check(crash)?;
            // A victim that lives on holds it, or has let go of it.
            let now = bench.pool().stats().allocated;
            let gone = now == bench.map.before;
            ensure(gone || !crash.finished && bench.map.is_open(), || {
                format!("{now} bytes, not {}", bench.map.before)
            })
        })
}
