//! Queues: with a model, refusals, leases that come back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use shmkit::process::scope;
use shmkit::{AllocError, Pool, PopError, PushError, PushRefusal, Queue, Shared, ShmSafe};

use crate::workers::{die, left_by_a_thread_of_the_killed, until, was_killed};
use crate::{Sealed, allocated, assert_sound, on_random, pool};

pub fn queue<T: ShmSafe + Unpin>(capacity: usize) -> Shared<Queue<T>> {
    pool().create(Queue::bounded(capacity)).ok().unwrap()
}

pub fn unbounded<T: ShmSafe + Unpin>() -> Shared<Queue<T>> {
    pool().create(Queue::unbounded()).ok().unwrap()
}

pub fn cause<T>(outcome: Result<(), PushError<T>>) -> Option<PushRefusal> {
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
    let steps = proptest::collection::vec(step(), 1..80);
    on_random(150, &(0..6_usize, steps), |(capacity, steps)| {
        compare(pool, capacity, &steps, |n| n as u8);
        compare(pool, capacity, &steps, |n| Odd(n as u8, n, [n as u8; 11]));
        compare(pool, capacity, &steps, Sealed::new);
    });
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
    assert!(
        matches!(refused.cause, PushRefusal::Alloc(_)),
        "{refused:?}"
    );
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
    assert!(
        matches!(refused.cause, PushRefusal::Alloc(_)),
        "{refused:?}"
    );
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
    // Its own lease is nothing to wait for.
    assert_eq!(queue.pop(), Err(PopError::Closed));
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
    let too_many = Some(PopError::TooManyLeases);
    assert_eq!(
        [queue.try_lease().err(), queue.lease().err()],
        [too_many; 2]
    );
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

/// Positions rise from ring to ring.
pub fn leases_of_several_rings_come_back_in_order() {
    let queue = unbounded();
    (0..60_u32).for_each(|n| queue.push(n).unwrap());
    let leases: Vec<_> = (0..60).map(|_| queue.lease().unwrap()).collect();
    leases.into_iter().rev().for_each(drop);
    assert!(queue.iter().eq(0..60));
    let popped = std::iter::from_fn(|| queue.try_pop().ok());
    assert!(popped.eq(0..60));
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

/// As for claims: attempts that do not wait hear of such a death, too.
pub fn the_leases_of_threads_that_have_ended_come_back() {
    let ways: [fn(&Queue<u32>) -> bool; 6] = [
        |queue| queue.try_pop().is_ok(),
        |queue| queue.try_lease().is_ok(),
        |queue| queue.pop_timeout(Duration::ZERO).is_ok(),
        |queue| queue.len() == 1,
        |queue| !queue.is_empty(),
        |queue| queue.peek() == Some(7),
    ];
    for way in ways {
        let queue = queue(4);
        queue.push(7).unwrap();
        left_by_a_thread_of_the_killed(|| std::mem::forget(queue.lease().unwrap()));
        until(|| way(&queue));
    }
    let queue = queue(4);
    queue.push(7).unwrap();
    left_by_a_thread_of_the_killed(|| std::mem::forget(queue.lease().unwrap()));
    until(|| queue.iter().eq([7]));
}
