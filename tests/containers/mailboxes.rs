//! Mailboxes: with a model, and from several processes, some of which are killed.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use shmkit::process::{JoinError, SpawnError, scope};
use shmkit::{
    Mailbox, Pool, PushError, PushRefusal, Receiver, ReceiverError, RecvError, Shared, ShmSafe,
};

use crate::common::{fork, leave, reap};
use crate::workers::until;
use crate::{Sealed, allocated, assert_sound, on_random, pool};

const SHORT: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(60);

fn mailbox<T: ShmSafe + Unpin>(slots: usize) -> Shared<Mailbox<T>> {
    pool().create(Mailbox::new(slots)).ok().unwrap()
}

/// What is done to one of two mailboxes, or to both.
#[derive(Clone, Debug)]
enum Step {
    Send(usize, u64),
    TrySend(usize, u64),
    SendTimeout(usize, u64),
    /// Becomes the receiver, or is it no more.
    Receiver(usize),
    Receive(usize),
    TryReceive(usize),
    ReceiveTimeout(usize),
    Wake(usize),
    WaitAny,
    Close(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let which = || 0..2_usize;
    let message = || (which(), any::<u64>());
    prop_oneof![
        4 => message().prop_map(|(i, n)| Step::Send(i, n)),
        3 => message().prop_map(|(i, n)| Step::TrySend(i, n)),
        2 => message().prop_map(|(i, n)| Step::SendTimeout(i, n)),
        5 => which().prop_map(Step::Receiver),
        4 => which().prop_map(Step::Receive),
        4 => which().prop_map(Step::TryReceive),
        2 => which().prop_map(Step::ReceiveTimeout),
        2 => which().prop_map(Step::Wake),
        2 => Just(Step::WaitAny),
        1 => which().prop_map(Step::Close),
    ]
}

/// What a mailbox must be.
struct Model<T> {
    slots: usize,
    messages: VecDeque<T>,
    woken: bool,
    closed: bool,
}

impl<T: Copy> Model<T> {
    fn new(slots: usize) -> Self {
        Model {
            slots,
            messages: VecDeque::new(),
            woken: false,
            closed: false,
        }
    }

    /// What becomes of a message; if it is to wait for a slot, `full`.
    fn send(&mut self, message: T, full: PushRefusal) -> Option<PushRefusal> {
        if self.slots == 0 {
            return Some(PushRefusal::NoCapacity);
        }
        if self.closed {
            return Some(PushRefusal::Closed);
        }
        if self.messages.len() == self.slots {
            return Some(full);
        }
        self.messages.push_back(message);
        None
    }

    /// What is received; if nothing is there to be, `empty`.
    fn receive(&mut self, empty: RecvError) -> Result<T, RecvError> {
        if std::mem::take(&mut self.woken) {
            return Err(RecvError::Woken);
        }
        let message = self.messages.pop_front();
        message.ok_or(match (self.slots, self.closed) {
            (0, _) => RecvError::NoCapacity,
            (_, true) => RecvError::Closed,
            (_, false) => empty,
        })
    }

