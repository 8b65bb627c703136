//! Maps of stacks: pushed to, popped, replaced, destroyed.

use shmkit::{MultiMap, Pool, Shared};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, ensure, in_use, sound};

type Map = MultiMap<u64, u64>;

/// The first of the other keys.
const OTHERS: u64 = 100;

/// A pool with a map, in which key 7 has 1, and 2 on top of it.
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
        Bench::with(0)
    }

    /// So many other keys have themselves.
    fn with(others: u64) -> Bench {
        let pool = Pool::builder().max_size(16 << 20).create().expect("a pool");
        let before = pool.stats().allocated;
        let map = pool.create(Map::new()).expect("room");
        map.push(&7, 1).expect("room");
        map.push(&7, 2).expect("room");
        for key in OTHERS..OTHERS + others {
            map.push(&key, key).expect("room");
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

    fn all(&self, key: u64) -> Vec<u64> {
        let mut all = Vec::new();
        let mut bindings = self.map().get_all(&key);
        while let Some(&value) = bindings.next() {
            all.push(value);
        }
        all
    }

    fn check(&mut self, crash: &Crash, old: &[u64], new: &[u64]) -> Result<(), String> {
        sound(self.pool)?;
        if self.map.is_some() {
            let all = self.all(7);
            let done = crash.finished || crash.progress > 0;
            ensure(all == new || all == old && !done, || format!("{all:?}"))?;
            let len = self.map().len();
            ensure(len == all.len(), || format!("{len} of {all:?}"))?;
        }
        self.ends()
    }

    /// All but `from` to `to` of the other keys are there, and of those the first ones, or all.
    fn check_others(&mut self, crash: &Crash, from: u64, to: u64) -> Result<(), String> {
        sound(self.pool)?;
        let there = |key: &u64| self.all(OTHERS + key) == [OTHERS + key];
        let count = (0..to).take_while(there).count() as u64;
        let done = crash.finished || crash.progress > 0;
        ensure(count >= from && (count == to || !done), || {
            format!("{count} other keys")
        })?;
        let len = self.map().len() as u64;
        ensure(len == count + 2 && self.all(7) == [2, 1], || {
            format!("{len} bindings with {count} other keys")
        })?;
        self.ends()
    }

    /// The map goes, if it is there, with all that it has.
    fn ends(&mut self) -> Result<(), String> {
        if self.map.is_some() {
            self.map = None;
            let removed = self.pool.remove_name("map");
            removed.map_err(|e| format!("{e:?}"))?;
            self.pool.recover();
        }
        in_use(self.pool, self.before)
    }
}

/// The victim has its slot, and its caches of blocks.
fn attach(bench: &mut Bench) {
    bench.open();
    bench.map().push(&8, 1).expect("room");
    bench.map().pop(&8);
    bench.pool.recover();
}

fn case(name: &str, new: &'static [u64], operation: impl Fn(&mut Bench) + 'static) -> Case<Bench> {
    in_pool::case(name, Bench::new)
        .attach(attach)
        .operation(move |bench| {
            operation(bench);
            progress(1);
        })
        .survivor(Bench::open)
        .verify(move |bench, crash| bench.check(crash, &[2, 1], new))
}

/// What a death at every instruction must leave of maps of stacks.
pub fn cases(suite: &mut Suite) {
    suite.run(case("multi_map/push", &[3, 2, 1], |bench| {
        bench.map().push(&7, 3).expect("room");
    }));
    suite.run(case("multi_map/pop", &[1], |bench| {
        assert_eq!(*bench.map().pop(&7).expect("there"), 2);
    }));
    suite.run(case("multi_map/replace", &[3, 1], |bench| {
        let old = bench.map().replace(&7, 3).expect("room");
        assert_eq!(*old.expect("there"), 2);
    }));
    // With the key 7, a chunk of 48 gets full.
    let (full, more) = (46, 50);
    suite.run(
        in_pool::case("multi_map/grow", move || Bench::with(full))
            .attach(attach)
            .operation(move |bench: &mut Bench| {
                for key in OTHERS + full..OTHERS + more {
                    bench.map().push(&key, key).expect("room");
                }
                progress(1);
            })
            .survivor(Bench::open)
            .verify(move |bench, crash| bench.check_others(crash, full, more)),
    );
    suite.run(
        case("multi_map/destroy", &[], |bench| bench.map = None).attach(|bench| {
            bench.open();
            bench.pool.remove_name("map").expect("named");
        }),
    );
}
