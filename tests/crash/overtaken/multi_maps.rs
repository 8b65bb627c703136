//! Maps of stacks.

use std::collections::BTreeMap;

use super::super::engine::{Crash, Suite};
use super::super::in_pool::{Named, ensure, sound};
use super::super::multi_map::{Map, OTHERS, all, bench, enter};
use super::{NONE, Operation};

/// What is done to a map of stacks.
#[derive(Clone, Copy, Debug)]
enum Do {
    Push(u64, u64),
    Pop(u64),
    Replace(u64, u64),
}

impl Operation for Do {
    type World = Named<Map>;
    /// The stacks, the latest last.
    type Model = BTreeMap<u64, Vec<u64>>;

    fn perform(self, map: &mut Named<Map>) -> u64 {
        match self {
            Do::Push(key, n) => {
                map.push(&key, n).expect("room");
                0
            }
            Do::Pop(key) => map.pop(&key).map_or(NONE, |value| *value),
            Do::Replace(key, n) => {
                let old = map.replace(&key, n).expect("room");
                old.map_or(NONE, |value| *value)
            }
        }
    }

    fn model(self, model: &mut Self::Model) -> u64 {
        match self {
            Do::Push(key, n) => {
                model.entry(key).or_default().push(n);
                0
            }
            Do::Pop(key) => {
                let popped = model.get_mut(&key).and_then(Vec::pop);
                model.retain(|_, stack| !stack.is_empty());
                popped.unwrap_or(NONE)
            }
            Do::Replace(key, n) => {
                let stack = model.entry(key).or_default();
                let old = stack.pop();
                stack.push(n);
                old.unwrap_or(NONE)
            }
        }
    }

    fn reads(self) -> bool {
        false
    }

    fn waits(self, _: bool) -> bool {
        // Writers of one chunk wait for each other.
        true
    }

    fn found(map: &mut Named<Map>, _: &Crash) -> Result<Self::Model, String> {
        sound(map.pool)?;
        let mut found = BTreeMap::new();
        for key in 0..OTHERS * 2 {
            let mut stack = all(map, key);
            stack.reverse();
            if !stack.is_empty() {
                found.insert(key, stack);
            }
        }
        let (len, sum) = (map.len(), found.values().map(Vec::len).sum());
        ensure(len == sum, || format!("{len} of {found:?}"))?;
        Ok(found)
    }

    fn ends(map: &mut Named<Map>) -> Result<(), String> {
        map.push(&7, 9).map_err(|error| error.to_string())?;
        map.ends()
    }
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, others: u64, victim: &[Do], overtaker: &[Do]| {
        let old = move |_: &_| {
            let others = (OTHERS..OTHERS + others).map(|key| (key, vec![key]));
            others.chain([(7, vec![1, 2])]).collect()
        };
        let case = super::case(
            format!("multi_map/{name}"),
            move || bench(others),
            old,
            [victim, overtaker],
        );
        suite.run(case.attach(enter).survivor(Named::open));
    };
    case("push by push", 0, &[Push(7, 3)], &[Push(7, 4)]);
    case("push by pops", 0, &[Push(7, 3)], &[Pop(7), Pop(7), Pop(7)]);
    case(
        "push by pop and push",
        0,
        &[Push(7, 3)],
        &[Pop(7), Push(7, 2)],
    );
    case("pop by pop", 0, &[Pop(7)], &[Pop(7)]);
    case(
        "pop by push",
        0,
        &[Pop(7)],
        &[Push(7, 3), Pop(7), Push(7, 2)],
    );
    case("replace by replace", 0, &[Replace(7, 3)], &[Replace(7, 4)]);
    // With the key 7, a chunk of 48 gets full.
    case(
        "grow by grow",
        46,
        &[Push(160, 1), Push(161, 2)],
        &[Push(162, 3), Push(163, 4), Pop(110)],
    );
}
