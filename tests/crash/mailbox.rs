//! Mailboxes: what they add to queues. Sending and receiving are pushing and popping, which `queue`
//! tests.

use shmkit::{Mailbox, Pool, RecvError, Shared};

use super::engine::{Case, Suite, progress};
use super::in_pool::{self, InPool, happened, in_use, intact, pool};

pub struct World {
    pub pool: Pool,
    pub mailbox: Shared<Mailbox<u64>>,
    pub before: usize,
}

impl InPool for World {
    fn pool(&self) -> Pool {
        self.pool
    }
}

/// A mailbox of so many places, with the messages 1 and 2.
pub fn world(capacity: usize) -> World {
    let pool = pool();
    let mailbox = pool.create(Mailbox::new(capacity)).expect("room");
    mailbox.send(1).expect("a slot");
    mailbox.send(2).expect("a slot");
    World {
        pool,
        mailbox,
        before: pool.stats().allocated,
    }
}

impl World {
    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        let other = self.pool.create(Mailbox::new(1)).expect("room");
        other.send(1).expect("a slot");
    }
}

/// A case after which the survivor receives one of these series.
fn case(
    name: &str,
    setup: impl Fn() -> World + 'static,
    operation: impl Fn(&Mailbox<u64>) + 'static,
    [old, new]: [&'static [Result<u64, RecvError>]; 2],
) -> Case<World> {
    in_pool::case(format!("mailbox/{name}"), setup)
        .attach(World::enter)
        .operation(move |world| {
            operation(&world.mailbox);
            progress(1);
        })
        .verify(move |world, crash| {
            world.pool.recover();
            let receiver = world.mailbox.receiver().map_err(|e| format!("{e}"))?;
            let found: Vec<_> = std::iter::from_fn(|| Some(receiver.try_recv()))
                .take_while(|received| *received != Err(RecvError::Empty))
                .collect();
            happened(crash, found, old, new)?;
            for message in 0..3 {
                let sent = world.mailbox.try_send(message);
                sent.map_err(|e| format!("{e}"))?;
            }
            drop(receiver);
            intact(world.pool)?;
            in_use(world.pool, world.before)
        })
}

/// What a death at every instruction must leave of mailboxes.
pub fn cases(suite: &mut Suite) {
    suite.run(case(
        "send",
        || world(3),
        |mailbox| mailbox.send(3).expect("a slot"),
        [&[Ok(1), Ok(2)], &[Ok(1), Ok(2), Ok(3)]],
    ));
    suite.run(case(
        "receive",
        || world(3),
        |mailbox| {
            let receiver = mailbox.receiver().expect("nobody else");
            assert_eq!(receiver.recv(), Ok(1));
            std::mem::forget(receiver);
        },
        [&[Ok(1), Ok(2)], &[Ok(2)]],
    ));
    suite.run(case(
        "receiver",
        || world(3),
        |mailbox| drop(mailbox.receiver().expect("nobody else")),
        [&[Ok(1), Ok(2)], &[Ok(1), Ok(2)]],
    ));
    suite.run(
        case(
            "wake",
            || {
                let world = world(3);
                // Somebody has slept.
                let receiver = world.mailbox.receiver().expect("nobody else");
                (receiver.recv(), receiver.recv()).1.expect("two messages");
                let limit = std::time::Duration::from_micros(1);
                assert_eq!(receiver.recv_timeout(limit), Err(RecvError::TimedOut));
                drop(receiver);
                world
            },
            |mailbox| mailbox.wake(),
            [&[], &[Err(RecvError::Woken)]],
        )
        .at_least(4),
    );
    suite.run(case(
        "woken",
        || {
            let world = world(3);
            world.mailbox.wake();
            world
        },
        |mailbox| {
            let receiver = mailbox.receiver().expect("nobody else");
            assert_eq!(receiver.recv(), Err(RecvError::Woken));
        },
        [&[Err(RecvError::Woken), Ok(1), Ok(2)], &[Ok(1), Ok(2)]],
    ));
}
