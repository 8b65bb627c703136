//! Queues: one process with a model, several processes, and workers that are killed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shmkit::process::{JoinError, ScopedJoinHandle, scope};
use shmkit::{
    AllocError, Array, Buffer, Lease, Pool, PopError, PushError, PushRefusal, Queue, Shared,
    ShmSafe,
};

use crate::stopped::sleeps;
use crate::{Sealed, allocated, assert_sound, pool};

fn queue<T: ShmSafe + Unpin>(capacity: usize) -> Shared<Queue<T>> {
    pool().create(Queue::bounded(capacity)).ok().unwrap()
}

fn unbounded<T: ShmSafe + Unpin>() -> Shared<Queue<T>> {
    pool().create(Queue::unbounded()).ok().unwrap()
}

fn cause<T>(outcome: Result<(), PushError<T>>) -> Option<PushRefusal> {
    outcome.err().map(|error| error.cause)
}

const SHORT: Duration = Duration::from_millis(5);

pub fn first_in_first_out() {
    let queue = queue(3);
    assert_eq!(
        (queue.len(), queue.capacity(), queue.is_empty()),
        (0, Some(3), true)
    );
    assert_eq!(queue.try_pop(), Err(PopError::Empty));
    assert_eq!(queue.pop_timeout(SHORT), Err(PopError::TimedOut));
    for n in 0..3_u16 {
        queue.push(n).unwrap();
    }
    let refused = queue.try_push(9).unwrap_err();
    assert_eq!((refused.value, refused.cause), (9, PushRefusal::Full));
    let refused = queue.push_timeout(9, SHORT).unwrap_err();
    assert_eq!((refused.value, refused.cause), (9, PushRefusal::TimedOut));
    assert_eq!(
        (queue.peek(), queue.len(), queue.is_empty()),
        (Some(0), 3, false)
    );
    assert_eq!(queue.iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((queue.pop(), queue.pop()), (Ok(0), Ok(1)));
    queue.push(3).unwrap();
    assert_eq!(queue.iter().rev().collect::<Vec<_>>(), [3, 2]);
    queue.clear();
    assert_eq!((queue.peek(), queue.len()), (None, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64),
    Pop,
    Lease,
    Ack(usize),
    GiveBack(usize),
    Clear,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<u64>().prop_map(Step::Push),
        6 => Just(Step::Pop),
        3 => Just(Step::Lease),
        2 => (0..4_usize).prop_map(Step::Ack),
        2 => (0..4_usize).prop_map(Step::GiveBack),
        1 => Just(Step::Clear),
        1 => Just(Step::Close),
    ]
}

/// Runs the steps on a queue of elements that `of` makes, and on a `VecDeque`. What comes back is
/// before all others, in the order of the pushes.
fn compare<T: ShmSafe + Unpin + Copy + PartialEq + std::fmt::Debug>(
    pool: Pool,
    capacity: usize,
    steps: &[Step],
    of: fn(u64) -> T,
) {
    let queue = match capacity {
        0 => Queue::unbounded(),
        _ => Queue::bounded(capacity),
    };
    let queue = pool.create(queue).ok().unwrap();
    let (mut model, mut back, mut leases) = (VecDeque::new(), VecDeque::new(), Vec::new());
    let (mut next, mut closed) = (0_u64, false);
    if capacity == 0 {
        // So that the steps come to the end of the first ring, and of the second.
        for n in 0..steps.len() as u64 % 3 * 31 {
            queue.push(of(n)).ok().unwrap();
            model.push_back((next, of(n)));
            next += 1;
        }
    }
    for step in steps {
        match *step {
            Step::Push(n) => {
                let outcome = queue.try_push(of(n));
                let full = capacity > 0 && model.len() == capacity;
                let expected = match (closed, full) {
                    (true, _) => Some(PushRefusal::Closed),
                    (_, true) => Some(PushRefusal::Full),
                    _ => None,
                };
                assert_eq!(cause(outcome), expected);
                if expected.is_none() {
                    model.push_back((next, of(n)));
                    next += 1;
                }
            }
            Step::Pop => {
                let expected = back.pop_front().or_else(|| model.pop_front());
                let popped = queue.try_pop().ok();
                assert_eq!(popped, expected.map(|(_, e): (u64, T)| e));
            }
            Step::Lease => {
                let expected = back.pop_front().or_else(|| model.pop_front());
                let lease = queue.try_lease().ok();
                assert_eq!(lease.as_deref().copied(), expected.map(|(_, e)| e));
                if let (Some(lease), Some(expected)) = (lease, expected) {
                    leases.push((lease, expected));
                }
            }
            Step::Ack(i) if i < leases.len() => {
                let (lease, (_, element)) = leases.remove(i);
                assert_eq!(lease.ack(), element);
            }
            Step::GiveBack(i) if i < leases.len() => {
                back.push_back(leases.remove(i).1);
                back.make_contiguous()
                    .sort_by_key(|(position, _)| *position);
            }
            Step::Ack(_) | Step::GiveBack(_) => {}
            Step::Clear => {
                queue.clear();
                back.clear();
                model.clear();
            }
            Step::Close => {
                // Every other run of steps goes on without it.
                if steps.len().is_multiple_of(2) {
                    queue.close();
                    closed = true;
                }
            }
        }
        let all: Vec<T> = back.iter().chain(&model).map(|(_, e)| *e).collect();
        assert_eq!(queue.iter().collect::<Vec<_>>(), all);
        assert_eq!((queue.len(), queue.is_empty()), (all.len(), all.is_empty()));
        assert_eq!(queue.peek(), all.first().copied());
        assert_eq!(queue.is_closed(), closed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ShmSafe)]
struct Odd(u8, u64, [u8; 11]);

pub fn behaves_like_a_vec_deque() {
    let pool = pool();
    let before = allocated(pool);
    let config = Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = proptest::collection::vec(step(), 1..80);
    TestRunner::new(config)
        .run(&(0..6_usize, steps), |(capacity, steps)| {
            compare(pool, capacity, &steps, |n| n as u8);
            compare(pool, capacity, &steps, |n| Odd(n as u8, n, [n as u8; 11]));
            compare(pool, capacity, &steps, Sealed::new);
            Ok(())
        })
        .unwrap();
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

pub fn queued_elements_of_every_size() {
    fn through<T: ShmSafe + Unpin + Copy + PartialEq + std::fmt::Debug>(value: T) {
        let queue = queue(2);
        for _ in 0..5 {
            queue.push(value).unwrap();
            assert_eq!(queue.peek(), Some(value));
            assert_eq!(queue.lease().unwrap().ack(), value);
        }
    }
    through(());
    through(7_u8);
    through([1_u8, 2, 3]);
    through(0x0102_0304_u32);
    through(-5_i128);
    through([9_u8; 13]);
    through((true, 'x', 5_u16));
    through([0x55_u8; 5000]);
    through(Some(3.5_f64));
}

pub fn queues_refuse() {
    let outside = Queue::bounded(4);
    assert_eq!(cause(outside.push(1_u32)), Some(PushRefusal::NotInPool));
    assert_eq!(outside.pop(), Err(PopError::NotInPool));
    assert_eq!(outside.lease().err(), Some(PopError::NotInPool));
    assert_eq!((outside.peek(), outside.len()), (None, 0));
    outside.close();
    assert!(!outside.is_closed());

    let none = queue(0);
    assert_eq!(cause(none.push(1_u32)), Some(PushRefusal::NoCapacity));
    assert_eq!(none.pop(), Err(PopError::NoCapacity));
    assert_eq!(none.lease().err(), Some(PopError::NoCapacity));

    // Until the pool is full.
    let endless = unbounded();
    let refused = (0_u64..).find_map(|n| endless.push(n).err()).unwrap();
    assert!(matches!(refused.cause, PushRefusal::Alloc(_)), "{refused}");
    assert_eq!(endless.len() as u64, refused.value);
    assert!((0..refused.value).all(|n| endless.pop() == Ok(n)));
    endless.push(1).unwrap();
    assert_eq!(
        (endless.pop(), endless.try_pop()),
        (Ok(1), Err(PopError::Empty))
    );

    // There is not so much memory.
    let huge = queue(1 << 24);
    let refused = huge.push(5_u64).unwrap_err();
    assert_eq!(refused.value, 5);
    assert!(matches!(refused.cause, PushRefusal::Alloc(_)), "{refused}");
    let endless = queue(1 << 32);
    let refused = endless.push([0_u64; 512]).unwrap_err();
    assert_eq!(refused.cause, PushRefusal::Alloc(AllocError::TooLarge));

    let pool = pool();
    let gone = pool.create(Queue::<u8>::bounded(1)).unwrap();
    let handle = gone.handle();
    gone.push(1).unwrap();
    drop(gone);
    assert!(handle.open().is_err());
    assert_sound(pool);
}

pub fn a_full_pool_loses_no_element() {
    let pool = pool();
    let queue = pool.create(Queue::bounded(100)).unwrap();
    let mut blocks = Vec::new();
    for size in [1 << 20, 1 << 14, 1 << 10, 64] {
        let layout = std::alloc::Layout::from_size_align(size, 8).unwrap();
        while let Ok(block) = pool.allocate(layout) {
            blocks.push(block);
        }
    }
    let refused = queue.push(Sealed::new(1)).unwrap_err();
    assert_eq!(refused.value, Sealed::new(1));
    assert!(matches!(refused.cause, PushRefusal::Alloc(_)));
    assert_eq!(queue.try_pop(), Err(PopError::Empty));
    let half = blocks.len() / 2;
    for block in blocks.drain(..half) {
        // SAFETY: allocated above, and used by nobody.
        unsafe { pool.deallocate(block.cast()) }.unwrap();
    }
    queue.push(Sealed::new(1)).unwrap();
    assert_eq!(queue.pop(), Ok(Sealed::new(1)));
    assert_sound(pool);
}

#[derive(ShmSafe)]
struct Office {
    requests: Queue<u64>,
    name: u32,
    replies: [Queue<Odd>; 3],
    notes: Queue<u32>,
}

pub fn destroyed_queues_return_every_byte() {
    let pool = pool();
    drop(pool.create(Queue::<u8>::bounded(1)).unwrap());
    let before = allocated(pool);
    for used in 0..3 {
        let office = pool.create(Office {
            requests: Queue::bounded(1000),
            name: 7,
            replies: [const { Queue::bounded(3) }; 3],
            notes: Queue::unbounded(),
        });
        let office = office.ok().unwrap();
        for reply in &office.replies[..used] {
            reply.push(Odd(1, 2, [3; 11])).unwrap();
        }
        office.requests.push(5).unwrap();
        (0..used as u32 * 70).for_each(|n| office.notes.push(n).unwrap());
        drop(office.requests.lease());
        assert_eq!(office.name, 7);
        drop(office);
        assert_eq!(allocated(pool), before);
    }
    assert_sound(pool);
}

pub fn closed_queues() {
    let queue = queue(4);
    queue.push(1_u8).unwrap();
    queue.push(2).unwrap();
    let lease = queue.lease().unwrap();
    queue.close();
    assert!(queue.is_closed());
    assert_eq!(cause(queue.push(3)), Some(PushRefusal::Closed));
    assert_eq!(queue.pop(), Ok(2));
    drop(lease);
    assert_eq!(queue.pop(), Ok(1));
    assert_eq!(queue.pop(), Err(PopError::Closed));
    assert_eq!(queue.try_lease().err(), Some(PopError::Closed));
    // One that waits is told.
    let queue = self::queue::<u8>(1);
    scope(|s| {
        let waits = s.spawn(|| queue.pop() == Err(PopError::Closed)).unwrap();
        let leases = s.spawn(|| queue.lease().err() == Some(PopError::Closed));
        queue.close();
        assert!(waits.join().unwrap() && leases.unwrap().join().unwrap());
    });
}

pub fn leases_come_back() {
    let queue = queue(100);
    (0..70_u32).for_each(|n| queue.push(n).unwrap());
    let mut leases: Vec<_> = (0..64).map(|_| queue.lease().unwrap()).collect();
    assert_eq!(queue.try_lease().err(), Some(PopError::TooManyLeases));
    assert_eq!((queue.len(), queue.peek()), (6, Some(64)));
    assert_eq!(leases.remove(10).ack(), 10);
    drop(leases.drain(20..30));
    assert_eq!((queue.len(), queue.peek()), (16, Some(21)));
    assert_eq!((queue.pop(), *queue.lease().unwrap()), (Ok(21), 22));
    drop(leases);
    let rest: Vec<_> = (0..70).filter(|n| ![10, 21].contains(n)).collect();
    assert_eq!(queue.iter().collect::<Vec<_>>(), rest);
    let popped: Vec<_> = std::iter::from_fn(|| queue.try_pop().ok()).collect();
    assert_eq!(popped, rest);
}

fn die() {
    raise(Signal::SIGKILL).unwrap();
}

#[track_caller]
fn was_killed(child: ScopedJoinHandle<'_, ()>) {
    let end = child.join();
    assert!(matches!(end, Err(JoinError::Signaled(9))), "{end:?}");
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

pub fn the_leases_of_the_killed_come_back() {
    let queue = queue(10);
    (0..5_u32).for_each(|n| queue.push(n).unwrap());
    scope(|s| {
        let queue = &queue;
        let child = s.spawn(move || {
            let _leases = (queue.lease().unwrap(), queue.lease().unwrap());
            let third = queue.lease().unwrap();
            assert_eq!(third.ack(), 2);
            die();
        });
        was_killed(child.unwrap());
    });
    assert_eq!(queue.iter().collect::<Vec<_>>(), [0, 1, 3, 4]);
    assert_eq!(
        (queue.pop(), queue.pop(), queue.pop()),
        (Ok(0), Ok(1), Ok(3))
    );
    // A closed queue waits for what a living one has.
    queue.close();
    let step = queue.pool().create(AtomicU32::new(0)).unwrap();
    scope(|s| {
        let (queue, step) = (&queue, &step);
        let child = s.spawn(move || {
            let lease = queue.lease().unwrap();
            step.store(1, Ordering::SeqCst);
            until(|| step.load(Ordering::SeqCst) == 2);
            assert_eq!(lease.ack(), 4);
        });
        until(|| step.load(Ordering::SeqCst) == 1);
        assert_eq!(queue.try_pop(), Err(PopError::Empty));
        step.store(2, Ordering::SeqCst);
        assert_eq!(queue.pop(), Err(PopError::Closed));
        child.unwrap().join().unwrap();
    });
}

/// An element of a producer: its number, and that of the element.
fn element(producer: u64, n: u64) -> Sealed {
    Sealed::new(producer << 32 | n)
}

/// Takes elements to pieces, and checks that each producer's come in order, none left out.
struct Ledger(Vec<u64>);

impl Ledger {
    fn enter(&mut self, element: Sealed) {
        assert!(element.is_whole());
        let (producer, n) = ((element.a >> 32) as usize, element.a & 0xffff_ffff);
        assert_eq!(n, self.0[producer], "of producer {producer}");
        self.0[producer] += 1;
    }
}

pub fn producers_and_a_consumer() {
    produce_and_consume(queue(7));
    produce_and_consume(unbounded());
}

fn produce_and_consume(queue: Shared<Queue<Sealed>>) {
    const EACH: u64 = 20_000;
    let mut ledger = Ledger(vec![0; 4]);
    scope(|s| {
        for producer in 0..4 {
            let queue = &queue;
            s.spawn(move || (0..EACH).for_each(|n| queue.push(element(producer, n)).unwrap()))
                .unwrap();
        }
        (0..4 * EACH).for_each(|_| ledger.enter(queue.pop().unwrap()));
    });
    assert_eq!(ledger.0, [EACH; 4]);
    assert_eq!(queue.try_pop(), Err(PopError::Empty));
    assert_sound(queue.pool());
}

pub fn producers_and_consumers() {
    const EACH: u64 = 20_000;
    let queue = queue::<Sealed>(50);
    let pool = queue.pool();
    let counts = Array::filled_in(pool, 3 * EACH as usize, 0_u32).unwrap();
    let sum = pool.create(AtomicU64::new(0)).unwrap();
    scope(|s| {
        let (queue, counts, sum) = (&queue, &counts, &sum);
        let producers = [0, 1, 2].map(|producer| {
            s.spawn(move || {
                let numbers = producer * EACH..(producer + 1) * EACH;
                numbers.for_each(|n| queue.push(Sealed::new(n)).unwrap());
            })
            .unwrap()
        });
        for consumer in 0..2 {
            s.spawn(move || {
                let mut last = [None; 3];
                let take = || match consumer {
                    0 => queue.pop(),
                    _ => queue.lease().map(|lease| lease.ack()),
                };
                while let Ok(element) = take() {
                    assert!(element.is_whole());
                    let last = &mut last[(element.a / EACH) as usize];
                    assert!(last.is_none_or(|last| last < element.a), "out of order");
                    *last = Some(element.a);
                    counts.update(element.a as usize, |n| n + 1).unwrap();
                    sum.fetch_add(element.a, Ordering::Relaxed);
                }
            })
            .unwrap();
        }
        producers.into_iter().for_each(|p| p.join().unwrap());
        queue.close();
    });
    let all = 3 * EACH;
    assert_eq!(sum.load(Ordering::Relaxed), all * (all - 1) / 2);
    assert!(counts.claim(..).unwrap().iter().all(|&n| n == 1));
    assert_sound(pool);
}

/// Each gets a share, although there is never room for all: one that waits is not passed for ever. The
/// consumer lets the queue fill, as one that is as fast as a producer alone would see that one only.
pub fn no_producer_starves() {
    const POPS: u64 = 60_000;
    let queue = queue(2);
    let mut shares = [0_u64; 3];
    scope(|s| {
        for producer in 0..3_u64 {
            let queue = &queue;
            s.spawn(move || while queue.push(producer).is_ok() {})
                .unwrap();
        }
        // From when all are there.
        while shares.contains(&0) {
            shares[queue.pop().unwrap() as usize] += 1;
        }
        shares = [0; 3];
        for _ in 0..POPS {
            std::thread::yield_now();
            shares[queue.pop().unwrap() as usize] += 1;
        }
        queue.close();
    });
    assert!(shares.iter().all(|&n| n >= POPS / 100), "{shares:?}");
}

/// A producer that sleeps, and runs only while nobody else wants the processor, is passed a few times.
pub fn a_sleeping_producer_gets_its_turn() {
    const OURS: u32 = 1;
    const THEIRS: u32 = 2;
    // SAFETY: a set of processors is plain data; the calls change where and when this process and its
    // child run.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut one);
        assert_eq!(
            libc::sched_setaffinity(0, size_of_val(&one), &raw const one),
            0
        );
    }
    let queue = queue(1);
    queue.push(OURS).unwrap();
    scope(|s| {
        let queue = &queue;
        let child = s.spawn(move || {
            let last = libc::sched_param { sched_priority: 0 };
            // SAFETY: as above.
            let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const last) };
            assert_eq!(set, 0);
            let _ = queue.push(THEIRS);
        });
        let child = child.unwrap();
        until(|| sleeps(child.id().pid()));
        let mut passed = 0;
        while passed < 50 && queue.pop() == Ok(OURS) {
            match queue.push_timeout(OURS, Duration::from_millis(100)) {
                Ok(()) => passed += 1,
                // It has pushed.
                Err(refused) => assert_eq!(refused.cause, PushRefusal::TimedOut),
            }
        }
        queue.close();
        child.join().unwrap();
        assert!(passed < 50, "passed all the time");
    });
}

/// There is always an element: there are three, and of those who look the others have two at most. Some
/// come back.
pub fn elements_that_come_back_are_not_missed() {
    const ROUNDS: u32 = 100_000;
    let queue = queue(8);
    (0..3_u64).for_each(|n| queue.push(n).unwrap());
    scope(|s| {
        let queue = &queue;
        for _ in 0..2 {
            s.spawn(move || (0..ROUNDS).for_each(|_| drop(queue.try_lease().unwrap())))
                .unwrap();
        }
        for n in 0..ROUNDS {
            assert!(queue.peek().is_some() && !queue.is_empty());
            let element = match n % 3 {
                0 => queue.try_lease().map(Lease::ack),
                _ => queue.try_pop(),
            };
            queue.push(element.unwrap()).unwrap();
        }
    });
    assert_eq!(queue.len(), 3);
    assert_sound(queue.pool());
}

/// Objects of a process that was killed, and that nobody has destroyed yet, make room.
pub fn what_the_dead_held_makes_room_for_queues_and_buffers() {
    let pool = pool();
    let queue = pool.create(Queue::<[u64; 512]>::bounded(100)).unwrap();
    let endless = pool.create(Queue::<[u64; 128]>::unbounded()).unwrap();
    (0..32).for_each(|_| endless.push([1; 128]).unwrap());
    let buffer = pool.create(Buffer::new()).unwrap();
    let all = |use_it: &dyn Fn()| {
        killed_with_a_full_pool(pool);
        use_it();
    };
    all(&|| queue.push([1; 512]).unwrap());
    all(&|| endless.push([2; 128]).unwrap());
    all(&|| assert_eq!(buffer.append(&[3; 1 << 20]), Ok(0)));
    all(&|| drop(endless.lease().unwrap()));
    assert_sound(pool);
}

/// A child fills the pool with objects and is killed. It is no child of a scope, which would destroy
/// them.
fn killed_with_a_full_pool(pool: Pool) {
    // SAFETY: the case has one thread.
    let child = match unsafe { libc::fork() } {
        0 => {
            for len in [1 << 17, 1 << 13, 1 << 9, 1 << 5, 1] {
                while let Ok(array) = Array::filled_in(pool, len, 1_u64) {
                    std::mem::forget(array);
                }
            }
            die();
            unreachable!()
        }
        child => child,
    };
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: a child of ours; the status is this frame's.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status));
}

pub fn killed_producers() {
    kill_producers(queue(16));
    kill_producers(unbounded());
}

fn kill_producers(queue: Shared<Queue<Sealed>>) {
    let pool = queue.pool();
    let acknowledged = pool.create(AtomicU64::new(0)).unwrap();
    let rounds = 60;
    let mut ledger = Ledger(vec![0; 2 * rounds + 1]);
    for round in 0..rounds {
        scope(|s| {
            let (queue, acknowledged) = (&queue, &acknowledged);
            acknowledged.store(0, Ordering::SeqCst);
            let stop = 2 * round as u64 + 1;
            let victim = s.spawn(move || {
                for n in 0.. {
                    // One without bounds would fill the pool.
                    until(|| n % 64 != 0 || queue.len() < 500);
                    queue.push(element(stop - 1, n)).unwrap();
                    acknowledged.store(n + 1, Ordering::SeqCst);
                }
            });
            let other = s.spawn(move || {
                (0..500).for_each(|n| queue.push(element(stop, n)).unwrap());
            });
            let (victim, other) = (victim.unwrap(), other.unwrap());
            while ledger.0[stop as usize - 1] < 20 + 31 * (round as u64 % 7) {
                ledger.enter(queue.pop().unwrap());
            }
            victim.kill().unwrap();
            was_killed(victim);
            while ledger.0[stop as usize] < 500 {
                ledger.enter(queue.pop().unwrap());
            }
            other.join().unwrap();
            while let Ok(element) = queue.try_pop() {
                ledger.enter(element);
            }
            let (had, told) = (
                ledger.0[stop as usize - 1],
                acknowledged.load(Ordering::SeqCst),
            );
            assert!(had == told || had == told + 1, "{had} of {told}");
            // All places are there.
            (0..16).for_each(|n| queue.try_push(element(2 * rounds as u64, n)).unwrap());
            if queue.capacity().is_some() {
                let refused = cause(queue.try_push(Sealed::new(0)));
                assert_eq!(refused, Some(PushRefusal::Full));
            }
            queue.clear();
        });
    }
    assert_sound(pool);
}

/// Takes one element of a queue, and tells it.
type Consume = fn(&Queue<Sealed>, &dyn Fn(Sealed)) -> Result<(), PopError>;

/// Numbers go through a queue, while consumers are killed: how often each number was told, and how
/// many consumers were killed.
fn kill_consumers(take: Consume) -> (Vec<u32>, usize) {
    const KILLS: usize = 15;
    const MOST: u64 = 1 << 20;
    let queue = queue::<Sealed>(16);
    let pool = queue.pool();
    let counts = Array::filled_in(pool, MOST as usize, 0_u32).unwrap();
    let [seen, pushed, enough] = [0, 1, 2].map(|_| pool.create(AtomicU64::new(0)).unwrap());
    let mut killed = 0;
    scope(|s| {
        let (queue, counts, seen, pushed, enough) = (&queue, &counts, &seen, &pushed, &enough);
        let consume = move || {
            let tell = |element: Sealed| {
                assert!(element.is_whole());
                counts.update(element.a as usize, |n| n + 1).unwrap();
                seen.fetch_add(1, Ordering::SeqCst);
            };
            while take(queue, &tell).is_ok() {}
        };
        s.spawn(move || {
            for n in 0..MOST {
                if enough.load(Ordering::SeqCst) == 1 {
                    break;
                }
                queue.push(Sealed::new(n)).unwrap();
                pushed.store(n + 1, Ordering::SeqCst);
            }
            queue.close();
        })
        .unwrap();
        s.spawn(consume).unwrap();
        while killed < KILLS && !queue.is_closed() {
            let victim = s.spawn(consume).unwrap();
            let start = seen.load(Ordering::SeqCst);
            let some = start + 50 + start % 29;
            until(|| seen.load(Ordering::SeqCst) > some || queue.is_closed());
            victim.kill().unwrap();
            killed += usize::from(matches!(victim.join(), Err(JoinError::Signaled(9))));
        }
        enough.store(1, Ordering::SeqCst);
    });
    assert_eq!(queue.pop(), Err(PopError::Closed));
    assert!(killed > 0);
    assert_sound(pool);
    let counts = counts.claim(..).unwrap();
    let (had, rest) = counts.split_at(pushed.load(Ordering::SeqCst) as usize);
    assert!(rest.iter().all(|&n| n == 0));
    (had.to_vec(), killed)
}

pub fn killed_consumers() {
    let (told, killed) = kill_consumers(|queue, tell| queue.pop().map(tell));
    assert!(told.iter().all(|&n| n <= 1), "doubled");
    let lost = told.iter().filter(|&&n| n == 0).count();
    assert!(lost <= killed, "{lost} lost with {killed} killed");
}

pub fn killed_leasers() {
    let (told, killed) = kill_consumers(|queue, tell| {
        let lease = queue.lease()?;
        tell(*lease);
        lease.ack();
        Ok(())
    });
    assert!(told.iter().all(|&n| n >= 1), "lost");
    let again: u32 = told.iter().map(|&n| n - 1).sum();
    assert!(again as usize <= killed, "{again} again, {killed} killed");
}
