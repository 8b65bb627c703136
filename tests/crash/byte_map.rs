//! Maps of byte strings: put, replaced by longer and shorter ones, removed. For their tables see `map`.

use shmkit::{HashMap, Pool};

use super::engine::{Case, Suite, progress};
use super::in_pool::{self, InPool, Named, ensure, happened, pool, sound};
use super::map::InOrder;

type Map = HashMap<u64, [u8], InOrder>;

/// Keys that are in the map in every case.
const KEYS: u64 = 5;

struct Bench(Named<Map>);

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.0.pool
    }
}

/// Where values come from, so that a victim does not spend its time making them. Most of a large one is zeros, as new
/// memory is: to store them is no change.
static BYTES: [u8; LARGE + 100] = {
    let mut bytes = [0; LARGE + 100];
    let mut at = 0;
    while at < 1000 {
        bytes[at] = (at % 251) as u8;
        at += 1;
    }
    bytes[LARGE] = 1;
    bytes
};

/// So many bytes have a run of their own.
const LARGE: usize = 40_000;

/// What a key has: a few bytes, some hundred, or very many.
fn value(n: u64) -> &'static [u8] {
    let n = n as usize;
    let length = match n {
        8.. => LARGE,
        _ if n.is_multiple_of(2) => n,
        _ => n * 100,
    };
    &BYTES[n..n + length]
}

impl Bench {
    fn new() -> Self {
        Bench(Named::new(pool(), Map::with_hasher(), |map| {
            for key in 0..KEYS {
                map.insert_bytes(&key, value(key)).expect("room");
            }
        }))
    }

    /// The victim has its slot, and its caches of blocks.
    fn enter(&mut self) {
        self.0.open();
        self.0.insert_bytes(&0, value(0)).expect("room");
        self.0.pool.recover();
    }

    /// What a key has. All others have what they had.
    fn holds(&self, key: u64) -> Result<Option<Vec<u8>>, String> {
        let map = &self.0;
        for other in (0..KEYS).filter(|&other| other != key) {
            let found = map.get(&other);
            ensure(found.as_deref() == Some(value(other)), || {
                format!("{other}: {found:?}")
            })?;
        }
        let found = map.get(&key).map(|value| value.to_vec());
        let mut seen = 0;
        map.for_each(|_, _| seen += 1);
        let expected = KEYS as usize - usize::from(key < KEYS) + usize::from(found.is_some());
        ensure((seen, map.len()) == (expected, expected), || {
            format!("{seen} and {} entries, not {expected}", map.len())
        })?;
        Ok(found)
    }
}

/// A case about one key, which has what is made of a number, before and afterwards.
fn about(
    name: &str,
    key: u64,
    [old, new]: [Option<u64>; 2],
    operation: impl Fn(&Map) + 'static,
) -> Case<Bench> {
    in_pool::case(format!("map of bytes/{name}"), Bench::new)
        .attach(Bench::enter)
        .operation(move |bench| {
            operation(&bench.0);
            progress(1);
        })
        .survivor(|bench| bench.0.open())
        .verify(move |bench, crash| {
            sound(bench.0.pool)?;
            let retired = bench.0.pool.stats().retired;
            ensure(retired.bytes == 0, || format!("{retired:?}"))?;
            let [old, new] = [old, new].map(|n| n.map(|n| value(n).to_vec()));
            happened(crash, bench.holds(key)?, old, new)?;
            bench
                .0
                .insert_bytes(&key, value(6))
                .map_err(|e| e.to_string())?;
            bench.0.ends()
        })
}

pub fn cases(suite: &mut Suite) {
    suite.run(about("insert", 9, [None, Some(8)], |map| {
        assert!(map.insert_bytes(&9, value(8)).expect("room").is_none());
    }));
    suite.run(about("replace by more", 2, [Some(2), Some(7)], |map| {
        let old = map.insert_bytes(&2, value(7)).expect("room");
        assert_eq!(old.as_deref(), Some(value(2)));
    }));
    suite.run(about("replace by less", 3, [Some(3), Some(6)], |map| {
        let old = map.insert_bytes(&3, value(6)).expect("room");
        assert_eq!(old.as_deref(), Some(value(3)));
    }));
    suite.run(about("remove", 3, [Some(3), None], |map| {
        assert_eq!(map.remove(&3).as_deref(), Some(value(3)));
    }));
    suite.run(about("update", 2, [Some(2), Some(7)], |map| {
        let mut once = true;
        // The first attempt fails.
        let update = |_: Option<&[u8]>| {
            if std::mem::take(&mut once) {
                map.insert_bytes(&2, value(2)).expect("room");
            }
            Some(value(7))
        };
        map.update_bytes(&2, update).expect("room");
    }));
    suite.run(about("compare_exchange", 2, [Some(2), Some(6)], |map| {
        let other = map.compare_exchange_bytes(&2, Some(value(4)), Some(value(7)));
        assert!(other.is_err());
        let was = map.compare_exchange_bytes(&2, Some(value(2)), Some(value(6)));
        assert_eq!(was.expect("it has that").as_deref(), Some(value(2)));
    }));
    suite.run(about("get_or_insert_with", 9, [None, Some(6)], |map| {
        let view = map.get_or_insert_bytes_with(&9, || value(6)).expect("room");
        assert_eq!(*view, value(6)[..]);
    }));
}
