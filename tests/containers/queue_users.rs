//! Queues that several processes use, some of which are killed.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use shmkit::process::{JoinError, KillError, scope};
use shmkit::{Array, Buffer, Lease, Pool, PopError, PushRefusal, Queue, Shared};

use crate::common::{Random, fork, reap};
use crate::queues::{cause, queue, unbounded};
use crate::stopped::sleeps;
use crate::workers::{die, until, was_killed};
use crate::{Sealed, assert_sound, pool};

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

/// The queue has the one element or the other or none, never both.
pub fn snapshots_of_what_comes_back() {
    const ROUNDS: u64 = 40_000;
    let queue = queue(64);
    let done = queue.pool().create(AtomicBool::new(false)).unwrap();
    // All places of leases have been used, so a look at them takes a while. The first has what comes back.
    (1..=64_u64).for_each(|n| queue.push(n).unwrap());
    let leases: Vec<_> = (0..64).map(|_| queue.try_lease().unwrap()).collect();
    let mut leases = leases.into_iter();
    let first = leases.next();
    leases.for_each(|lease| _ = lease.ack());
    drop(first);
    scope(|s| {
        let (queue, done) = (&queue, &done);
        let child = s.spawn(move || {
            let mut random = Random::new(7);
            // Rarely enough for one of sixteen looks to find nothing changed.
            let mut pause = || (0..random.below(1000)).for_each(|_| std::hint::spin_loop());
            for _ in 0..ROUNDS {
                let lease = queue.try_lease().unwrap();
                assert_eq!(*lease, 1);
                queue.push(2).unwrap();
                assert_eq!(queue.try_pop(), Ok(2));
                drop(lease);
                pause();
            }
            done.store(true, Ordering::SeqCst);
        });
        let child = child.unwrap();
        while !done.load(Ordering::SeqCst) && !child.is_finished() {
            let seen: Vec<_> = queue.iter().collect();
            assert!(seen.len() <= 1, "{seen:?} was never in the queue");
        }
        child.join().unwrap();
    });
}

/// An element that is leased, and comes back, while they are counted.
pub fn nothing_is_counted_twice() {
    const MANY: usize = 1000;
    let queue = queue(MANY);
    let popped = queue.pool().create(AtomicUsize::new(0)).unwrap();
    for _ in 0..30 {
        (0..MANY).for_each(|n| queue.push(n).unwrap());
        popped.store(0, Ordering::SeqCst);
        scope(|s| {
            let (queue, popped) = (&queue, &popped);
            let child = s.spawn(move || {
                for n in 0..MANY {
                    drop(queue.try_lease().unwrap());
                    assert_eq!(queue.try_pop(), Ok(n));
                    popped.fetch_add(1, Ordering::SeqCst);
                }
            });
            let child = child.unwrap();
            while !child.is_finished() {
                let most = MANY - popped.load(Ordering::SeqCst);
                let len = queue.len();
                assert!(len <= most, "{len} of {most}");
            }
            child.join().unwrap();
        });
    }
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
    let Some(child) = fork() else {
        for len in [1 << 17, 1 << 13, 1 << 9, 1 << 5, 1] {
            while let Ok(array) = Array::filled_in(pool, len, 1_u64) {
                std::mem::forget(array);
            }
        }
        die();
        unreachable!()
    };
    assert!(libc::WIFSIGNALED(reap(child)));
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
            // It may have found the queue closed, and have ended.
            assert!(matches!(victim.kill(), Ok(()) | Err(KillError::Ended)));
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

/// More threads want leases than there are: they wait for the dead, and for each other.
pub fn more_leasers_than_leases() {
    const ELEMENTS: u32 = 3000;
    const THREADS: usize = 40;
    let queue = unbounded::<u32>();
    let pool = queue.pool();
    let counts = Array::filled_in(pool, ELEMENTS as usize, 0_u32).unwrap();
    (0..ELEMENTS).for_each(|n| queue.push(n).unwrap());
    queue.close();
    let state = (AtomicBool::new(false), AtomicUsize::new(0));
    let state = pool.create(state).unwrap();
    scope(|s| {
        let (queue, counts, (all_taken, begun)) = (&queue, &counts, &*state);
        let holder = s.spawn::<_, ()>(|| {
            let _all: Vec<_> = (0..64).map(|_| queue.lease().unwrap()).collect();
            all_taken.store(true, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        });
        until(|| all_taken.load(Ordering::SeqCst));
        let take = move || {
            begun.fetch_add(1, Ordering::SeqCst);
            let end = loop {
                match queue.lease() {
                    Ok(lease) => {
                        counts.update(*lease as usize, |n| n + 1).unwrap();
                        // Others come meanwhile.
                        std::thread::yield_now();
                        lease.ack();
                    }
                    Err(end) => break end,
                }
            };
            assert_eq!(end, PopError::Closed);
        };
        let work = move || std::thread::scope(|s| (0..THREADS).for_each(|_| drop(s.spawn(take))));
        let workers = [(); 2].map(|()| s.spawn(work).unwrap());
        until(|| begun.load(Ordering::SeqCst) == 2 * THREADS);
        let holder = holder.unwrap();
        holder.kill().unwrap();
        was_killed(holder);
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
    });
    assert!(counts.claim(..).unwrap().iter().all(|&n| n == 1));
    assert_sound(pool);
}
