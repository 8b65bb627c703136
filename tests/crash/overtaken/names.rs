//! Objects and their names.

use std::collections::BTreeMap;

use shmkit::{NamedError, Pool};

use super::super::engine::{Crash, Suite};
use super::super::in_pool::{self, InPool, in_use, sound};
use super::{NONE, Operation};

/// A pool with the object `a`, which is 1, and `b`, which is 2.
struct World {
    pool: Pool,
    /// Bytes in use with no names.
    before: usize,
}

impl InPool for World {
    fn pool(&self) -> Pool {
        self.pool
    }
}

/// What is done to names.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// A new object gets it, unless another has it.
    Set(&'static str, u64),
    Remove(&'static str),
    Find(&'static str),
    /// Which of the names there are, a bit each. No others.
    All,
    FindOrCreate(&'static str, u64),
}

/// The last one is longer, and is in the place of the one that was removed first.
const NAMES: [&str; 4] = ["a", "b", "c", "dddddddddd"];

impl World {
    fn new() -> World {
        let pool = in_pool::pool();
        // Types are described once, and tables made.
        let world = World { pool, before: 0 };
        for name in NAMES {
            world.set(name, 0);
        }
        for name in NAMES {
            pool.remove_name(name).expect("it is there");
        }
        pool.recover();
        let before = pool.stats().allocated;
        let world = World { pool, before };
        world.set("a", 1);
        world.set("b", 2);
        world
    }

    fn set(&self, name: &str, n: u64) -> bool {
        let object = self.pool.create(n).expect("room");
        match self.pool.set_name(name, &object) {
            Ok(()) => true,
            Err(NamedError::NameTaken) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn find(&self, name: &str) -> u64 {
        match self.pool.named::<u64>(name) {
            Ok(object) => *object,
            Err(NamedError::NotFound) => NONE,
            Err(error) => panic!("{error}"),
        }
    }
}

impl Operation for Do {
    type World = World;
    type Model = BTreeMap<&'static str, u64>;

    fn perform(self, world: &mut World) -> u64 {
        match self {
            Do::Set(name, n) => world.set(name, n).into(),
            Do::Remove(name) => match world.pool.remove_name(name) {
                Ok(()) => 0,
                Err(NamedError::NotFound) => NONE,
                Err(error) => panic!("{error}"),
            },
            Do::Find(name) => world.find(name),
            Do::All => {
                let place = |name: String| NAMES.iter().position(|known| *known == name);
                let places = world.pool.names().into_iter().map(place);
                places.fold(0, |all, place| {
                    all | 1 << place.expect("a name that was set")
                })
            }
            Do::FindOrCreate(name, n) => *world.pool.named_or_create(name, || n).expect("room"),
        }
    }

    fn model(self, model: &mut Self::Model) -> u64 {
        match self {
            Do::Set(name, n) => {
                let is_free = !model.contains_key(name);
                model.entry(name).or_insert(n);
                is_free.into()
            }
            Do::Remove(name) => model.remove(name).map_or(NONE, |_| 0),
            Do::Find(name) => model.get(name).copied().unwrap_or(NONE),
            Do::All => {
                let place = |name| NAMES.iter().position(|known| known == name).expect("known");
                model.keys().fold(0, |all, name| all | 1 << place(name))
            }
            Do::FindOrCreate(name, n) => *model.entry(name).or_insert(n),
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Find(_) | Do::All)
    }

    fn waits(self, _: bool) -> bool {
        // Names are changed under a lock.
        true
    }

    fn found(world: &mut World, _: &Crash) -> Result<Self::Model, String> {
        sound(world.pool)?;
        let found = NAMES.map(|name| (name, world.find(name)));
        Ok(found.into_iter().filter(|&(_, n)| n != NONE).collect())
    }

    fn ends(world: &mut World) -> Result<(), String> {
        for name in NAMES {
            let _ = world.pool.remove_name(name);
        }
        sound(world.pool)?;
        in_use(world.pool, world.before)
    }
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let old = |_: &World| BTreeMap::from([("a", 1), ("b", 2)]);
        let case = super::case(format!("name/{name}"), World::new, old, [victim, overtaker]);
        let enter = |world: &mut World| drop(world.pool.create(0_u64).expect("room"));
        suite.run(case.attach(enter));
    };
    case("set by set", &[Set("c", 7)], &[Set("c", 8)]);
    case(
        "set by another",
        &[Set("c", 7)],
        &[Set("dddddddddd", 8), Find("a")],
    );
    case("set anew by removal", &[Set("a", 7)], &[Remove("a")]);
    case(
        "removal by removal",
        &[Remove("a")],
        &[Remove("a"), Remove("b")],
    );
    case("removal by set", &[Remove("a")], &[Set("a", 8), Find("a")]);
    case(
        "all by a name in the place of another",
        &[Find("a"), All],
        &[Remove("b"), Set("dddddddddd", 8)],
    );
    case("find by removal", &[Find("a")], &[Remove("a"), Set("c", 8)]);
    case(
        "find or create by the same",
        &[FindOrCreate("c", 7)],
        &[FindOrCreate("c", 8)],
    );
    case(
        "find or create by removal",
        &[FindOrCreate("a", 7)],
        &[Remove("a")],
    );
}
