//! Maps whose keys have a length of their own: a key lies in its entry's node, and comes and goes with it.

use shmkit::{HashMap, Pool, Shared};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, ensure, in_use, sound};

type Map = HashMap<str, u64>;

/// Keys that are in the map, of different lengths.
const KEYS: [&str; 3] = ["", "short", LONG];
const LONG: &str =
    "a key that is longer than a word, and than a line of the table, and than its own value is";
/// A key that is not, and differs from one that is in its last letter.
const OTHER: &str =
    "a key that is longer than a word, and than a line of the table, and than its own value was";

/// A pool with a map, in which each key has its length.
struct Bench {
    pool: Pool,
    map: Option<Shared<Map>>,
    before: usize,
}

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl Bench {
    fn new() -> Bench {
        let pool = Pool::builder().max_size(16 << 20).create().expect("a pool");
        let before = pool.stats().allocated;
        let map = pool.create(Map::new()).expect("room");
        for key in KEYS {
            map.insert(key, key.len() as u64).expect("room");
        }
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

    /// One key has `old` or `new`, the others what they had; all of it goes.
    fn check(
        &mut self,
        crash: &Crash,
        key: &str,
        (old, new): (Option<u64>, Option<u64>),
    ) -> Result<(), String> {
        sound(self.pool)?;
        let done = crash.finished || crash.progress > 0;
        let found = self.map().get_copied(key);
        ensure(found == new || found == old && !done, || {
            format!("{found:?}")
        })?;
        let mut expected = usize::from(found.is_some());
        for other in KEYS.into_iter().filter(|&other| other != key) {
            let found = self.map().get_copied(other);
            ensure(found == Some(other.len() as u64), || {
                format!("{other}: {found:?}")
            })?;
            expected += 1;
        }
        let len = self.map().len();
        ensure(len == expected, || format!("{len} entries, not {expected}"))?;
        self.map = None;
        let removed = self.pool.remove_name("map");
        removed.map_err(|e| format!("{e:?}"))?;
        self.pool.recover();
        in_use(self.pool, self.before)
    }
}

/// A case about one key, which has the one value before and the other afterwards.
fn about(
    name: &str,
    key: &'static str,
    change: (Option<u64>, Option<u64>),
    operation: impl Fn(&Map) + 'static,
) -> Case<Bench> {
    in_pool::case(format!("str map/{name}"), Bench::new)
        // The victim has its slot, and its caches of blocks.
        .attach(|bench| {
            bench.open();
            bench.map().insert("short", 5).expect("room");
            bench.pool.recover();
        })
        .operation(move |bench| {
            operation(bench.map());
            progress(1);
        })
        .survivor(Bench::open)
        .verify(move |bench, crash| bench.check(crash, key, change))
}

/// What a death at every instruction must leave of maps with such keys.
pub fn cases(suite: &mut Suite) {
    suite.run(about("insert", OTHER, (None, Some(7)), |map| {
        assert!(map.insert(OTHER, 7).expect("room").is_none());
    }));
    suite.run(about("replace", LONG, (Some(89), Some(7)), |map| {
        assert_eq!(*map.insert(LONG, 7).expect("room").expect("there"), 89);
    }));
    suite.run(about("remove", LONG, (Some(89), None), |map| {
        assert_eq!(*map.remove(LONG).expect("there"), 89);
    }));
}
