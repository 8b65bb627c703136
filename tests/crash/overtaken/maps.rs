//! Maps.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::marker::PhantomData;

use shmkit::CompareError;

use super::super::engine::{Case, Crash, Suite};
use super::super::in_pool::ensure;
use super::super::map::{Bench, Held, InOrder, KEYS, Map};
use super::{NONE, Operation};

/// What is done to a map of numbers.
#[derive(Clone, Copy, Debug)]
enum Do {
    Insert(u64, u64),
    Remove(u64),
    /// One more, from 0.
    Count(u64),
    Exchange(u64, u64, u64),
    GetOrInsert(u64, u64),
    Get(u64),
    /// From entry to entry: how many of those that nobody changes are met, and once.
    Walk,
}

/// The same, in a map of one of the two kinds.
#[derive(Clone, Copy)]
struct In<V>(Do, PhantomData<V>);

impl<V> Debug for In<V> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<V: Held> Operation for In<V> {
    type World = Bench<V, InOrder>;
    type Model = BTreeMap<u64, u64>;

    fn perform(self, bench: &mut Bench<V, InOrder>) -> u64 {
        let map = &bench.map;
        let old = match self.0 {
            Do::Insert(key, n) => map.insert(&key, V::of(n)).expect("room"),
            Do::Remove(key) => map.remove(&key),
            Do::Count(key) => {
                let count = |n: Option<&V>| Some(V::of(n.map_or(0, |n| n.number() + 1)));
                map.update(&key, count).expect("room")
            }
            Do::Exchange(key, from, to) => {
                let changed = map.compare_exchange(&key, Some(&V::of(from)), Some(V::of(to)));
                match changed {
                    Ok(old) | Err(CompareError::Other(old)) => old,
                    Err(refused) => panic!("{refused}"),
                }
            }
            Do::GetOrInsert(key, n) => {
                let got = map.get_or_insert_with(&key, || V::of(n));
                Some(got.expect("room"))
            }
            Do::Get(key) => map.get(&key),
            Do::Walk => return walk(map),
        };
        old.map_or(NONE, |old| whole(&*old))
    }

    fn model(self, model: &mut Self::Model) -> u64 {
        let old = match self.0 {
            Do::Insert(key, n) => model.insert(key, n),
            Do::Remove(key) => model.remove(&key),
            Do::Count(key) => {
                let old = model.get(&key).copied();
                model.insert(key, old.map_or(0, |n| n + 1));
                old
            }
            Do::Exchange(key, from, to) => {
                let old = model.get(&key).copied();
                if old == Some(from) {
                    model.insert(key, to);
                }
                old
            }
            Do::GetOrInsert(key, n) => Some(*model.entry(key).or_insert(n)),
            Do::Get(key) => model.get(&key).copied(),
            Do::Walk => return model.keys().filter(|&key| is_unchanged(key)).count() as u64,
        };
        old.unwrap_or(NONE)
    }

    fn reads(self) -> bool {
        matches!(self.0, Do::Get(_) | Do::Walk)
    }

    fn waits(self, for_reader: bool) -> bool {
        // Writers of one chunk wait for each other.
        !self.reads() && !for_reader
    }

    fn found(bench: &mut Bench<V, InOrder>, crash: &Crash) -> Result<Self::Model, String> {
        bench.check(crash)?;
        let mut all = BTreeMap::new();
        let mut entries = bench.map.iter();
        while let Some((&key, &value)) = entries.next() {
            let again = all.insert(key, value.number());
            ensure(again.is_none(), || format!("{key} twice"))?;
            ensure(value == V::of(value.number()), || {
                format!("torn: {value:?}")
            })?;
            let found = bench.map.get_copied(&key);
            ensure(found == Some(value), || format!("{key}: {found:?}"))?;
        }
        let len = bench.map.len();
        ensure(len == all.len(), || format!("{len} of {all:?}"))?;
        Ok(all)
    }

    fn ends(bench: &mut Bench<V, InOrder>) -> Result<(), String> {
        bench.ends()
    }
}

fn whole<V: Held>(value: &V) -> u64 {
    assert_eq!(*value, V::of(value.number()), "torn");
    value.number()
}

/// Of the first keys those that no case changes.
fn is_unchanged(&key: &u64) -> bool {
    key < 40 && ![3, 4, 5, 9].contains(&key)
}

fn walk<V: Held>(map: &Map<V, InOrder>) -> u64 {
    let mut met = BTreeMap::new();
    let mut entries = map.iter();
    while let Some((key, _)) = entries.next() {
        *met.entry(*key).or_insert(0) += 1;
    }
    met.retain(|key, times| is_unchanged(key) && *times == 1);
    met.len() as u64
}

fn of_kind<V>(side: &[Do]) -> Vec<In<V>> {
    side.iter().map(|&it| In(it, PhantomData)).collect()
}

