//! Stacks of values by keys: compared with a model, and with workers that are killed.

use std::borrow::Borrow;
use std::collections::HashMap as Model;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use shmkit::process::{JoinError, scope};
use shmkit::{Bindings, ChangeError, Key, MultiMap, Pool, ShmSafe};

use crate::common::{Random, TestPool};
use crate::full_maps::lives_on_what_it_outgrows;
use crate::{Sealed, allocated, assert_sound, on_random};

fn values<K: ?Sized + Key, V: ShmSafe + Unpin + Copy>(mut all: Bindings<'_, K, V>) -> Vec<V> {
    let mut values = Vec::new();
    while let Some(value) = all.next() {
        values.push(*value);
    }
    values
}

#[derive(Clone, Debug)]
enum Step {
    Push(u16, u64),
    Replace(u16, u64),
    Pop(u16),
    TryPop(u16),
    /// Looks at a stack, and keeps what it sees.
    Look(u16),
    /// Ends one of the looks.
    LookAway(usize),
    Fill(u16, u16),
    Drain(u16, u16),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    // Some stacks get high, and some keys are many.
    let key = || prop_oneof![2 => 0..6_u16, 1 => 0..300_u16];
    prop_oneof![
        8 => (key(), any::<u64>()).prop_map(|(k, v)| Step::Push(k, v)),
        3 => (key(), any::<u64>()).prop_map(|(k, v)| Step::Replace(k, v)),
        4 => key().prop_map(Step::Pop),
        2 => key().prop_map(Step::TryPop),
        3 => key().prop_map(Step::Look),
        2 => (0..4_usize).prop_map(Step::LookAway),
        1 => (key(), 1..200_u16).prop_map(|(k, n)| Step::Fill(k, n)),
        1 => (key(), 1..300_u16).prop_map(|(k, n)| Step::Drain(k, n)),
        1 => Just(Step::Clear),
    ]
}

/// Runs the steps on a map of what `key` and `of` make, and on `Vec`s by keys.
fn compare<K, O, V>(pool: Pool, steps: &[Step], key: fn(u16) -> O, of: fn(u64) -> V)
where
    K: ?Sized + Key,
    O: Borrow<K>,
    V: ShmSafe + Unpin + Copy + PartialEq + Debug,
{
    let map = pool.create(MultiMap::<K, V>::new()).unwrap();
    let mut model: Model<u16, Vec<V>> = Model::new();
    let mut looks = Vec::new();
    for step in steps {
        match *step {
            Step::Push(k, v) => {
                map.push(key(k).borrow(), of(v)).unwrap();
                model.entry(k).or_default().push(of(v));
            }
            Step::Replace(k, v) => {
                let stack = model.entry(k).or_default();
                let old = map.replace(key(k).borrow(), of(v)).unwrap();
                assert_eq!(old.as_deref().copied(), stack.pop());
                stack.push(of(v));
            }
            Step::Pop(k) => {
                let popped = map.pop(key(k).borrow()).map(|v| *v);
                assert_eq!(popped, model.entry(k).or_default().pop());
            }
            Step::TryPop(k) => {
                let popped = map.try_pop(key(k).borrow()).unwrap().map(|v| *v);
                assert_eq!(popped, model.entry(k).or_default().pop());
            }
            Step::Look(k) => {
                let (k, stack) = (key(k), model.entry(k).or_default().clone());
                let (top, all) = (map.get(k.borrow()), map.get_all(k.borrow()));
                assert_eq!(map.contains_key(k.borrow()), !stack.is_empty());
                looks.push((top, all, stack));
            }
            Step::LookAway(i) if i < looks.len() => {
                let (top, all, stack) = looks.remove(i);
                assert_eq!(top.as_deref(), stack.last());
                assert_eq!(values(all), reversed(&stack));
            }
            Step::LookAway(_) => {}
            Step::Fill(k, n) => (k..k + n).for_each(|k| {
                map.push(key(k).borrow(), of(k.into())).unwrap();
                model.entry(k).or_default().push(of(k.into()));
            }),
            Step::Drain(k, n) => (k..k + n).for_each(|k| {
                let popped = map.pop(key(k).borrow()).map(|v| *v);
                assert_eq!(popped, model.entry(k).or_default().pop());
            }),
            Step::Clear => {
                map.clear().unwrap();
                model.clear();
            }
        }
        let len = model.values().map(Vec::len).sum::<usize>();
        assert_eq!((map.len(), map.is_empty()), (len, len == 0));
    }
    let mut met = Model::<Vec<u8>, Vec<V>>::new();
    map.for_each(|key, &value| met.entry(key.bytes().into()).or_default().push(value));
    for (&k, stack) in &model {
        assert_eq!(values(map.get_all(key(k).borrow())), reversed(stack));
        let met = met.remove(key(k).borrow().bytes());
        assert_eq!(met.unwrap_or_default(), reversed(stack));
    }
    assert!(met.is_empty());
    for (top, all, stack) in looks {
        assert_eq!(top.as_deref(), stack.last());
        assert_eq!(values(all), reversed(&stack));
    }
    assert_sound(pool);
}

