//! Transactions, collections and deaths on a heap in a small pool, against a graph in private memory.
//!
//! A transaction that dies does so before one of its writes; whoever comes next, as another
//! participant, finds the heap as it was before or after.
#![no_main]

#[path = "../../tests/common/graph_model.rs"]
mod graph_model;

use arbitrary::Arbitrary;
use graph_model::{Model, Step};
use libfuzzer_sys::fuzz_target;
use shmkit::{Heap, HeapError, Pool};
use shmkit_fuzz::{MINE, OTHER, Stage};

#[derive(Arbitrary, Debug)]
enum Operation {
    Modify { steps: Vec<Step>, end: End },
    Collect { dies: Option<u8> },
    View { dies: Option<u8> },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum End {
    Commit,
    Fail,
    Die { writes: u16 },
}

fuzz_target!(|operations: Vec<Operation>| {
    let mut stage = Stage::new(Pool::builder().max_size(4 << 20), Heap::new(None));
    let mut model = Model::default();
    for operation in &operations {
        match operation {
            Operation::Modify { steps, end } => {
                let mut new = model.clone();
                let mut full = false;
                let dies = match end {
                    End::Die { writes } => Some(usize::from(*writes)),
                    _ => None,
                };
                let ended = stage.act(MINE, dies, |heap| {
                    heap.try_modify(|tx| {
                        // What found no room is undone.
                        let made = new.make(tx, steps);
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
            }
            Operation::Collect { dies } => {
                let dies = dies.map(usize::from);
                let collected = stage.act(MINE, dies, |heap| heap.collect().unwrap());
                if let Some(collected) = collected {
                    assert_eq!(collected.live, model.objects());
                }
            }
            Operation::View { dies } => {
                let dies = dies.map(usize::from);
                assert!(
                    stage
                        .act(OTHER, dies, |heap| model.is(heap))
                        .unwrap_or(true)
                );
            }
        }
        assert!(stage.act(MINE, None, |heap| model.is(heap)).unwrap());
        stage.check();
    }
    stage.end();
});
