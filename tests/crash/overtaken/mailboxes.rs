//! Mailboxes. A mailbox has one receiver at a time.

use std::collections::VecDeque;

use shmkit::RecvError;

use super::super::engine::{Crash, Suite};
use super::super::in_pool::{in_use, intact};
use super::super::mailbox::{World, world};
use super::{NONE, Operation};

/// What is done to a mailbox that has room.
#[derive(Clone, Copy, Debug)]
enum Do {
    Send(u64),
    /// By a receiver that lets go of it at once. One side does.
    Receive,
}

impl Operation for Do {
    type World = World;
    type Model = VecDeque<u64>;

    fn perform(self, world: &mut World) -> u64 {
        match self {
            Do::Send(n) => {
                world.mailbox.try_send(n).expect("room");
                0
            }
            Do::Receive => {
                let receiver = world.mailbox.receiver().expect("nobody else");
                match receiver.try_recv() {
                    Ok(message) => message,
                    Err(RecvError::Empty) => NONE,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn model(self, model: &mut VecDeque<u64>) -> u64 {
        match self {
            Do::Send(n) => {
                model.push_back(n);
                0
            }
            Do::Receive => model.pop_front().unwrap_or(NONE),
        }
    }

    fn reads(self) -> bool {
        false
    }

    fn found(world: &mut World, _: &Crash) -> Result<VecDeque<u64>, String> {
        world.pool.recover();
        let receiver = world.mailbox.receiver();
        let receiver = receiver.map_err(|error| error.to_string())?;
        Ok(std::iter::from_fn(|| receiver.try_recv().ok()).collect())
    }

    fn ends(world: &mut World) -> Result<(), String> {
        for message in 0..world.mailbox.capacity() as u64 {
            let sent = world.mailbox.try_send(message);
            sent.map_err(|error| error.to_string())?;
        }
        intact(world.pool)?;
        in_use(world.pool, world.before)
    }
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let setup = || world(8);
        let case = super::case(
            format!("mailbox/{name}"),
            setup,
            |_: &World| [1, 2].into(),
            [victim, overtaker],
        );
        suite.run(case.attach(World::enter));
    };
    case("send by send", &[Send(7)], &[Send(8), Send(9)]);
    case("send by receive", &[Send(7)], &[Receive, Receive]);
    case("receive by send", &[Receive, Receive, Receive], &[Send(7)]);
}
