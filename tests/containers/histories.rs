//! Recorded histories of cells, maps and heaps, from six processes, some of which are killed, must be
//! linearizable.
//!
//! `SHMKIT_HISTORIES` says how many of each kind are recorded and checked.

use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::{JoinError, scope};
use shmkit::{Gc, HashMap, Heap, HeapError, HeapView, MultiMap, SharedCell, ShmSafe, Trace, Tx};

use crate::assert_sound;
use crate::common::linear::{Event, Record, is_linearizable};
use crate::common::{Random, TestPool, die_in};

pub const WORKERS: usize = 6;
/// Histories that one set of processes makes, and operations of a process in each.
pub const ROUNDS: usize = 40;
pub const STEPS: usize = 4;

const SET: u64 = 0;
const GET: u64 = 1;
const REMOVE: u64 = 2;
const ADD: u64 = 3;
const FAIL: u64 = 4;

type Log = Record<WORKERS, { ROUNDS * STEPS }>;

fn histories() -> usize {
    let wanted = std::env::var("SHMKIT_HISTORIES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// A value or none, in a word.
pub fn word(value: Option<u64>) -> u64 {
    value.map_or(0, |value| value + 1)
}

/// What a register does; the state and the answer are as `word` gives them.
fn register(state: &u64, op: &[u64; 3]) -> (u64, u64) {
    match op[1] {
        SET => (op[2] + 1, *state),
        GET | FAIL => (*state, *state),
        REMOVE => (0, *state),
        _ => (state.max(&1) + op[2], *state),
    }
}

/// What a stack does: its values with the top last, none of which is 0.
fn stack(state: &[u64], op: &[u64; 3]) -> (Vec<u64>, u64) {
    let mut next = state.to_vec();
    let top = state.last().map_or(0, |top| top + 1);
    match op[1] {
        SET => next.push(op[2]),
        REMOVE => drop(next.pop()),
        _ => {}
    }
    // A push does not tell what it hides.
    (next, if op[1] == SET { 0 } else { top })
}

/// What was recorded and checked of one kind.
pub struct Histories {
    pub pool: TestPool,
    pub seed: u64,
    checked: usize,
    /// Operations that a kill has cut off.
    cut_off: usize,
}

impl Histories {
    pub fn new() -> Self {
        Histories {
            pool: TestPool::new(),
            seed: 0,
            checked: 0,
            cut_off: 0,
        }
    }

    /// True, with another seed, if there are to be more.
    pub fn go_on(&mut self) -> bool {
        self.seed += 1;
        self.checked < histories()
    }

    /// Six processes do `step(round, kind, value)`, of which the answer is a word; two are killed
    /// at an instruction of one.
    pub fn record(
        &mut self,
        kinds: &[u64],
        step: impl Fn(usize, u64, u64) -> u64 + Copy + Send,
    ) -> Vec<Event<[u64; 3], u64>> {
        let step = move |_: &mut (), round, kind, value| step(round, kind, value);
        self.record_with(kinds, |(), _, kind| kind, step)
    }

    /// The same of processes with a state. `which` makes something else of a kind, that is the last one of
    /// its round or not.
    pub fn record_with<S: Default>(
        &mut self,
        kinds: &[u64],
        which: impl Fn(&S, bool, u64) -> u64 + Copy + Send,
        step: impl Fn(&mut S, usize, u64, u64) -> u64 + Copy + Send,
    ) -> Vec<Event<[u64; 3], u64>> {
        let events = record(&self.pool, self.seed, kinds, which, step);
        self.cut_off += events.iter().filter(|event| event.ret.is_none()).count();
        events
    }

    /// Checks the histories of each round.
    pub fn check<S: Clone + Eq + std::hash::Hash + Default>(
        &mut self,
        events: &[Event<[u64; 3], u64>],
        apply: impl Fn(&S, &[u64; 3]) -> (S, u64) + Copy,
    ) {
        for round in 0..ROUNDS as u64 {
            let own = events.iter().filter(|event| event.op[0] == round);
            let own: Vec<_> = own.cloned().collect();
            assert!(is_linearizable(&S::default(), &own, apply), "{own:#?}");
            self.checked += usize::from(own.len() > 1);
        }
    }

    pub fn finish(self) {
        assert_sound(*self.pool);
        assert!(self.cut_off > 0, "no kill came while anybody did anything");
    }
}

fn record<S: Default>(
    pool: &TestPool,
    seed: u64,
    kinds: &[u64],
    which: impl Fn(&S, bool, u64) -> u64 + Copy + Send,
    step: impl Fn(&mut S, usize, u64, u64) -> u64 + Copy + Send,
) -> Vec<Event<[u64; 3], u64>> {
    let log = pool.create(const { Log::new() }).unwrap();
    let arrived = pool.create([const { AtomicU64::new(0) }; ROUNDS]).unwrap();
    scope(|s| {
        let children: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (log, arrived) = (&log, &arrived);
                s.spawn(move || {
                    let mut random = Random::new(seed * 10 + worker as u64);
                    let mut own = S::default();
                    let fatal = (worker < 2).then(|| random.below(ROUNDS * STEPS));
                    for round in 0..ROUNDS {
                        // Together, if the others are about to come.
                        arrived[round].fetch_add(1, Ordering::Relaxed);
                        for _ in 0..50 {
                            if arrived[round].load(Ordering::Relaxed) >= WORKERS as u64 - 2 {
                                break;
                            }
                            std::thread::yield_now();
                        }
                        for n in 0..STEPS {
                            let kind = kinds[random.below(kinds.len())];
                            let kind = which(&own, n + 1 == STEPS, kind);
                            let value = (worker * STEPS + n + 1) as u64 * 1000;
                            let what = [round as u64, kind, value];
                            let number = round * STEPS + n;
                            let step = || {
                                if fatal == Some(number) {
                                    die_in(1 + random.below(2000) as i64);
                                }
                                step(&mut own, round, kind, value)
                            };
                            log.run(worker, number, what, step);
                        }
                    }
                })
                .unwrap()
            })
            .collect();
        for (worker, child) in children.into_iter().enumerate() {
            let ended = child.join();
            // It may have come to its end first.
            let killed = worker < 2 && matches!(ended, Err(JoinError::Signaled(libc::SIGKILL)));
            assert!(killed || ended.is_ok(), "{ended:?}");
        }
    });
    log.events()
}

