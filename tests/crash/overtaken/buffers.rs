//! Buffers.

use super::super::buffer::{Content, World, append, bytes, content};
use super::super::engine::{Crash, Suite};
use super::{NONE, Operation};

/// What is done to a buffer.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// Bytes of that number, so many.
    Append(u8, usize),
    /// Zeros, which are copied to memory that is: so many bytes change nothing.
    Zeros(usize),
    DeleteTo(u64),
    Read(u64),
}

impl Operation for Do {
    type World = World;
    type Model = Content;

    fn perform(self, world: &mut World) -> u64 {
        let buffer = world.buffer();
        match self {
            Do::Append(number, len) => append(buffer, number, len),
            Do::Zeros(len) => buffer.append(&vec![0; len]).expect("room"),
            Do::DeleteTo(end) => {
                let _ = buffer.truncate_front(end);
                0
            }
            Do::Read(at) => {
                let view = buffer.view(at..at + 1);
                view.map_or(NONE, |view| u64::from(view.to_vec()[0]))
            }
        }
    }

    fn model(self, (start, all): &mut Content) -> u64 {
        let end = *start + all.len() as u64;
        match self {
            Do::Append(number, len) => {
                all.extend(bytes(number, len));
                end
            }
            Do::Zeros(len) => {
                all.resize(all.len() + len, 0);
                end
            }
            Do::DeleteTo(to) => {
                if (*start..=end).contains(&to) {
                    all.drain(..(to - *start) as usize);
                    *start = to;
                }
                0
            }
            Do::Read(at) => {
                let index = at.checked_sub(*start).map(|index| index as usize);
                let byte = index.and_then(|index| all.get(index));
                byte.map_or(NONE, |&byte| u64::from(byte))
            }
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Read(_))
    }

    fn found(world: &mut World, _: &Crash) -> Result<Content, String> {
        // What died in recovery is dead now too.
        world.pool.recover();
        world.intact("after recovery")?;
        content(world.buffer())
    }

    fn ends(world: &mut World) -> Result<(), String> {
        world.works()
    }
}

/// What has been appended before, of different numbers.
fn filled(lengths: &[usize]) -> Vec<u8> {
    let numbers = 1..;
    let all = lengths.iter().zip(numbers);
    all.flat_map(|(&len, number)| bytes(number, len)).collect()
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, lengths: &'static [usize], victim: &[Do], overtaker: &[Do]| {
        let setup = || {
            World::new(|buffer| {
                for (&len, number) in lengths.iter().zip(1..) {
                    append(buffer, number, len);
                }
            })
        };
        let old = |_: &World| (0, filled(lengths));
        let case = super::case(format!("buffer/{name}"), setup, old, [victim, overtaker]);
        suite.run(case.attach(World::enter));
    };
    case("first by first", &[], &[Append(7, 40)], &[Append(8, 60)]);
    case(
        "append by append",
        &[40],
        &[Append(7, 40)],
        &[Append(8, 60), Read(100)],
    );
    case(
        "new chunk by new chunk",
        &[40],
        &[Append(7, 300)],
        &[Append(8, 400)],
    );
    case(
        "new chunk by others",
        &[40],
        &[Append(7, 300)],
        &[Append(8, 400), Append(9, 1000), DeleteTo(500)],
    );
    case("large by large", &[40], &[Zeros(9000)], &[Append(8, 9000)]);
    case(
        "append by deletion",
        &[700, 700],
        &[Append(7, 700)],
        &[DeleteTo(1400)],
    );
    case(
        "deletion by append",
        &[700, 700],
        &[DeleteTo(1400)],
        &[Append(8, 700)],
    );
    case(
        "deletion by deletion",
        &[700, 700, 700],
        &[DeleteTo(900)],
        &[DeleteTo(1700), Append(8, 10)],
    );
    case(
        "look by deletion",
        &[700, 700],
        &[Read(300)],
        &[DeleteTo(1000), Append(8, 2000)],
    );
}