/// A case with a map of the keys from 0 on, with themselves.
fn case<V: Held>(
    name: &str,
    setup: impl Fn() -> Bench<V, InOrder> + 'static,
    victim: &[Do],
    overtaker: &[Do],
) -> Case<Bench<V, InOrder>> {
    let both = [victim, overtaker].map(of_kind::<V>);
    let name = format!("{}/{name}", V::NAME);
    let old = |bench: &Bench<V, InOrder>| {
        let keys = (0..bench.new).chain(bench.crowd.iter().copied());
        keys.map(|key| (key, key)).collect()
    };
    super::case(name, setup, old, both.each_ref().map(Vec::as_slice))
        .attach(Bench::enter)
        .survivor(Bench::open)
}

pub fn cases(suite: &mut Suite) {
    cases_of::<[u64; 3]>(suite);
    cases_of::<u64>(suite);
}

fn cases_of<V: Held>(suite: &mut Suite) {
    use Do::*;
    let mut one = |name, victim, overtaker: &[Do]| {
        suite.run(case::<V>(name, || Bench::new(KEYS), &[victim], overtaker));
    };
    one("insert by insert", Insert(9, 77), &[Insert(9, 78)]);
    one("insert by another", Insert(9, 77), &[Insert(10, 78)]);
    one(
        "insert by insert and remove",
        Insert(9, 77),
        &[Insert(9, 78), Remove(9)],
    );
    one("replace by replace", Insert(3, 77), &[Insert(3, 78)]);
    one("replace by remove", Insert(3, 77), &[Remove(3)]);
    one(
        "replace by remove and insert",
        Insert(3, 77),
        &[Remove(3), Insert(9, 78), Insert(3, 79)],
    );
    one("remove by remove", Remove(3), &[Remove(3)]);
    one("remove by replace", Remove(3), &[Insert(3, 78)]);
    one("count by count", Count(3), &[Count(3)]);
    one("count anew by count", Count(9), &[Count(9)]);
    one(
        "exchange by exchange",
        Exchange(3, 3, 77),
        &[Exchange(3, 3, 78)],
    );
    one(
        "get or insert by the same",
        GetOrInsert(9, 77),
        &[GetOrInsert(9, 78)],
    );
    one(
        "get by remove and insert",
        Get(3),
        &[Remove(3), Insert(9, 78), Insert(3, 79)],
    );
    let first = case::<V>(
        "first by first",
        || Bench::new(0),
        &[Insert(1, 77)],
        &[Get(2), Insert(2, 78), Insert(1, 79)],
    );
    suite.run(first.attach(|bench| {
        bench.open();
        bench.map.pool.recover();
    }));
    // A chunk of 48 that is full is moved to one that is twice as long, one of 96 to two: of numbers that are
    // odd, to another one. A table of several chunks is searched by way of its hints.
    let growing = &[
        Insert(1001, 1),
        Insert(1002, 2),
        Insert(3, 77),
        Remove(5),
        Insert(1003, 3),
    ];
    for (name, keys) in [("growth", 47), ("split", 95), ("split of two", 191)] {
        let mut full = |what: &str, victim: &[Do], overtaker: &[Do]| {
            let name = what.replace('*', name);
            suite.run(case::<V>(
                &name,
                move || Bench::new(keys),
                victim,
                overtaker,
            ));
        };
        full("looks by *", &[Get(7), Get(3), Get(5)], growing);
        full("walk by *", &[Walk], growing);
        full("replace by *", &[Insert(3, 78), Count(5)], growing);
        full("insert by *", &[Insert(5, 78), Insert(9, 79)], growing);
        // Whoever looks waits for nobody.
        full("* by looks", growing, &[Get(7), Get(3), Walk, Get(1001)]);
    }
    let victim = &[
        Insert(1001, 1),
        Insert(1002, 2),
        Insert(3, 77),
        Insert(1003, 3),
    ];
    let overtaker = &[
        Insert(1004, 4),
        Remove(4),
        Insert(5, 78),
        Insert(1005, 5),
        Get(3),
        Get(6),
        Insert(1006, 6),
        Insert(1007, 7),
    ];
    suite.run(case::<V>(
        "walk by shrinking",
        Bench::shrinking,
        &[Walk],
        overtaker,
    ));
    let mut moving = |name, setup: fn() -> Bench<V, InOrder>| {
        suite.run(case::<V>(name, setup, victim, overtaker));
    };
    moving("moving", || Bench::moving(2));
    moving("moving many", || Bench::moving(4));
    moving("shrinking", Bench::shrinking);
    // So many keys of one chunk that the smaller table is followed by another before all has moved to it; and then
    // one of the chunk to which the victim moves something.
    let mut crowd: Vec<Do> = (0..96).map(|n| Insert(2001 + 4 * n, n)).collect();
    crowd.push(Insert(1010, 2));
    suite.run(case::<V>(
        "shrinking by a crowd",
        Bench::shrinking,
        &[Insert(1006, 1)],
        &crowd,
    ));
    // The victim moves an entry to a chunk that is full, and that has moved itself before the victim has its lock.
    let to_a_crowd = case::<V>(
        "shrinking to a crowd",
        Bench::crowded,
        &[Insert(15, 1)],
        &[Insert(16 * 96 + 7, 2)],
    );
    suite.run(to_a_crowd.only_goes_on().soon());
}
