//! Maps: entries put, replaced, removed; tables made, moved, retired.

use std::alloc::Layout;
use std::fmt::Debug;
use std::ptr::NonNull;

use shmkit::{HashMap, Pool, ShmSafe};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, Named, ensure, happened, sound};

type Map<V> = HashMap<u64, V>;

/// What the maps hold: something that has a node, or that lies in the table.
trait Held: ShmSafe + Unpin + Copy + PartialEq + Debug {
    const NAME: &str;
    const FLAT: bool;
    fn of(n: u64) -> Self;
}

impl Held for [u64; 3] {
    const NAME: &str = "map";
    const FLAT: bool = false;
    fn of(n: u64) -> Self {
        [n, n ^ 0x5555, !n]
    }
}

impl Held for u64 {
    const NAME: &str = "flat map";
    const FLAT: bool = true;
    fn of(n: u64) -> Self {
        n ^ 0x5555
    }
}

/// Keys that are in the map in every case, unless it says otherwise.
const KEYS: u64 = 5;

/// A pool with a map.
struct Bench<V: Held> {
    map: Named<Map<V>>,
    /// What takes all the room that there is, if anything does.
    ballast: Vec<NonNull<u8>>,
    /// A key that the map does not have.
    new: u64,
}

impl<V: Held> InPool for Bench<V> {
    fn pool(&self) -> Pool {
        self.map.pool
    }
}

impl<V: Held> Bench<V> {
    fn new(keys: u64) -> Self {
        Self::in_pool(keys, 16 << 20)
    }

    fn in_pool(keys: u64, max_size: usize) -> Self {
        let pool = Pool::builder().max_size(max_size).create().expect("a pool");
        let map = Named::new(pool, Map::new(), |map| {
            for key in 0..keys {
                map.insert(&key, V::of(key)).expect("room");
            }
        });
        Bench {
            map,
            ballast: Vec::new(),
            new: keys,
        }
    }

    /// A full pool, with a map of whose table one chunk is left to be moved: whoever moves that and changes
    /// something next gives that table back.
    fn outgrown() -> Self {
        const CHUNKS: u64 = 16;
        let mut bench = Self::in_pool(0, 2 << 20);
        bench.open();
        let pool = bench.pool();
        loop {
            let before = pool.stats().allocated;
            let inserted = bench.map.insert(&bench.new, V::of(bench.new));
            inserted.expect("room");
            bench.new += 1;
            // No block but the table after the one of that many is as large.
            if pool.stats().allocated > before + (60 << 10) {
                break;
            }
        }
        pool.recover();
        for size in [256 << 10, 16 << 10, 4096, 1024, 256, 96, 48, 40, 16] {
            let layout = Layout::from_size_align(size, 8).expect("a layout");
            let blocks = std::iter::from_fn(|| pool.allocate(layout).ok());
            bench.ballast.extend(blocks.map(NonNull::cast::<u8>));
        }
        // Each of them tries twice, and moves a chunk each time. One is moved already.
        for _ in 1..CHUNKS / 2 {
            let refused = bench.map.insert(&bench.new, V::of(bench.new));
            refused.expect_err("the pool is full");
        }
        bench.map.close();
        bench
    }

    fn open(&mut self) {
        self.map.open();
    }

    /// Whether the operation is known to be over, once all is sound.
    fn check(&self, crash: &Crash) -> Result<bool, String> {
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
    fn ends(&mut self) -> Result<(), String> {
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
        // The victim has its slot, and its caches of blocks.
        .attach(|bench| {
            bench.open();
            bench.map.insert(&0, V::of(0)).expect("room");
            bench.pool().recover();
        })
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
    .verify(move |bench, crash| {
        let done = bench.check(crash)?;
        let len = bench.map.len() as u64;
        ensure((keys..=end).contains(&len) && (len == end || !done), || {
            format!("{len} entries")
        })?;
        // The last one is there, and the one after it is not. Also once what the victim has begun to move has moved.
        for _ in 0..2 {
            let last = bench.holds(len, len - 1)?;
            ensure(last == Some(V::of(len - 1)), || format!("{last:?}"))?;
            for key in 0..len {
                bench.map.insert(&key, V::of(key)).expect("room");
            }
        }
        bench.ends()
    })
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
    // The one chunk gets empty.
    suite.run(
        case("shrink", 0, |bench: &mut Bench<V>| {
            for key in 0..60 {
                bench.map.remove(&key);
            }
            for _ in 0..3 {
                bench.map.insert(&9, V::of(77)).expect("room");
            }
        })
        .attach(|bench| {
            bench.open();
            for key in 0..60 {
                bench.map.insert(&key, V::of(key)).expect("room");
            }
            for key in 3..60 {
                bench.map.remove(&key);
            }
            bench.pool().recover();
        })
        .verify(|bench, crash| {
            let done = bench.check(crash)?;
            let found = bench.map.get_copied(&9);
            ensure(found == Some(V::of(77)) || !done, || format!("{found:?}"))?;
            let len = bench.map.len();
            ensure(len <= 4 && (len == 1 || !done), || format!("{len} entries"))?;
            bench.ends()
        }),
    );
    suite.run(
        case("destroy", 60, |bench: &mut Bench<V>| bench.map.close())
            .attach(|bench| {
                bench.open();
                bench.map.unname().expect("named");
            })
            .verify(|bench, crash| {
                bench.check(crash)?;
                // A victim that lives on holds it, or has let go of it.
                let now = bench.pool().stats().allocated;
                let gone = now == bench.map.before;
                ensure(gone || !crash.finished && bench.map.is_open(), || {
                    format!("{now} bytes, not {}", bench.map.before)
                })
            }),
    );
}