    fn is_ready(&self) -> bool {
        self.woken || self.closed || self.slots == 0 || !self.messages.is_empty()
    }
}

/// Runs the steps on mailboxes of messages that `of` makes, and on `VecDeque`s. Nothing that would wait
/// for ever is done.
fn compare<T>(pool: Pool, slots: [usize; 2], steps: &[Step], of: fn(u64) -> T)
where
    T: ShmSafe + Unpin + Copy + PartialEq + Debug,
{
    const SHORTEST: Duration = Duration::from_nanos(1);
    let boxes = slots.map(|slots| pool.create(Mailbox::new(slots)).ok().unwrap());
    let mut models = slots.map(Model::new);
    let mut receivers = [None, None];
    let refused = |sent: Result<(), PushError<T>>, message: T| {
        sent.err().map(|error| {
            assert_eq!(error.value, message);
            error.cause
        })
    };
    for step in steps {
        match *step {
            Step::Send(i, n) => {
                let model = &mut models[i];
                if model.closed || slots[i] == 0 || model.messages.len() < slots[i] {
                    let expected = model.send(of(n), PushRefusal::Full);
                    assert_eq!(refused(boxes[i].send(of(n)), of(n)), expected);
                }
            }
            Step::TrySend(i, n) => {
                let expected = models[i].send(of(n), PushRefusal::Full);
                assert_eq!(refused(boxes[i].try_send(of(n)), of(n)), expected);
            }
            Step::SendTimeout(i, n) => {
                let sent = boxes[i].send_timeout(of(n), SHORTEST);
                let expected = models[i].send(of(n), PushRefusal::TimedOut);
                assert_eq!(refused(sent, of(n)), expected);
            }
            Step::Receiver(i) => match receivers[i].take() {
                Some(receiver) => {
                    assert_eq!(boxes[i].receiver().err(), Some(ReceiverError::Taken));
                    drop(receiver);
                }
                None => receivers[i] = Some(boxes[i].receiver().unwrap()),
            },
            Step::Receive(i) => {
                if let Some(receiver) = &receivers[i]
                    && models[i].is_ready()
                {
                    let expected = models[i].receive(RecvError::Empty);
                    assert_eq!(receiver.recv(), expected);
                }
            }
            Step::TryReceive(i) => {
                if let Some(receiver) = &receivers[i] {
                    let expected = models[i].receive(RecvError::Empty);
                    assert_eq!(receiver.try_recv(), expected);
                }
            }
            Step::ReceiveTimeout(i) => {
                if let Some(receiver) = &receivers[i] {
                    let expected = models[i].receive(RecvError::TimedOut);
                    assert_eq!(receiver.recv_timeout(SHORTEST), expected);
                }
            }
            Step::Wake(i) => {
                boxes[i].wake();
                models[i].woken = true;
            }
            Step::WaitAny => {
                let there = || receivers.iter().zip(&models).filter(|(r, _)| r.is_some());
                let all: Vec<_> = there().filter_map(|(r, _)| r.as_ref()).collect();
                let ready = there().position(|(_, model)| model.is_ready());
                assert_eq!(Receiver::wait_any(&all, SHORTEST), ready);
            }
            Step::Close(i) => {
                // Every other run of steps goes on without it.
                if steps.len().is_multiple_of(2) {
                    boxes[i].close();
                    models[i].closed = true;
                }
            }
        }
        for (i, model) in models.iter().enumerate() {
            let (mailbox, messages) = (&boxes[i], &model.messages);
            let (len, empty) = (messages.len(), messages.is_empty());
            assert_eq!((mailbox.len(), mailbox.is_empty()), (len, empty));
            assert_eq!(mailbox.is_closed(), model.closed);
            assert_eq!(mailbox.capacity(), slots[i]);
            if let Some(receiver) = &receivers[i] {
                assert_eq!(receiver.is_ready(), model.is_ready());
            }
        }
    }
    drop(receivers);
    assert_sound(pool);
}

pub fn mailboxes_behave_like_vec_deques() {
    let pool = pool();
    let before = allocated(pool);
    let steps = prop::collection::vec(step(), 1..80);
    on_random(100, &([0..5_usize, 0..5], steps), |(slots, steps)| {
        compare(pool, slots, &steps, |n| n as u8);
        compare(pool, slots, &steps, Sealed::new);
        compare(pool, slots, &steps, |n| [n; 50]);
        assert_eq!(allocated(pool), before);
    });
    assert_sound(pool);
}

pub fn many_senders_one_receiver() {
    const EACH: u64 = 10_000;
    let mailbox = mailbox(5);
    let mut next = [0; 4];
    scope(|s| {
        for sender in 0..4 {
            let mailbox = &mailbox;
            s.spawn(move || {
                (0..EACH).for_each(|n| mailbox.send(Sealed::new(sender << 32 | n)).unwrap());
            })
            .unwrap();
        }
        let receiver = mailbox.receiver().unwrap();
        for _ in 0..4 * EACH {
            let message = receiver.recv().unwrap();
            assert!(message.is_whole());
            let next = &mut next[(message.a >> 32) as usize];
            assert_eq!(message.a & 0xffff_ffff, *next);
            *next += 1;
        }
        assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    });
    assert_sound(mailbox.pool());
}

pub fn a_mailbox_has_one_receiver() {
    let mailbox = mailbox(3);
    let receiver = mailbox.receiver().unwrap();
    assert_eq!(mailbox.receiver().err(), Some(ReceiverError::Taken));
    std::thread::scope(|s| {
        let other = s.spawn(|| mailbox.receiver().err());
        assert_eq!(other.join().unwrap(), Some(ReceiverError::Taken));
    });
    mailbox.send(1_u8).unwrap();
    drop(receiver);
    mailbox.send(2).unwrap();
    let receiver = mailbox.receiver().unwrap();
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(1), Ok(2)));
    assert_eq!(receiver.recv_timeout(SHORT), Err(RecvError::TimedOut));
    scope(|s| assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. }))));
    drop(receiver);
    scope(|s| assert!(s.spawn(|| ()).is_ok()));
}