pub fn histories_of_cells() {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let cells = pool
            .create([const { SharedCell::<u64>::new() }; ROUNDS])
            .unwrap();
        let events = histories.record(&[SET, GET, ADD], |round, kind, value| {
            let cell = &cells[round];
            match kind {
                SET => word(cell.replace(value).unwrap().map(|old| *old)),
                GET => word(cell.get()),
                _ => {
                    let mut seen = None;
                    let add = |old: Option<&u64>| {
                        seen = old.copied();
                        seen.unwrap_or(0) + value
                    };
                    cell.update(add).unwrap();
                    word(seen)
                }
            }
        });
        histories.check::<u64>(&events, register);
    }
    histories.finish();
}

/// A map whose values lie in its table.
pub fn histories_of_flat_maps() {
    histories_of::<u64>(|value| value, |held| *held);
}

/// A map whose values lie in nodes.
pub fn histories_of_maps() {
    histories_of::<[u64; 2]>(
        |value| [value, !value],
        |held| {
            assert_eq!(held[1], !held[0]);
            held[0]
        },
    );
}

fn histories_of<V: ShmSafe + Unpin + Copy>(hold: fn(u64) -> V, of: fn(&V) -> u64) {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let map = pool.create(HashMap::<u64, V>::new()).unwrap();
        // A chunk that gets longer, one that becomes two, or several.
        for other in 0..[0, 80, 120][histories.seed as usize % 3] {
            map.insert(&(1 << 63 | other), hold(0)).unwrap();
        }
        let events = histories.record(&[SET, GET, REMOVE, ADD], |round, kind, value| {
            let key = round as u64;
            // Others in the same chunk, so that the table is on the move all the time.
            map.insert(&(key << 32 | value), hold(0)).unwrap();
            map.remove(&((key.wrapping_sub(1)) << 32 | value));
            word(match kind {
                SET => map.insert(&key, hold(value)).unwrap().map(|old| of(&old)),
                GET => map.get_copied(&key).map(|held| of(&held)),
                REMOVE => map.remove(&key).map(|old| of(&old)),
                _ => {
                    let add = |old: Option<&V>| Some(hold(old.map_or(0, of) + value));
                    map.update(&key, add).unwrap().map(|old| of(&old))
                }
            })
        });
        histories.check::<u64>(&events, register);
    }
    histories.finish();
}

pub fn histories_of_multi_maps() {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let map = pool.create(MultiMap::<u64, u64>::new()).unwrap();
        let events = histories.record(&[SET, GET, REMOVE], |round, kind, value| {
            let key = round as u64;
            match kind {
                SET => {
                    map.push(&key, value).unwrap();
                    0
                }
                GET => word(map.get(&key).map(|top| *top)),
                _ => word(map.pop(&key).map(|top| *top)),
            }
        });
        histories.check::<Vec<u64>>(&events, |state, op| stack(state, op));
    }
    histories.finish();
}

/// One of a ring of objects that all have the same value.
#[derive(Clone, Copy, ShmSafe, Trace)]
struct Link {
    value: u64,
    next: Option<Gc<Link>>,
}