/// As they come out: the top first.
fn reversed<V: Copy>(stack: &[V]) -> Vec<V> {
    stack.iter().rev().copied().collect()
}

pub fn stacks_behave_like_vecs() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    on_random(60, &prop::collection::vec(step(), 1..120), |steps| {
        compare::<u64, _, _>(*pool, &steps, u64::from, Sealed::new);
        compare::<str, _, _>(*pool, &steps, |k| "k".repeat(k.into()), |v| v as u8);
        assert_eq!(allocated(*pool), before);
    });
    assert_sound(*pool);
}

pub fn pushes_live_on_what_they_outgrow() {
    type Map = MultiMap<u64, [u64; 8]>;
    type Change = fn(&Map, u64) -> Result<(), ChangeError>;
    let changes: [Change; 3] = [
        |map, new| map.push(&new, [7; 8]).map_err(|refused| refused.cause),
        |map, _| map.push(&3, [7; 8]).map_err(|refused| refused.cause),
        |map, _| {
            map.replace(&3, [7; 8])
                .map(drop)
                .map_err(|refused| refused.cause)
        },
    ];
    for change in changes {
        let push = |map: &Map, key| map.push(&key, [0; 8]).unwrap();
        let pop = |map: &Map, key| drop(map.pop(&key));
        lives_on_what_it_outgrows(Map::new(), push, pop, change);
    }
}

pub fn stacks_outside_of_a_pool() {
    let map = MultiMap::<str, u8>::new();
    let refused = map.push("a", 1).unwrap_err();
    assert_eq!((refused.value, refused.cause), (1, ChangeError::NotInPool));
    assert!(map.pop("a").is_none() && map.get_all("a").next().is_none());
    assert_eq!(map.clear(), Err(ChangeError::NotInPool));
    assert_eq!(map.pop_all("a"), Err(ChangeError::NotInPool));
    map.for_each(|_, _| unreachable!());
}

/// Who pops while a stack is cleared gets what was on top before, and nothing from the middle of it; other
/// keys keep what they have.
pub fn a_stack_is_cleared_at_once() {
    const VALUES: u64 = 5000;
    let pool = TestPool::new();
    let map = pool.create(MultiMap::<u64, u64>::new()).unwrap();
    for round in 0..20 {
        map.push(&8, 1).unwrap();
        (0..VALUES).for_each(|n| map.push(&7, n).unwrap());
        let pops = AtomicU64::new(0);
        let pop = || {
            pops.fetch_add(1, Ordering::Relaxed);
            map.pop(&7).map(|value| *value)
        };
        let popped: Vec<u64> = std::thread::scope(|s| {
            let popper = s.spawn(|| std::iter::from_fn(&pop).collect());
            while pops.load(Ordering::Relaxed) < 100 {
                std::thread::yield_now();
            }
            match round % 2 {
                0 => map.clear().unwrap(),
                _ => map.pop_all(&7).unwrap(),
            }
            popper.join().unwrap()
        });
        let first = VALUES - popped.len() as u64;
        assert!(popped.iter().rev().copied().eq(first..VALUES));
        assert_eq!(map.len(), round % 2);
        map.pop_all(&8).unwrap();
        // A key that has none.
        map.pop_all(&8).unwrap();
        assert!(map.is_empty());
    }
    assert_sound(*pool);
}

pub fn killed_users_of_stacks_lose_nothing() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let map = pool.create(MultiMap::<u64, Sealed>::new()).unwrap();
    let balance = pool.create([const { AtomicU64::new(0) }; 2]).unwrap();
    let rounds = 80;
    for round in 0..rounds {
        scope(|s| {
            let children: Vec<_> = (0..2)
                .map(|worker| {
                    let (map, balance) = (&map, &balance);
                    s.spawn(move || {
                        let mut random = Random::new(round * 2 + worker);
                        for n in 0_u64.. {
                            let key = random.below(200) as u64;
                            if random.below(2) == 0 {
                                map.push(&key, Sealed::new(n << 8 | key)).unwrap();
                                balance[0].fetch_add(1, Ordering::Relaxed);
                            } else if let Some(old) = map.pop(&key) {
                                assert!(old.is_whole() && old.a & 0xff == key);
                                balance[1].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                    .unwrap()
                })
                .collect();
            let start = balance[0].load(Ordering::Relaxed);
            while balance[0].load(Ordering::Relaxed) - start < 10 + round * 5 {
                std::thread::yield_now();
            }
            for child in children {
                child.kill().unwrap();
                assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
            }
        });
    }
    assert_sound(*pool);
    let [pushed, popped] = [&balance[0], &balance[1]].map(|n| n.load(Ordering::Relaxed));
    let len = map.len() as u64;
    // Each of the dead may have been between its change and its count.
    assert!(len <= pushed + 2 * rounds - popped && len + 2 * rounds >= pushed - popped);
    for key in 0..200 {
        let fits = |value: &Sealed| value.is_whole() && value.a & 0xff == key;
        assert!(values(map.get_all(&key)).iter().all(fits));
    }
    drop((map, balance));
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}
