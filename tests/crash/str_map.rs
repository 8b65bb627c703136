//! Maps whose keys have a length of their own: a key lies in its entry's node, and comes and goes with it.

use shmkit::HashMap;

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, Named, ensure, happened, pool, sound};

type Map = HashMap<str, u64>;

/// Keys that are in the map, of different lengths.
const KEYS: [&str; 3] = ["", "short", LONG];
const LONG: &str =
    "a key that is longer than a word, and than a line of the table, and than its own value is";
/// A key that is not, and differs from one that is in its last letter.
const OTHER: &str =
    "a key that is longer than a word, and than a line of the table, and than its own value was";

/// A pool with a map, in which each key has its length.
fn bench() -> Named<Map> {
    Named::new(pool(), Map::new(), |map| {
        for key in KEYS {
            map.insert(key, key.len() as u64).expect("room");
        }
    })
}

/// One key has `old` or `new`, the others what they had; all of it goes.
fn check(
    map: &mut Named<Map>,
    crash: &Crash,
    key: &str,
    (old, new): (Option<u64>, Option<u64>),
) -> Result<(), String> {
    sound(map.pool)?;
    let found = map.get_copied(key);
    happened(crash, found, old, new)?;
    let mut expected = usize::from(found.is_some());
    for other in KEYS.into_iter().filter(|&other| other != key) {
        let found = map.get_copied(other);
        ensure(found == Some(other.len() as u64), || {
            format!("{other}: {found:?}")
        })?;
        expected += 1;
    }
    let len = map.len();
    ensure(len == expected, || format!("{len} entries, not {expected}"))?;
    map.ends()
}

/// A case about one key, which has the one value before and the other afterwards.
fn about(
    name: &str,
    key: &'static str,
    change: (Option<u64>, Option<u64>),
    operation: impl Fn(&Map) + 'static,
) -> Case<Named<Map>> {
    in_pool::case(format!("str map/{name}"), bench)
        // The victim has its slot, and its caches of blocks.
        .attach(|map| {
            map.open();
            map.insert("short", 5).expect("room");
            map.pool.recover();
        })
        .operation(move |map| {
            operation(map);
            progress(1);
        })
        .survivor(Named::open)
        .verify(move |map, crash| check(map, crash, key, change))
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