pub fn the_receiver_of_the_killed() {
    let mailbox = mailbox(10);
    (0..6_u64).for_each(|n| mailbox.send(n).unwrap());
    for round in 0..3 {
        scope(|s| {
            let mailbox = &mailbox;
            let child = s.spawn(move || {
                let receiver = mailbox.receiver().unwrap();
                assert_eq!(receiver.recv(), Ok(2 * round));
                std::mem::forget(receiver);
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
            });
            assert!(matches!(child.unwrap().join(), Err(JoinError::Signaled(9))));
        });
        let receiver = mailbox.receiver().unwrap();
        assert_eq!(receiver.recv(), Ok(2 * round + 1));
    }
    assert_sound(mailbox.pool());
}

pub fn wakes() {
    let mailbox = mailbox(2);
    let receiver = mailbox.receiver().unwrap();
    mailbox.send(1_u32).unwrap();
    mailbox.wake();
    mailbox.wake();
    assert_eq!(receiver.recv(), Err(RecvError::Woken));
    assert_eq!(receiver.recv(), Ok(1));
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    drop(receiver);
    scope(|s| {
        let sleeper = s.spawn(|| mailbox.receiver().unwrap().recv() == Err(RecvError::Woken));
        // It has the receiver by then, and is about to sleep or does.
        until(|| mailbox.receiver().is_err());
        mailbox.wake();
        assert!(sleeper.unwrap().join().unwrap());
    });
}

/// Where there will never be a message nobody waits for one.
pub fn nothing_to_wait_for() {
    let (none, some) = (mailbox::<u64>(0), mailbox::<u64>(1));
    let receiver = none.receiver().unwrap();
    assert_eq!(Receiver::wait_any(&[&receiver], LONG), Some(0));
    assert_eq!(receiver.recv(), Err(RecvError::NoCapacity));
    drop(receiver);
    let receiver = some.receiver().unwrap();
    let Some(child) = fork() else {
        let ready = Receiver::wait_any(&[&receiver], LONG);
        leave(ready == Some(0) && receiver.recv() == Err(RecvError::Forked));
    };
    assert_eq!(reap(child), 0);
    assert_eq!(Receiver::wait_any(&[&receiver], SHORT), None);
}

