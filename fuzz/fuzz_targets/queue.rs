//! Operations of two participants on a queue, any of whom is killed before any of its writes, against
//! a `VecDeque`.
//!
//! After a death there are several states that the queue may be in. All are followed until what the
//! queue answers tells them apart.
#![no_main]

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::{AllocError, Pool, PopError, PushRefusal, Queue};
use shmkit_fuzz::{Stage, Step, Steps, operations};

/// A number, and its complement.
type Element = [u64; 2];

operations! {
    enum Operation {
        2: Push,
        3: Fill { count: u8 },
        4: Pop,
        1: Peek,
        /// Leases so many; of those whose bit is set it says that they are consumed, and of the others
        /// that they are not.
        4: Lease { count: u8, consumed: u8 },
        1: Clear,
        1: Close,
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// 0 for any number.
    capacity: u8,
    steps: Steps<Step<Operation>>,
}

/// What an operation has answered: elements, or why there were none (any more).
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    elements: Vec<u64>,
    pushed: usize,
    not_pushed: Option<PushRefusal>,
    not_popped: Option<PopError>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Model {
    capacity: usize,
    closed: bool,
    /// What has come back from leases is had before what has not been had.
    back: Vec<u64>,
    rest: VecDeque<u64>,
    /// Places that the dead may have claimed: they hold nothing until producers have come round to them.
    gaps: usize,
}

impl Model {
    fn content(&self) -> Vec<u64> {
        self.back.iter().chain(&self.rest).copied().collect()
    }

    fn push(&mut self, n: u64) -> Result<(), PushRefusal> {
        if self.closed {
            return Err(PushRefusal::Closed);
        }
        if self.capacity > 0 && self.rest.len() + self.gaps >= self.capacity {
            return Err(PushRefusal::Full);
        }
        self.rest.push_back(n);
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, PopError> {
        if !self.back.is_empty() {
            return Ok(self.back.remove(0));
        }
        let none = if self.closed {
            PopError::Closed
        } else {
            PopError::Empty
        };
        self.rest.pop_front().ok_or(none)
    }

    fn give_back(&mut self, element: u64) {
        self.back.push(element);
        self.back.sort_unstable();
    }

    /// Does it, and tells `seen` each state on the way that a death may leave.
    fn run(&mut self, next: u64, operation: Operation, mut seen: impl FnMut(&Model)) -> Answer {
        let mut answer = Answer::default();
        seen(self);
        match operation {
            Operation::Push | Operation::Fill { .. } => {
                for n in next..next + pushes(operation) {
                    answer.not_pushed = self.push(n).err();
                    answer.pushed += usize::from(answer.not_pushed.is_none());
                    seen(self);
                }
            }
            Operation::Pop => match self.pop() {
                Ok(element) => answer.elements.push(element),
                Err(refused) => answer.not_popped = Some(refused),
            },
            Operation::Peek => answer.elements.extend(self.content().first()),
            Operation::Lease { count, consumed } => {
                let mut left: VecDeque<u64> = VecDeque::new();
                let dead = |model: &Model, left: &VecDeque<u64>| {
                    let mut model = model.clone();
                    left.iter().for_each(|element| model.give_back(*element));
                    model
                };
                for _ in 0..count % 8 {
                    match self.pop() {
                        Ok(element) => left.push_back(element),
                        // What is leased may come back, to whoever did not lease it.
                        Err(refused) => answer.not_popped = Some(refused),
                    }
                    seen(&dead(self, &left));
                }
                answer.elements = left.iter().copied().collect();
                for n in 0.. {
                    let Some(element) = left.pop_front() else {
                        break;
                    };
                    if consumed >> n & 1 == 0 {
                        self.give_back(element);
                    }
                    seen(&dead(self, &left));
                }
            }
            Operation::Clear => {
                while self.pop().is_ok() {
                    seen(self);
                }
            }
            Operation::Close => self.closed = true,
        }
        seen(self);
        answer
    }
}

/// How many elements an operation pushes.
fn pushes(operation: Operation) -> u64 {
    match operation {
        Operation::Push => 1,
        Operation::Fill { count } => u64::from(count) % 64,
        _ => 0,
    }
}

fn number(element: Element) -> u64 {
    assert_eq!(element[0], !element[1], "torn");
    element[0]
}

fn run(queue: &Queue<Element>, next: u64, operation: Operation) -> Answer {
    let mut answer = Answer::default();
    match operation {
        Operation::Push | Operation::Fill { .. } => {
            for n in next..next + pushes(operation) {
                answer.not_pushed = queue.try_push([n, !n]).err().map(|refused| refused.cause);
                answer.pushed += usize::from(answer.not_pushed.is_none());
            }
        }
        Operation::Pop => match queue.try_pop() {
            Ok(element) => answer.elements.push(number(element)),
            Err(refused) => answer.not_popped = Some(refused),
        },
        Operation::Peek => answer.elements.extend(queue.peek().map(number)),
        Operation::Lease { count, consumed } => {
            let mut leases = Vec::new();
            for _ in 0..count % 8 {
                match queue.try_lease() {
                    Ok(lease) => leases.push(lease),
                    Err(refused) => answer.not_popped = Some(refused),
                }
            }
            answer.elements = leases.iter().map(|lease| number(**lease)).collect();
            for (n, lease) in leases.into_iter().enumerate() {
                if consumed >> n & 1 == 0 {
                    drop(lease);
                } else {
                    lease.ack();
                }
            }
        }
        Operation::Clear => queue.clear(),
        Operation::Close => queue.close(),
    }
    answer
}

/// Whether a pool that is full may be why the answer is another one.
fn is_full(answer: &Answer) -> bool {
    answer.not_pushed == Some(PushRefusal::Alloc(AllocError::PoolFull))
        || answer.not_popped == Some(PopError::Alloc(AllocError::PoolFull))
}

fuzz_target!(|input: Input| {
    let capacity = usize::from(input.capacity % 20);
    let queue = match capacity {
        0 => Queue::<Element>::unbounded(),
        places => Queue::bounded(places),
    };
    let mut stage = Stage::new(
        Pool::builder().initial_size(1 << 20).max_size(1 << 20),
        queue,
    );
    let mut models = vec![Model {
        capacity,
        ..Model::default()
    }];
    let mut next = 0;
    for Step {
        who,
        dies,
        operation,
    } in &input.steps.0
    {
        let mut after = Vec::new();
        let done = stage.act(*who, *dies, |queue| run(queue, next, *operation));
        match &done {
            Some(answer) if !is_full(answer) => {
                for model in &models {
                    // As many places may be gone, or fewer.
                    for gaps in 0..=model.gaps {
                        let mut changed = Model {
                            gaps,
                            ..model.clone()
                        };
                        if changed.run(next, *operation, |_| {}) == *answer {
                            let gaps = if changed.rest.is_empty() {
                                0
                            } else {
                                model.gaps
                            };
                            after.push(Model { gaps, ..changed });
                            break;
                        }
                    }
                }
                assert!(!after.is_empty(), "{operation:?}: {answer:?} of {models:?}");
            }
            // It was killed, or found no room for all.
            _ => {
                for model in &mut models {
                    model.gaps += usize::from(done.is_none() && pushes(*operation) > 0);
                    let mut full = Model {
                        gaps: 0,
                        ..model.clone()
                    };
                    full.run(next, *operation, |state| {
                        after.push(Model {
                            gaps: model.gaps,
                            ..state.clone()
                        });
                    });
                }
            }
        }
        next += pushes(*operation);
        let (content, closed) = stage.look(*who, done.is_none(), |queue| {
            let content: Vec<_> = queue.iter().map(number).collect();
            assert_eq!(
                (queue.len(), queue.is_empty()),
                (content.len(), content.is_empty())
            );
            (content, queue.is_closed())
        });
        after.retain(|model| model.content() == content && model.closed == closed);
        after.sort_unstable();
        after.dedup();
        assert!(!after.is_empty(), "{content:?}, closed: {closed}, {done:?}");
        models = after;
        stage.check();
    }
    stage.end();
});
