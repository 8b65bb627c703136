//! Maps whose entries are moving: a process that is stopped holds up the processes that change something in the chunk
//! that it changes, or in the one that it moves for the others, but no other process.

use std::ops::Range;
use std::sync::mpsc;

use super::super::engine::{Case, Crash, Suite, progress};
use super::super::in_pool::{self, Named, ensure};
use super::super::map::{Bench, Held, InOrder, Map};

/// Chunks of the table that is moving. Its successor has twice as many, so no two of these become one.
const CHUNKS: u64 = 4;
/// How many of them a stopped one may hold up.
const HELD: u64 = 2;

/// Keys that belong to one chunk, in the successor as well: so many from a number on.
fn keys(bench: &Bench<impl Held, InOrder>, from: u64, count: u64) -> impl Iterator<Item = u64> {
    let first = bench.new.next_multiple_of(2 * CHUNKS) + from;
    (0..count).map(move |n| first + n * 2 * CHUNKS)
}

/// The keys of the others that are of a chunk, in both chunks that it becomes.
fn of_others(bench: &Bench<impl Held, InOrder>, chunk: u64) -> Vec<u64> {
    let half = |from| keys(bench, 1000 * CHUNKS + chunk + from, 2);
    half(0).chain(half(CHUNKS)).collect()
}

const VICTIMS: u64 = 4;

fn case<V: Held>() -> Case<Bench<V, InOrder>> {
    in_pool::case(format!("overtaken/{}/by helpers", V::NAME), || {
        Bench::moving(CHUNKS as usize)
    })
    .attach(Bench::enter)
    .operation(|bench| {
        for (key, mark) in keys(bench, 0, VICTIMS).zip(1..) {
            bench.map.insert(&key, V::of(key)).expect("room");
            progress(mark);
        }
    })
    .survivor(Bench::open)
    .overtaken_by(|bench| {
        let (tell, told) = mpsc::channel();
        for chunk in 0..CHUNKS {
            let (pool, keys, tell) = (bench.map.pool, of_others(bench, chunk), tell.clone());
            std::thread::spawn(move || {
                let map = Named::<Map<V, InOrder>>::find(pool).expect("a map");
                for key in keys {
                    map.insert(&key, V::of(key)).expect("room");
                }
                let _ = tell.send(1 << chunk);
            });
        }
        // The others are killed where they are.
        let done = (0..CHUNKS - HELD).map(|_| told.recv().expect("one that is not held up"));
        progress(done.sum());
    })
    .verify(verify)
    .without_second_order()
    .without_real_kills()
}

fn verify<V: Held>(bench: &mut Bench<V, InOrder>, crash: &Crash) -> Result<(), String> {
    bench.check(crash)?;
    let is_there = |key: &u64| match bench.map.get_copied(key) {
        Some(value) if value == V::of(*key) => Ok(true),
        None => Ok(false),
        found => Err(format!("{key}: {found:?}")),
    };
    let count = |keys: &mut dyn Iterator<Item = u64>| {
        keys.map(|key| is_there(&key).map(u64::from))
            .sum::<Result<u64, _>>()
    };
    let all: Range<u64> = 0..bench.new;
    let old = count(&mut all.clone())?;
    ensure(old == bench.new, || format!("{old} of {all:?}"))?;
    let victims = count(&mut keys(bench, 0, VICTIMS))?;
    let may = [crash.progress, crash.progress + u64::from(!crash.finished)];
    ensure(may.contains(&victims), || {
        format!("{victims} of the victim's, not {may:?}")
    })?;
    let mut sum = old + victims;
    let told = crash.overtaken.map_or(0, |how| how.mark);
    for chunk in 0..CHUNKS {
        let keys = of_others(bench, chunk);
        let found = count(&mut keys.iter().copied())?;
        let all = told >> chunk & 1 == 0 || found == keys.len() as u64;
        ensure(all && (found == 0 || crash.overtaken.is_some()), || {
            format!("{found} of the others' in chunk {chunk}, told of {told:b}")
        })?;
        sum += found;
    }
    let (mut entries, mut seen) = (bench.map.iter(), 0);
    while entries.next().is_some() {
        seen += 1;
    }
    drop(entries);
    ensure(bench.map.len() as u64 == sum && seen == sum, || {
        format!("{} and {seen} entries, not {sum}", bench.map.len())
    })?;
    bench.ends()
}

pub fn cases(suite: &mut Suite) {
    suite.run(case::<[u64; 3]>());
    suite.run(case::<u64>());
}