/// A ring a round, or none.
type Rings = [Option<Gc<Link>>; ROUNDS];

const RING: usize = 8;

/// The ids of a ring, and its value in a word: no state if they do not have the same.
fn ring(first: Option<Gc<Link>>, get: impl Fn(Gc<Link>) -> Option<Link>) -> (Vec<Gc<Link>>, u64) {
    const TORN: u64 = u64::MAX;
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    let mut next = first;
    while let Some(id) = next.filter(|id| !ids.contains(id)) {
        ids.push(id);
        let link = get(id);
        values.push(link.map_or(TORN, |link| link.value + 1));
        next = link.and_then(|link| link.next);
    }
    let whole = ids.len() == if first.is_some() { RING } else { 0 } && next == first;
    let one = values.first().copied().unwrap_or(0);
    let same = whole && values.iter().all(|&value| value == one);
    (ids, if same { one } else { TORN })
}

fn seen(view: &HeapView<'_, Rings>, round: usize) -> u64 {
    ring(view.root()[round], |id| view.get(id).copied()).1
}

/// Does what it is told to a ring, in a transaction: what it was.
fn change(tx: &mut Tx<'_, Rings>, round: usize, kind: u64, value: u64) -> Result<u64, HeapError> {
    let (ids, was) = ring(tx.root()[round], |id| tx.get(id).copied());
    if kind == REMOVE {
        tx.root_mut()?[round] = None;
    } else if kind == ADD && was > 0 {
        for (n, id) in ids.into_iter().enumerate() {
            tx.get_mut(id)?.value += value;
            if n == RING / 2 {
                // Who kills runs now and then while a ring is half changed.
                std::thread::yield_now();
            }
        }
    } else {
        let last = tx.alloc(Link { value, next: None })?;
        let mut next = Some(last);
        for _ in 1..RING {
            next = Some(tx.alloc(Link { value, next })?);
        }
        tx.get_mut(last)?.next = next;
        tx.root_mut()?[round] = next;
    }
    Ok(was)
}

/// Transactions change many objects, and some of them fail. Between them there are collections.
pub fn histories_of_heaps() {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let heap = pool.create(Heap::new([None; ROUNDS])).unwrap();
        let kinds = [SET, GET, REMOVE, ADD, FAIL];
        let events = histories.record(&kinds, |round, kind, value| match kind {
            GET => seen(&heap.view().unwrap(), round),
            FAIL => {
                heap.collect().unwrap();
                let mut was = None;
                let failed = heap.try_modify(|tx| {
                    was = Some(change(tx, round, ADD, value)?);
                    change(tx, round, SET, value)?;
                    Err::<(), _>(HeapError::NoObject)
                });
                assert_eq!(failed, Err(HeapError::NoObject));
                was.unwrap()
            }
            _ => heap
                .try_modify(|tx| change(tx, round, kind, value))
                .unwrap(),
        });
        histories.check::<u64>(&events, register);
        let view = heap.view().unwrap();
        let rings = view.root().iter().flatten().count();
        drop(view);
        assert_eq!(heap.collect().unwrap().live, rings * RING);
    }
    histories.finish();
}

/// The check tells right from wrong.
pub fn the_check_of_histories_can_fail() {
    let event = |kind, value, call, ret: Option<(u64, u64)>| Event {
        op: [0, kind, value],
        call,
        ret,
    };
    let holds = |events: &[Event<[u64; 3], u64>]| is_linearizable(&0, events, register);
    // A read after a write that has returned sees it; one beside it may.
    assert!(holds(&[
        event(SET, 5, 1, Some((2, 0))),
        event(GET, 0, 3, Some((4, 6)))
    ]));
    assert!(!holds(&[
        event(SET, 5, 1, Some((2, 0))),
        event(GET, 0, 3, Some((4, 0)))
    ]));
    assert!(holds(&[
        event(SET, 5, 1, Some((4, 0))),
        event(GET, 0, 2, Some((3, 0)))
    ]));
    // What was killed has happened or not, but not both.
    let killed = event(SET, 5, 1, None);
    let reads = |a, b| {
        [
            event(GET, 0, 2, Some((3, a))),
            event(GET, 0, 4, Some((5, b))),
        ]
    };
    for (first, second, right) in [(0, 0, true), (0, 6, true), (6, 6, true), (6, 0, false)] {
        let [a, b] = reads(first, second);
        assert_eq!(holds(&[killed.clone(), a, b]), right);
    }
    // Two cannot remove the same value.
    let removals = [
        event(SET, 5, 1, Some((2, 0))),
        event(REMOVE, 0, 3, Some((6, 6))),
        event(REMOVE, 0, 4, Some((5, 6))),
    ];
    assert!(!holds(&removals));
}
