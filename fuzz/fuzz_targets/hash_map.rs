//! Operations of two participants on a map in a small pool, any of whom is killed before any of its
//! writes, against std's map.
//!
//! Of what was killed, each key has happened or not: it has the value that it had, or the one that it was
//! to get.
#![no_main]

use std::collections::HashMap as Model;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::{
    AllocError, ChangeError, CompareError, FoldHash, HashMap, MultiMap, Pool, ShmSafe, View,
};
use shmkit_fuzz::{Stage, Steps, operations};

type Step = shmkit_fuzz::Step<Operation>;

operations! {
    enum Operation {
        3: Insert { key: u16, value: u8 },
        3: Remove { key: u16 },
        2: Update { key: u16, value: Option<u8> },
        2: GetOrInsert { key: u16, value: u8 },
        2: Modify { key: u16, value: u8 },
        2: CompareExchange { key: u16, current: Option<u8>, new: Option<u8> },
        3: Fill { from: u16, count: u8, step: u8 },
        3: Drain { from: u16, count: u8, step: u8 },
        1: Retain { divisor: u8 },
        1: Clear,
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    kind: u8,
    steps: Steps<Step>,
}

/// The keys that there are, so that operations meet.
const KEYS: u16 = 512;

/// What a map holds, by a small number.
trait Value: ShmSafe + Unpin + Copy + PartialEq + std::fmt::Debug {
    fn of(n: u8) -> Self;
    fn number(&self) -> u8;
}

impl Value for u32 {
    fn of(n: u8) -> Self {
        u32::from(n) * 0x0101_0101
    }

    fn number(&self) -> u8 {
        assert_eq!(*self % 0x0101_0101, 0, "torn");
        *self as u8
    }
}

impl Value for [u64; 6] {
    fn of(n: u8) -> Self {
        [u64::from(n); 6]
    }

    fn number(&self) -> u8 {
        assert!(self.iter().all(|word| *word == self[0]), "torn");
        self[0] as u8
    }
}

/// Keys that `Fill` and `Drain` are about.
fn keys(from: u16, count: u8, step: u8) -> impl Iterator<Item = u16> {
    (0..u16::from(count)).map(move |n| from.wrapping_add(n.wrapping_mul(u16::from(step))) % KEYS)
}

/// What is fuzzed, whatever kind of map it is.
trait Map {
    /// What a key has.
    type Held: Clone + PartialEq + std::fmt::Debug;

    /// Does it; the value that was there, or that is there now.
    fn run(&self, operation: &Operation) -> Result<Option<u8>, ChangeError>;
    /// Does the same to the model.
    fn apply(model: &mut Model<u16, Self::Held>, operation: &Operation) -> Option<u8>;
    fn content(&self) -> Model<u16, Self::Held>;
    /// Whether what a key has may be there if a change of several steps was cut off.
    fn is_between(
        before: Option<&Self::Held>,
        now: Option<&Self::Held>,
        after: Option<&Self::Held>,
    ) -> bool;
}

fn number<V: Value>(view: View<'_, V>) -> u8 {
    view.number()
}

impl<V: Value> Map for HashMap<u16, V, FoldHash> {
    type Held = u8;

    fn run(&self, operation: &Operation) -> Result<Option<u8>, ChangeError> {
        let one = |key: u16| key % KEYS;
        Ok(match *operation {
            Operation::Insert { key, value } => {
                let old = self.insert(&one(key), V::of(value));
                old.map_err(|refused| refused.cause)?.map(number)
            }
            Operation::Remove { key } => self.try_remove(&one(key))?.map(number),
            Operation::Update { key, value } => {
                self.update(&one(key), |_| value.map(V::of))?.map(number)
            }
            Operation::GetOrInsert { key, value } => {
                let now = self.get_or_insert_with(&one(key), || V::of(value));
                Some(number(now.map_err(|refused| refused.cause)?))
            }
            Operation::Modify { key, value } => {
                let key = one(key);
                let more = |now: &V| V::of(now.number().wrapping_add(value));
                let now = self.entry(&key).and_modify(more).or_insert(V::of(value));
                Some(number(now.map_err(|refused| refused.cause)?))
            }
            Operation::CompareExchange { key, current, new } => {
                let (current, new) = (current.map(V::of), new.map(V::of));
                match self.compare_exchange(&one(key), current.as_ref(), new) {
                    Ok(was) | Err(CompareError::Other(was)) => was.map(number),
                    Err(CompareError::Change(cause)) => return Err(cause),
                    Err(error) => panic!("{error}"),
                }
            }
            Operation::Fill { from, count, step } => {
                for key in keys(from, count, step) {
                    let inserted = self.insert(&key, V::of(key as u8));
                    inserted.map_err(|refused| refused.cause)?;
                }
                None
            }
            Operation::Drain { from, count, step } => {
                for key in keys(from, count, step) {
                    self.try_remove(&key)?;
                }
                None
            }
            Operation::Retain { divisor } => {
                self.retain(|key, _| key % (u16::from(divisor) + 1) == 0)?;
                None
            }
            Operation::Clear => {
                self.clear()?;
                None
            }
        })
    }

    fn apply(model: &mut Model<u16, u8>, operation: &Operation) -> Option<u8> {
        let one = |key: u16| key % KEYS;
        match *operation {
            Operation::Insert { key, value } => model.insert(one(key), value),
            Operation::Remove { key } => model.remove(&one(key)),
            Operation::Update { key, value } => match value {
                Some(value) => model.insert(one(key), value),
                None => model.remove(&one(key)),
            },
            Operation::GetOrInsert { key, value } => Some(*model.entry(one(key)).or_insert(value)),
            Operation::Modify { key, value } => {
                let more = |now: &mut u8| *now = now.wrapping_add(value);
                Some(*model.entry(one(key)).and_modify(more).or_insert(value))
            }
            Operation::CompareExchange { key, current, new } => {
                let was = model.get(&one(key)).copied();
                match new {
                    _ if was != current => was,
                    Some(new) => model.insert(one(key), new),
                    None => model.remove(&one(key)),
                }
            }
            Operation::Fill { from, count, step } => {
                model.extend(keys(from, count, step).map(|key| (key, key as u8)));
                None
            }
            Operation::Drain { from, count, step } => {
                keys(from, count, step).for_each(|key| _ = model.remove(&key));
                None
            }
            Operation::Retain { divisor } => {
                model.retain(|key, _| key % (u16::from(divisor) + 1) == 0);
                None
            }
            Operation::Clear => {
                model.clear();
                None
            }
        }
    }

    fn content(&self) -> Model<u16, u8> {
        let mut content = Model::new();
        let mut entries = self.iter();
        while let Some((key, value)) = entries.next() {
            assert!(content.insert(*key, value.number()).is_none(), "seen twice");
        }
        drop(entries);
        assert_eq!(self.len(), content.len());
        for key in 0..KEYS {
            let found = self.get_copied(&key).map(|value| value.number());
            assert_eq!(found, content.get(&key).copied());
        }
        content
    }

    fn is_between(before: Option<&u8>, now: Option<&u8>, after: Option<&u8>) -> bool {
        now == before || now == after
    }
}

impl Map for MultiMap<u16, u32, FoldHash> {
    /// The value on top last.
    type Held = Vec<u8>;

    fn run(&self, operation: &Operation) -> Result<Option<u8>, ChangeError> {
        let one = |key: u16| key % KEYS;
        match *operation {
            Operation::Insert { key, value } | Operation::GetOrInsert { key, value } => {
                let pushed = self.push(&one(key), u32::of(value));
                pushed.map_err(|refused| refused.cause)?;
                Ok(None)
            }
            Operation::Remove { key } | Operation::CompareExchange { key, .. } => {
                Ok(self.try_pop(&one(key))?.map(number))
            }
            Operation::Update { key, .. } | Operation::Modify { key, .. } => {
                let replaced = self.replace(&one(key), u32::of(7));
                Ok(replaced.map_err(|refused| refused.cause)?.map(number))
            }
            Operation::Fill { from, count, step } => {
                for key in keys(from, count, step) {
                    let pushed = self.push(&key, u32::of(key as u8));
                    pushed.map_err(|refused| refused.cause)?;
                }
                Ok(None)
            }
            Operation::Drain { from, count, step } => {
                for key in keys(from, count, step) {
                    self.try_pop(&key)?;
                }
                Ok(None)
            }
            Operation::Retain { .. } | Operation::Clear => Ok(None),
        }
    }

    fn apply(model: &mut Model<u16, Vec<u8>>, operation: &Operation) -> Option<u8> {
        let mut stack = |key: u16| model.remove(&(key % KEYS)).unwrap_or_default();
        let mut changed = Vec::new();
        let mut top = None;
        match *operation {
            Operation::Insert { key, value } | Operation::GetOrInsert { key, value } => {
                let mut stack = stack(key);
                stack.push(value);
                changed.push((key % KEYS, stack));
            }
            Operation::Remove { key } | Operation::CompareExchange { key, .. } => {
                let mut stack = stack(key);
                top = stack.pop();
                changed.push((key % KEYS, stack));
            }
            Operation::Update { key, .. } | Operation::Modify { key, .. } => {
                let mut stack = stack(key);
                top = stack.pop();
                stack.push(7);
                changed.push((key % KEYS, stack));
            }
            Operation::Fill { from, count, step } => {
                for key in keys(from, count, step) {
                    let value = key as u8;
                    Self::apply(model, &Operation::Insert { key, value });
                }
            }
            Operation::Drain { from, count, step } => {
                for key in keys(from, count, step) {
                    Self::apply(model, &Operation::Remove { key });
                }
            }
            Operation::Retain { .. } | Operation::Clear => {}
        }
        model.extend(changed.into_iter().filter(|(_, stack)| !stack.is_empty()));
        top
    }

    fn content(&self) -> Model<u16, Vec<u8>> {
        let mut content = Model::new();
        // There are no others.
        for key in 0..KEYS {
            let mut all = self.get_all(&key);
            let mut stack = Vec::new();
            while let Some(value) = all.next() {
                stack.insert(0, value.number());
            }
            if !stack.is_empty() {
                content.insert(key, stack);
            }
        }
        assert_eq!(self.len(), content.values().map(Vec::len).sum::<usize>());
        content
    }

    fn is_between(
        before: Option<&Vec<u8>>,
        now: Option<&Vec<u8>>,
        after: Option<&Vec<u8>>,
    ) -> bool {
        let all = |held: Option<&Vec<u8>>| held.cloned().unwrap_or_default();
        let (before, now, after) = (all(before), all(now), all(after));
        let grown = now.starts_with(&before) && after.starts_with(&now);
        let fallen = before.starts_with(&now) && now.starts_with(&after);
        grown || fallen || now == before || now == after
    }
}

fn fuzz<M: Map + ShmSafe>(empty: M, steps: &[Step]) {
    let mut stage = Stage::new(
        Pool::builder().initial_size(512 << 10).max_size(512 << 10),
        empty,
    );
    let mut model = Model::new();
    for Step {
        who,
        dies,
        operation,
    } in steps
    {
        let mut after = model.clone();
        let expected = M::apply(&mut after, operation);
        let done = stage.act(*who, *dies, |map| map.run(operation));
        let content = stage.look(*who, done.is_none(), M::content);
        match done {
            Some(Ok(answer)) => {
                assert_eq!(answer, expected);
                assert_eq!(content, after);
            }
            // It found no room, or was killed.
            refused => {
                for key in 0..KEYS {
                    let now = content.get(&key);
                    assert!(
                        M::is_between(model.get(&key), now, after.get(&key)),
                        "{key}: {:?}, {now:?}, {:?}",
                        model.get(&key),
                        after.get(&key)
                    );
                }
                if let Some(Err(cause)) = refused {
                    assert_eq!(cause, ChangeError::Alloc(AllocError::PoolFull));
                }
            }
        }
        model = content;
        stage.check();
    }
    stage.end();
}

fuzz_target!(|input: Input| {
    let steps = &input.steps.0;
    match input.kind % 3 {
        // A map whose entries lie in its table.
        0 => fuzz(HashMap::<u16, u32, FoldHash>::with_hasher(), steps),
        // One that has nodes.
        1 => fuzz(HashMap::<u16, [u64; 6], FoldHash>::with_hasher(), steps),
        // One whose nodes hide others: values are pushed and popped.
        _ => fuzz(MultiMap::<u16, u32, FoldHash>::with_hasher(), steps),
    }
});
