//! Maps of stacks: pushed to, popped, replaced, destroyed.

use shmkit::{MultiMap, Pool, Shared};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, ensure, in_use, sound};

type Map = MultiMap<u64, u64>;

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
        let pool = Pool::builder().max_size(16 << 20).create().expect("a pool");
        let before = pool.stats().allocated;
        let map = pool.create(Map::new()).expect("room");
        map.push(&7, 1).expect("room");
        map.push(&7, 2).expect("room");
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

    fn check(&mut self, crash: &Crash, old: &[u64], new: &[u64]) -> Result<(), String> {
        sound(self.pool)?;
        if self.map.is_some() {
            let mut all = Vec::new();
            let mut bindings = self.map().get_all(&7);
            while let Some(&value) = bindings.next() {
                all.push(value);
            }
            drop(bindings);
            let done = crash.finished || crash.progress > 0;
            ensure(all == new || all == old && !done, || format!("{all:?}"))?;
            let len = self.map().len();
            ensure(len == all.len(), || format!("{len} of {all:?}"))?;
            self.map = None;
            let removed = self.pool.remove_name("map");
            removed.map_err(|e| format!("{e:?}"))?;
            self.pool.recover();
        }
        in_use(self.pool, self.before)
    }
}

fn case(name: &str, new: &'static [u64], operation: impl Fn(&mut Bench) + 'static) -> Case<Bench> {
    in_pool::case(name, Bench::new)
        // The victim has its slot, and its caches of blocks.
        .attach(|bench| {
            bench.open();
            bench.map().push(&8, 1).expect("room");
            bench.map().pop(&8);
            bench.pool.recover();
        })
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
    suite.run(
        case("multi_map/destroy", &[], |bench| bench.map = None).attach(|bench| {
            bench.open();
            bench.pool.remove_name("map").expect("named");
        }),
    );
}
