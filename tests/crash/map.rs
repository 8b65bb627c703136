//! Maps: entries put, replaced, removed; tables made, moved, retired.

use shmkit::{HashMap, Pool, Shared};

use crate::engine::{Case, Crash, Suite, progress};
use crate::in_pool::{self, InPool, ensure, sound};

type Map = HashMap<u64, [u64; 3]>;

fn value(n: u64) -> [u64; 3] {
    [n, n ^ 0x5555, !n]
}

/// Keys that are in the map in every case, unless it says otherwise.
const KEYS: u64 = 5;

/// A pool with a map.
struct Bench {
    pool: Pool,
    map: Option<Shared<Map>>,
    /// Bytes in use before there was a map.
    before: usize,
}

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl Bench {
    fn new(keys: u64) -> Bench {
        let pool = Pool::builder().max_size(16 << 20).create().expect("a pool");
        let before = pool.stats().allocated;
        let map = pool.create(Map::new()).expect("room");
        for key in 0..keys {
            map.insert(&key, value(key)).expect("room");
        }
        // Found by its name: so it goes with the name and the handle of who looks at it.
        pool.set_name("map", &map).expect("named");
        drop(map);
        pool.recover();
        let map = None;
        Bench { pool, map, before }
    }

    fn open(&mut self) {
        self.map = self.pool.named("map").ok();
    }

    fn map(&self) -> &Map {
        self.map.as_ref().expect("not dropped")
    }

    /// Whether the operation is known to be over, once all is sound.
    fn check(&self, crash: &Crash) -> Result<bool, String> {
        sound(self.pool)?;
        let retired = self.pool.stats().retired;
        ensure(retired.blocks == 0, || format!("{retired:?}"))?;
        Ok(crash.finished || crash.progress > 0)
    }

    /// Exactly those keys are there, but for `key`; nothing else is allocated.
    fn holds(&self, keys: u64, key: u64) -> Result<Option<[u64; 3]>, String> {
        let map = self.map();
        for other in (0..keys).filter(|&other| other != key) {
            let found = map.get_copied(&other);
            ensure(found == Some(value(other)), || {
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
            let inserted = self.map().insert(&key, value(key));
            inserted.map(drop).map_err(|e| format!("{e:?}"))?;
        }
        self.map = None;
        let removed = self.pool.remove_name("map");
        removed.map_err(|e| format!("{e:?}"))?;
        self.pool.recover();
        let now = self.pool.stats().allocated;
        ensure(now == self.before, || {
            format!("{now} bytes, not {}", self.before)
        })
    }
}

fn case(name: &str, keys: u64, operation: impl Fn(&mut Bench) + 'static) -> Case<Bench> {
    in_pool::case(name, move || Bench::new(keys))
        // The victim has its slot, and its caches of blocks.
        .attach(|bench| {
            bench.open();
            bench.map().insert(&0, value(0)).expect("room");
            bench.pool.recover();
        })
        .operation(move |bench| {
            operation(bench);
            progress(1);
        })
        .survivor(Bench::open)
}

/// A case about one key, which has `old` before and `new` afterwards.
fn about(
    name: &str,
    keys: u64,
    key: u64,
    (old, new): (Option<[u64; 3]>, Option<[u64; 3]>),
    operation: impl Fn(&Map) + 'static,
) -> Case<Bench> {
    case(name, keys, move |bench| operation(bench.map())).verify(move |bench, crash| {
        let done = bench.check(crash)?;
        let found = bench.holds(keys, key)?;
        ensure(found == new || found == old && !done, || {
            format!("{found:?}")
        })?;
        bench.ends()
    })
}

/// What a death at every instruction must leave of maps.
pub fn cases(suite: &mut Suite) {
    let new = Some(value(77));
    suite.run(about("map/insert", KEYS, 9, (None, new), |map| {
        assert!(map.insert(&9, value(77)).expect("room").is_none());
    }));
    suite.run(about(
        "map/replace",
        KEYS,
        3,
        (Some(value(3)), new),
        |map| {
            let old = map.insert(&3, value(77)).expect("room");
            assert_eq!(*old.expect("there"), value(3));
        },
    ));
    suite.run(about(
        "map/remove",
        KEYS,
        3,
        (Some(value(3)), None),
        |map| assert_eq!(*map.remove(&3).expect("there"), value(3)),
    ));
    suite.run(about("map/update", KEYS, 3, (Some(value(3)), new), |map| {
        let mut once = true;
        // The first attempt fails.
        let update = |old: Option<&[u64; 3]>| {
            if std::mem::take(&mut once) {
                map.insert(&3, value(3)).expect("room");
            }
            old.map(|_| value(77))
        };
        map.update(&3, update).expect("room");
    }));
    suite.run(about(
        "map/get_or_insert_with",
        KEYS,
        9,
        (None, new),
        |map| {
            let view = map.get_or_insert_with(&9, || value(77)).expect("room");
            assert_eq!(*view, value(77));
        },
    ));
    suite.run(
        case("map/first", 0, |bench| {
            bench.map().insert(&1, value(1)).expect("room");
        })
        .attach(|bench| {
            bench.open();
            bench.pool.recover();
        })
        .verify(|bench, crash| {
            let done = bench.check(crash)?;
            let found = bench.holds(0, 1)?;
            ensure(found == Some(value(1)) || found.is_none() && !done, || {
                format!("{found:?}")
            })?;
            bench.ends()
        }),
    );
    // With 48 entries the chunk gets a successor, to which the next insertion moves it.
    suite.run(
        case("map/grow", 47, |bench| {
            for key in 47..53 {
                bench.map().insert(&key, value(key)).expect("room");
            }
        })
        .verify(|bench, crash| {
            let done = bench.check(crash)?;
            let len = bench.map().len() as u64;
            ensure((47..=53).contains(&len) && (len == 53 || !done), || {
                format!("{len} entries")
            })?;
            // The last one is there, and the one after it is not.
            let last = bench.holds(len, len - 1)?;
            ensure(last == Some(value(len - 1)), || format!("{last:?}"))?;
            bench.ends()
        }),
    );
    suite.run(
        case("map/clear", KEYS, |bench| {
            bench.map().clear().expect("cleared");
        })
        .verify(|bench, crash| {
            let done = bench.check(crash)?;
            let len = bench.map().len();
            ensure(len == 0 || !done, || format!("{len} entries"))?;
            bench.ends()
        }),
    );
    // Two chunks of which one gets empty.
    suite.run(
        case("map/shrink", 0, |bench| {
            for key in 0..60 {
                bench.map().remove(&key);
            }
            for _ in 0..3 {
                bench.map().insert(&9, value(77)).expect("room");
            }
        })
        .attach(|bench| {
            bench.open();
            for key in 0..60 {
                bench.map().insert(&key, value(key)).expect("room");
            }
            for key in 3..60 {
                bench.map().remove(&key);
            }
            bench.pool.recover();
        })
        .verify(|bench, crash| {
            let done = bench.check(crash)?;
            let found = bench.map().get_copied(&9);
            ensure(found == Some(value(77)) || !done, || format!("{found:?}"))?;
            let len = bench.map().len();
            ensure(len <= 4 && (len == 1 || !done), || format!("{len} entries"))?;
            bench.ends()
        }),
    );
    suite.run(
        case("map/destroy", 60, |bench| bench.map = None)
            .attach(|bench| {
                bench.open();
                bench.pool.remove_name("map").expect("named");
            })
            .verify(|bench, crash| {
                bench.check(crash)?;
                // A victim that lives on holds it, or has let go of it.
                let now = bench.pool.stats().allocated;
                let gone = now == bench.before;
                ensure(gone || !crash.finished && bench.map.is_some(), || {
                    format!("{now} bytes, not {}", bench.before)
                })
            }),
    );
}
