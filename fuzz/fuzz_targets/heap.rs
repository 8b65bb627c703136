//! Transactions, collections and deaths on a heap in a small pool, against a graph in private memory.
//!
//! A transaction that dies does so before one of its writes; whoever comes next, as another
//! participant, finds the heap as it was before or after.
#![no_main]

#[path = "../../tests/common/graph_model.rs"]
mod graph_model;

use arbitrary::{Arbitrary, Result, Unstructured};
use graph_model::{Model, Step};
use libfuzzer_sys::fuzz_target;
use shmkit::{Heap, HeapError, Pool};
use shmkit_fuzz::{MINE, OTHER, Stage, Steps};

#[derive(Debug)]
enum Operation {
    /// A step of the transaction that comes next.
    Step(Step),
    Modify(End),
    Collect {
        dies: Option<usize>,
    },
    View {
        dies: Option<usize>,
    },
}

#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    Fail,
    Die { writes: usize },
}

impl<'a> Arbitrary<'a> for Operation {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u8::arbitrary(input)? % 32 {
            which @ 0..22 => Operation::Step(step(which, input)?),
            22..25 => Operation::Modify(End::Commit),
            25 => Operation::Modify(End::Fail),
            26..29 => Operation::Modify(End::Die {
                writes: writes(input)?,
            }),
            29 => Operation::Collect { dies: None },
            30 => Operation::Collect {
                dies: Some(writes(input)?),
            },
            _ => Operation::View {
                dies: Some(writes(input)?),
            },
        })
    }
}

fn step(which: u8, input: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match which {
        0..6 => Step::New {
            value: u8::arbitrary(input)?.into(),
        },
        6..10 => Step::Edge {
            from: input.arbitrary()?,
            edge: input.arbitrary()?,
            to: input.arbitrary()?,
        },
        10..13 => Step::Value {
            of: input.arbitrary()?,
            value: u8::arbitrary(input)?.into(),
        },
        13..16 => Step::Root {
            to: input.arbitrary()?,
        },
        16..18 => Step::List {
            of: input.arbitrary()?,
            len: input.arbitrary()?,
        },
        18..21 => Step::Part {
            of: input.arbitrary()?,
            from: input.arbitrary()?,
            to: input.arbitrary()?,
            value: input.arbitrary()?,
        },
        _ => Step::Forged {
            bytes: input.arbitrary()?,
        },
    })
}

/// How many writes somebody makes before his death.
fn writes(input: &mut Unstructured<'_>) -> Result<usize> {
    Ok(usize::from(u16::arbitrary(input)? % 1024))
}

fuzz_target!(|operations: Steps<Operation>| {
    let mut stage = Stage::new(Pool::builder().max_size(4 << 20), Heap::new(None));
    let mut model = Model::default();
    let mut steps = Vec::new();
    for operation in &operations.0 {
        match operation {
            Operation::Step(step) => {
                steps.push(step.clone());
                continue;
            }
            Operation::Modify(end) => {
                let mut new = model.clone();
                let mut full = false;
                let dies = match end {
                    End::Die { writes } => Some(*writes),
                    _ => None,
                };
                let ended = stage.act(MINE, dies, |heap| {
                    heap.try_modify(|tx| {
                        // What found no room is undone.
                        let made = new.make(tx, &steps);
                        full = made.is_err();
                        made?;
                        match end {
                            End::Fail => Err(HeapError::NoObject),
                            _ => Ok(()),
                        }
                    })
                });
                match ended {
                    Some(Ok(())) => model = new,
                    Some(Err(error)) => {
                        assert!(full || matches!(end, End::Fail), "{error}");
                    }
                    // It happened or did not. Who finds out may die on the way.
                    None => {
                        stage.act(OTHER, dies, |heap| drop(heap.view().unwrap()));
                        let is_new = |heap: &_| !model.is(heap) && new.is(heap);
                        if stage.act(OTHER, None, is_new).unwrap() {
                            model = new;
                        }
                    }
                }
                steps.clear();
            }
            Operation::Collect { dies } => {
                let collected = stage.act(MINE, *dies, |heap| heap.collect().unwrap());
                if let Some(collected) = collected {
                    assert_eq!(collected.live, model.objects());
                }
            }
            Operation::View { dies } => {
                assert!(
                    stage
                        .act(OTHER, *dies, |heap| model.is(heap))
                        .unwrap_or(true)
                );
            }
        }
        assert!(stage.act(MINE, None, |heap| model.is(heap)).unwrap());
        stage.check();
    }
    stage.end();
});
