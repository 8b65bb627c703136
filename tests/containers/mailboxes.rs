//! Mailboxes, from several processes, some of which are killed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shmkit::process::{JoinError, scope};
use shmkit::{Mailbox, PushRefusal, Receiver, ReceiverError, RecvError, Shared, ShmSafe};

use crate::{Sealed, allocated, assert_sound, pool};

const SHORT: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(60);

fn mailbox<T: ShmSafe + Unpin>(slots: usize) -> Shared<Mailbox<T>> {
    pool().create(Mailbox::new(slots)).ok().unwrap()
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
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
    assert_eq!(none.receiver().unwrap().recv(), Err(RecvError::NoSlots));

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
