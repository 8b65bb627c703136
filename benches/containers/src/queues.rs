//! Queues and mailboxes.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU32, Ordering};

use shmkit::{Mailbox, Queue};

use crate::crew::Crew;
use crate::gate::{self, Gate};
use crate::maps::pool;

/// Places of a bounded queue.
const PLACES: usize = 1024;
/// Elements that pass.
const ELEMENTS: u64 = 2_000_000;
/// Round trips that are timed together.
const BATCH: u64 = 50;
/// Round trips with sleeping.
const TRIPS: u64 = 5_000;

/// The original's message.
const MESSAGE: [u64; 3] = [1, 2, 3];
/// Slots of a mailbox, as in the original's bench.
const SLOTS: usize = 10;

pub fn run(crew: &Crew, bench: &str, subject: &str) {
    match (bench, subject) {
        ("queue_pair", "shmkit") => {
            let queue = pool().create(Queue::bounded(PLACES)).expect("a queue");
            crew.repeat(ELEMENTS, |i| {
                queue.push(i).expect("room");
                black_box(queue.pop().expect("an element"));
            });
        }
        ("queue_pair", "crossbeam") => {
            let (sender, receiver) = crossbeam_channel::bounded(PLACES);
            crew.repeat(ELEMENTS, |i| {
                sender.send(i).expect("room");
                black_box(receiver.recv().expect("an element"));
            });
        }
        ("queue_stream", "shmkit") => {
            let queue = pool().create(Queue::bounded(PLACES)).expect("a queue");
            stream(
                crew,
                |i| queue.push(i).expect("room"),
                || queue.pop().expect("one"),
            );
        }
        ("queue_stream", "crossbeam") => {
            let (sender, receiver) = crossbeam_channel::bounded(PLACES);
            stream(
                crew,
                |i| sender.send(i).expect("room"),
                || receiver.recv().expect("one"),
            );
        }
        ("queue_round_trip", "shmkit") => {
            let pool = pool();
            let queues = [0, 1].map(|_| pool.create(Queue::bounded(1)).expect("a queue"));
            round_trips(
                crew,
                TRIPS,
                |to| queues[to].push(1_u64).expect("room"),
                |of| {
                    black_box(queues[of].pop().expect("an element"));
                },
            );
        }
        ("queue_round_trip", "futex") => futex_round_trips(crew),
        ("mailbox_self", _) => {
            let mailbox = pool().create(Mailbox::new(SLOTS)).expect("a mailbox");
            crew.run(|_, gate| {
                let receiver = mailbox.receiver().expect("the receiver");
                gate.work(|| {
                    for _ in 0..ELEMENTS {
                        mailbox.send(MESSAGE).expect("room");
                        black_box(receiver.recv().expect("a message"));
                    }
                });
                ELEMENTS
            });
        }
        ("mailbox_stream", _) => {
            let mailbox = pool().create(Mailbox::new(SLOTS)).expect("a mailbox");
            crew.run(|worker, gate| {
                if worker == 0 {
                    gate.work(|| {
                        (0..ELEMENTS / 4).for_each(|_| mailbox.send(MESSAGE).expect("room"))
                    });
                    return 0;
                }
                let receiver = mailbox.receiver().expect("the receiver");
                gate.work(|| {
                    for _ in 0..ELEMENTS / 4 {
                        black_box(receiver.recv().expect("a message"));
                    }
                });
                ELEMENTS / 4
            });
        }
        ("mailbox_awake", _) => mailbox_trips(crew, true),
        ("mailbox_round_trip", _) => mailbox_trips(crew, false),
        other => panic!("{other:?}"),
    }
}

/// Worker 0 sends, worker 1 receives.
fn stream(crew: &Crew, send: impl Fn(u64) + Sync, receive: impl Fn() -> u64 + Sync) {
    crew.run(|worker, gate| {
        if worker == 0 {
            gate.work(|| (0..ELEMENTS).for_each(&send));
            return 0;
        }
        gate.work(|| (0..ELEMENTS).for_each(|i| assert_eq!(receive(), i)));
        ELEMENTS
    });
}

/// Worker 0 sends to 1, which answers. An operation is both.
fn round_trips(
    crew: &Crew,
    trips: u64,
    send: impl Fn(usize) + Sync,
    receive: impl Fn(usize) + Sync,
) {
    crew.run(|worker, gate| trip(gate, worker, trips, &send, &receive));
}

/// The trips are timed in batches, of which the median counts: what else the machine does comes
/// in between now and then.
fn trip(
    gate: &Gate,
    worker: usize,
    trips: u64,
    send: impl Fn(usize),
    receive: impl Fn(usize),
) -> u64 {
    let one = || {
        if worker == 0 {
            send(1);
            receive(0);
        } else {
            receive(1);
            send(0);
        }
    };
    gate.work(|| gate.batches(trips, BATCH, one));
    if worker == 0 { trips } else { 0 }
}

/// A word each, on which the worker sleeps until it is set.
fn futex_round_trips(crew: &Crew) {
    // SAFETY: atomic integers, for which zero is a value.
    let words = unsafe { gate::shared::<[AtomicU32; 2]>() };
    let call = |word: &AtomicU32, operation: i32, value: u32| {
        // SAFETY: a futex on a word that stays; no timeout.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                operation,
                value,
                std::ptr::null::<libc::timespec>(),
            )
        }
    };
    round_trips(
        crew,
        TRIPS,
        |to| {
            words[to].store(1, Ordering::Release);
            call(&words[to], libc::FUTEX_WAKE, 1);
        },
        |of| {
            while words[of].swap(0, Ordering::Acquire) == 0 {
                call(&words[of], libc::FUTEX_WAIT, 0);
            }
        },
    );
}

/// To and fro between two mailboxes. Awake: who waits looks again and again, and each of the two
/// messages is an operation.
fn mailbox_trips(crew: &Crew, awake: bool) {
    let pool = pool();
    let boxes = [0, 1].map(|_| pool.create(Mailbox::new(SLOTS)).expect("a mailbox"));
    let trips = if awake { 10 * TRIPS } else { TRIPS };
    crew.run(|worker, gate| {
        let receiver = boxes[worker].receiver().expect("the receiver");
        let done = trip(
            gate,
            worker,
            trips,
            |to| boxes[to].send(MESSAGE).expect("room"),
            |_| {
                if awake {
                    while receiver.try_recv().is_err() {
                        spin_loop();
                    }
                } else {
                    black_box(receiver.recv().expect("a message"));
                }
            },
        );
        if awake { 2 * done } else { done }
    });
}
