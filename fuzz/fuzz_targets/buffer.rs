//! Operations of two participants on a buffer, any of whom is killed before any of its writes, against
//! a vector of bytes.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::{AllocError, AppendError, Buffer, Pool, RangeError};
use shmkit_fuzz::{Stage, Step, Steps, operations};

operations! {
    enum Operation {
        3: Append { len: u16, byte: u8 },
        /// Several small ones.
        4: Appends { count: u8, len: u8, byte: u8 },
        2: View { from: u16, to: u16 },
        2: Read { from: u16, len: u16 },
        3: Truncate { to: u16 },
        1: Clear,
        1: Close,
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// 0 for any number.
    capacity: u16,
    steps: Steps<Step<Operation>>,
}

/// Everything that was ever appended, and what of it is deleted.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    capacity: Option<u64>,
    bytes: Vec<u8>,
    start: u64,
    closed: bool,
}

/// What an operation has answered.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    positions: Vec<Result<u64, AppendError>>,
    bytes: Option<Result<Vec<u8>, RangeError>>,
    done: Option<Result<(), RangeError>>,
}

/// Bytes that tell where in an append they are.
fn pattern(len: usize, byte: u8) -> Vec<u8> {
    (0..len).map(|i| byte.wrapping_add(i as u8)).collect()
}

fn appends(operation: Operation) -> Vec<Vec<u8>> {
    match operation {
        Operation::Append { len, byte } => vec![pattern(len.into(), byte)],
        Operation::Appends { count, len, byte } => {
            let each = |n: u8| pattern(len.into(), byte.wrapping_add(n));
            (0..count % 32).map(each).collect()
        }
        _ => Vec::new(),
    }
}

impl Model {
    fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// A position that is mostly one that there is.
    fn position(&self, n: u16) -> u64 {
        (self.start + u64::from(n)).saturating_sub(50)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u64, AppendError> {
        let (len, end) = (bytes.len() as u64, self.end());
        if self.capacity.is_some_and(|capacity| len > capacity) {
            return Err(AppendError::TooLong { len: bytes.len() });
        }
        if self.closed {
            return Err(AppendError::Closed);
        }
        if self
            .capacity
            .is_some_and(|capacity| end + len - self.start > capacity)
        {
            return Err(AppendError::Full);
        }
        self.bytes.extend(bytes);
        Ok(end)
    }

    fn view(&self, from: u64, to: u64) -> Result<Vec<u8>, RangeError> {
        let (start, end) = (self.start, self.end());
        if from > to {
            return Err(RangeError::Reversed);
        }
        if from < start {
            return Err(RangeError::Deleted { start });
        }
        if to > end {
            return Err(RangeError::BeyondEnd { end });
        }
        Ok(self.bytes[from as usize..to as usize].to_vec())
    }

    /// Does it, and tells `seen` each state on the way.
    fn run(&mut self, operation: Operation, mut seen: impl FnMut(&Model)) -> Answer {
        let mut answer = Answer::default();
        seen(self);
        match operation {
            Operation::Append { .. } | Operation::Appends { .. } => {
                for bytes in appends(operation) {
                    answer.positions.push(self.append(&bytes));
                    seen(self);
                }
            }
            Operation::View { from, to } => {
                answer.bytes = Some(self.view(self.position(from), self.position(to)));
            }
            Operation::Read { from, len } => {
                let from = self.position(from);
                let to = (from + u64::from(len)).min(self.end().max(from));
                answer.bytes = Some(self.view(from, to));
            }
            Operation::Truncate { to } => {
                let (to, end) = (self.position(to), self.end());
                answer.done = Some(if to > end {
                    Err(RangeError::BeyondEnd { end })
                } else {
                    self.start = self.start.max(to);
                    Ok(())
                });
            }
            Operation::Clear => {
                self.start = self.end();
                answer.done = Some(Ok(()));
            }
            Operation::Close => {
                self.closed = true;
                answer.done = Some(Ok(()));
            }
        }
        seen(self);
        answer
    }
}

fn run(buffer: &Buffer, model: &Model, operation: Operation) -> Answer {
    let mut answer = Answer::default();
    match operation {
        Operation::Append { .. } | Operation::Appends { .. } => {
            let append = |bytes: Vec<u8>| buffer.append(&bytes);
            answer
                .positions
                .extend(appends(operation).into_iter().map(append));
        }
        Operation::View { from, to } => {
            let view = buffer.view(model.position(from)..model.position(to));
            answer.bytes = Some(view.map(|view| {
                let bytes = view.chunks().flatten().copied().collect();
                // Here, as who dies in it forgets what was to be returned already.
                drop(view);
                bytes
            }));
        }
        Operation::Read { from, len } => {
            let mut bytes = vec![0; len.into()];
            let read = buffer.read_at(model.position(from), &mut bytes);
            answer.bytes = Some(read.map(|read| {
                bytes.truncate(read);
                bytes
            }));
        }
        Operation::Truncate { to } => {
            answer.done = Some(buffer.truncate_front(model.position(to)));
        }
        Operation::Clear => answer.done = Some(buffer.clear()),
        Operation::Close => answer.done = Some(buffer.close()),
    }
    answer
}

fuzz_target!(|input: Input| {
    let capacity = (input.capacity > 0).then(|| u64::from(input.capacity));
    let buffer = match capacity {
        None => Buffer::new(),
        Some(capacity) => Buffer::with_capacity(capacity),
    };
    let mut stage = Stage::new(
        Pool::builder().initial_size(512 << 10).max_size(512 << 10),
        buffer,
    );
    let mut model = Model {
        capacity,
        ..Model::default()
    };
    for Step {
        who,
        dies,
        operation,
    } in &input.steps.0
    {
        let done = stage.act(*who, *dies, |buffer| run(buffer, &model, *operation));
        let no_room = Err(AppendError::Alloc(AllocError::PoolFull));
        let mut after = Vec::new();
        match &done {
            Some(answer) if !answer.positions.contains(&no_room) => {
                let mut new = model.clone();
                assert_eq!(new.run(*operation, |_| {}), *answer);
                after.push(new);
            }
            // It was killed, or found no room for all.
            _ => _ = model.run(*operation, |state| after.push(state.clone())),
        }
        let now = stage.look(*who, done.is_none(), |buffer| {
            let (start, end) = (buffer.start(), buffer.end());
            assert_eq!(
                (buffer.len(), buffer.is_empty()),
                (end - start, end == start)
            );
            let view = buffer.view(start..end).unwrap();
            let bytes: Vec<u8> = view.chunks().flatten().copied().collect();
            (start, end, bytes, buffer.is_closed())
        });
        after.retain(|model| {
            let bytes = model.view(model.start, model.end()).unwrap();
            (model.start, model.end(), bytes, model.closed) == now
        });
        model = after
            .pop()
            .unwrap_or_else(|| panic!("{} to {}: {operation:?}", now.0, now.1));
        stage.check();
    }
    stage.end();
});
