//! Maps of stacks: pushed to, popped, replaced, cleared, destroyed.

use shmkit::MultiMap;

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, Named, ensure, happened, pool, sound};
use super::map::InOrder;

pub type Map = MultiMap<u64, u64, InOrder>;

/// The first of the other keys.
pub const OTHERS: u64 = 100;

/// A pool with a map, in which key 7 has 1, and 2 on top of it, and so many other keys themselves.
pub fn bench(others: u64) -> Named<Map> {
    Named::new(pool(), Map::with_hasher(), |map| {
        map.push(&7, 1).expect("room");
        map.push(&7, 2).expect("room");
        for key in OTHERS..OTHERS + others {
            map.push(&key, key).expect("room");
        }
    })
}

pub fn all(map: &Map, key: u64) -> Vec<u64> {
    let mut all = Vec::new();
    let mut bindings = map.get_all(&key);
    while let Some(&value) = bindings.next() {
        all.push(value);
    }
    all
}

/// The victim has its slot, and its caches of blocks.
pub fn enter(map: &mut Named<Map>) {
    map.open();
    map.push(&8, 1).expect("room");
    map.pop(&8);
    map.pool.recover();
}

fn check(map: &mut Named<Map>, crash: &Crash, old: &[u64], new: &[u64]) -> Result<(), String> {
    sound(map.pool)?;
    if map.is_open() {
        let (all, len) = (all(map, 7), map.len());
        ensure(len == all.len(), || format!("{len} of {all:?}"))?;
        happened(crash, all, old, new)?;
    }
    map.ends()
}

/// All but `from` to `to` of the other keys are there, and of those the first ones, or all.
fn check_others(map: &mut Named<Map>, crash: &Crash, from: u64, to: u64) -> Result<(), String> {
    sound(map.pool)?;
    let there = |key: &u64| all(map, OTHERS + key) == [OTHERS + key];
    let count = (0..to).take_while(there).count() as u64;
    ensure(count >= from && (count == to || !crash.done()), || {
        format!("{count} other keys")
    })?;
    let len = map.len() as u64;
    ensure(len == count + 2 && all(map, 7) == [2, 1], || {
        format!("{len} bindings with {count} other keys")
    })?;
    map.ends()
}

/// Of each key those on top are gone; of all that there are, all, if the victim was done.
fn check_cleared(map: &mut Named<Map>, crash: &Crash) -> Result<(), String> {
    sound(map.pool)?;
    let mut left = all(map, 7);
    ensure([2, 1].ends_with(&left), || format!("{left:?}"))?;
    for key in [OTHERS, OTHERS + 1] {
        let other = all(map, key);
        ensure([key].ends_with(&other), || format!("{key}: {other:?}"))?;
        left.extend(other);
    }
    ensure(map.len() == left.len(), || {
        format!("{} of {left:?}", map.len())
    })?;
    ensure(left.is_empty() || !crash.done(), || {
        format!("{left:?} are left")
    })?;
    map.ends()
}

/// Those on top are gone, or all of the key's; another key keeps its own.
fn check_popped(map: &mut Named<Map>, crash: &Crash) -> Result<(), String> {
    sound(map.pool)?;
    if map.is_open() {
        let (left, len) = (all(map, 7), map.len());
        ensure([2, 1].ends_with(&left), || format!("{left:?}"))?;
        ensure(left.is_empty() || !crash.done(), || {
            format!("{left:?} are left")
        })?;
        ensure(
            all(map, OTHERS) == [OTHERS] && len == left.len() + 1,
            || format!("{len} bindings with {left:?}"),
        )?;
    }
    map.ends()
}

fn case(
    name: &str,
    others: u64,
    operation: impl Fn(&mut Named<Map>) + 'static,
) -> Case<Named<Map>> {
    in_pool::case(name, move || bench(others))
        .attach(enter)
        .operation(move |map| {
            operation(map);
            progress(1);
        })
        .survivor(Named::open)
}

/// A case about the key 7, which has `new` afterwards.
fn about(
    name: &str,
    new: &'static [u64],
    operation: impl Fn(&mut Named<Map>) + 'static,
) -> Case<Named<Map>> {
    case(name, 0, operation).verify(move |map, crash| check(map, crash, &[2, 1], new))
}

/// What a death at every instruction must leave of maps of stacks.
pub fn cases(suite: &mut Suite) {
    suite.run(about("multi_map/push", &[3, 2, 1], |map| {
        map.push(&7, 3).expect("room");
    }));
    suite.run(about("multi_map/pop", &[1], |map| {
        assert_eq!(*map.pop(&7).expect("there"), 2);
    }));
    suite.run(about("multi_map/replace", &[3, 1], |map| {
        let old = map.replace(&7, 3).expect("room");
        assert_eq!(*old.expect("there"), 2);
    }));
    suite.run(
        case("multi_map/pop_all", 1, |map| {
            map.pop_all(&7).expect("popped");
        })
        .verify(check_popped),
    );
    suite.run(
        case("multi_map/clear", 2, |map| {
            map.clear().expect("cleared");
        })
        .verify(check_cleared),
    );
    // With the key 7, a chunk of 48 gets full.
    let (full, more) = (46, 50);
    suite.run(
        case("multi_map/grow", full, move |map| {
            for key in OTHERS + full..OTHERS + more {
                map.push(&key, key).expect("room");
            }
        })
        .verify(move |map, crash| check_others(map, crash, full, more)),
    );
    suite.run(about("multi_map/destroy", &[], Named::close).attach(|map| {
        map.open();
        map.unname().expect("named");
    }));
}