pub fn waiting_for_any() {
    let pool = pool();
    let boxes = [1, 2, 3].map(|slots| pool.create(Mailbox::<u64>::new(slots)).unwrap());
    let first = boxes[0].receiver().unwrap();
    assert_eq!(Receiver::wait_any(&[&first], SHORT), None);
    drop(first);
    scope(|s| {
        let boxes = &boxes;
        let child = s.spawn(move || {
            let receivers = [0, 1, 2].map(|i| boxes[i].receiver().unwrap());
            let all: Vec<_> = receivers.iter().collect();
            let mut sum = 0;
            loop {
                let ready = Receiver::wait_any(&all, LONG).unwrap();
                match receivers[ready].try_recv() {
                    Ok(n) => sum += n,
                    Err(RecvError::Woken) => return sum,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for n in 0..300 {
            boxes[n as usize % 3].send(n).unwrap();
        }
        until(|| boxes.iter().all(|mailbox| mailbox.is_empty()));
        boxes[1].wake();
        assert_eq!(child.unwrap().join().unwrap(), 299 * 150);
    });
    assert_sound(pool);
}

pub fn mailboxes_refuse() {
    let outside = Mailbox::new(1);
    let cause = outside.send(1_u8).map_err(|e| e.cause);
    assert_eq!(cause, Err(PushRefusal::NotInPool));
    assert_eq!(outside.receiver().err(), Some(ReceiverError::NotInPool));
    outside.wake();

    let none = mailbox(0);
    let refused = none.send(5_u8).unwrap_err();
    assert_eq!((refused.value, refused.cause), (5, PushRefusal::NoCapacity));
    assert_eq!(none.receiver().unwrap().recv(), Err(RecvError::NoCapacity));

    let closed = mailbox(2);
    closed.send(1_u8).unwrap();
    closed.close();
    let cause = closed.send_timeout(2, SHORT).map_err(|e| e.cause);
    assert_eq!(cause, Err(PushRefusal::Closed));
    let receiver = closed.receiver().unwrap();
    assert_eq!(
        (receiver.recv(), receiver.recv()),
        (Ok(1), Err(RecvError::Closed))
    );

    let full = mailbox(1);
    full.send(1_u8).unwrap();
    let cause = full.try_send(2).map_err(|e| e.cause);
    assert_eq!(cause, Err(PushRefusal::Full));
    let cause = full.send_timeout(2, SHORT).map_err(|e| e.cause);
    assert_eq!(cause, Err(PushRefusal::TimedOut));
}

pub fn killed_senders_and_receivers() {
    let pool = pool();
    drop(pool.create(Mailbox::<Sealed>::new(1)).ok().unwrap());
    let before = allocated(pool);
    let mailbox = pool.create(Mailbox::new(4)).ok().unwrap();
    let counts = [0, 1].map(|_| pool.create(AtomicU64::new(0)).unwrap());
    for round in 0..60_u64 {
        scope(|s| {
            let (mailbox, [sent, received]) = (&mailbox, &counts);
            let send = move || -> () {
                loop {
                    mailbox.send(Sealed::new(round)).unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            };
            let receive = move || -> () {
                let receiver = loop {
                    match mailbox.receiver() {
                        Ok(receiver) => break receiver,
                        Err(error) => assert_eq!(error, ReceiverError::Taken),
                    }
                };
                loop {
                    assert!(receiver.recv().unwrap().is_whole());
                    received.fetch_add(1, Ordering::SeqCst);
                }
            };
            let start = received.load(Ordering::SeqCst);
            let children = [
                s.spawn(send).unwrap(),
                s.spawn(receive).unwrap(),
                s.spawn(receive).unwrap(),
            ];
            until(|| received.load(Ordering::SeqCst) > start + 50 + round % 13);
            for child in children {
                child.kill().unwrap();
                assert!(child.join().is_err());
            }
        });
        let (sent, received) = (&counts[0], &counts[1]);
        let left = mailbox.len() as u64;
        let (sent, received) = (sent.load(Ordering::SeqCst), received.load(Ordering::SeqCst));
        // Each round has one message at most whose sender, or receiver, did not come to tell.
        let open = round + 1;
        assert!(
            received + left <= sent + open,
            "{received} + {left} of {sent}"
        );
        assert!(
            sent <= received + left + 2 * open,
            "{received} + {left} of {sent}"
        );
    }
    drop((mailbox, counts));
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

/// A wake is a word, which takes no slot.
pub fn woken_by_a_thread_without_a_slot() {
    let pool = Pool::builder().max_participants(1).create().unwrap();
    let mailbox = pool.create(Mailbox::<u32>::new(4)).unwrap();
    let receiver = mailbox.receiver().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            assert!(mailbox.receiver().is_err());
            mailbox.wake();
        });
    });
    assert_eq!(receiver.try_recv(), Err(RecvError::Woken));
}
