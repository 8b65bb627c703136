//! Tests that whoever sleeps is woken by what it waits for. A wake that is missing costs the sleeper a tick and
//! nothing else, so no other test notices it: here sleeps have no time limit.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::here::here;
use crate::participants::{lock, thread as slots};
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::sync::BarrierError;
use crate::sys::futex::{self, only_wakes};
use crate::sys::process::{self, ForkResult};
use crate::{
    Array, Barrier, Buffer, Condvar, Event, Heap, KillSafe, Lease, Mailbox, Mutex, Pool, PopError,
    Queue, Receiver, Recover, RecoverableMutex, ReentrantMutex, RwLock, Semaphore, Shared, ShmSafe,
};

/// How often each case is tried. More than once, as a thread may be asleep for another reason when
/// it is looked at.
const ROUNDS: u32 = 5;

#[derive(ShmSafe, KillSafe)]
#[repr(transparent)]
struct Total(u32);

impl Recover for Total {
    fn recover(&mut self) {}
}

fn create<T: ShmSafe>(value: T) -> Shared<T> {
    static POOL: OnceLock<Pool> = OnceLock::new();
    let pool = POOL.get_or_init(|| Pool::builder().create().unwrap());
    pool.create(value).unwrap()
}

/// Runs `sleeper` in `count` threads, which all sleep when `wake` begins, and gives what they
/// return.
#[track_caller]
fn all_woken<R: Send + 'static>(
    count: usize,
    sleeper: impl FnOnce() -> R + Send + Clone + 'static,
    wake: impl FnOnce(),
) -> Vec<R> {
    let (end, ended) = mpsc::channel();
    let mut stay = Vec::new();
    for _ in 0..count {
        let (tell, told) = mpsc::channel();
        let (sleeper, end) = (sleeper.clone(), end.clone());
        let (leave, stays) = mpsc::channel::<()>();
        stay.push(leave);
        let thread = thread::spawn(move || {
            only_wakes::demand();
            tell.send(process::tid()).unwrap();
            let _ = end.send(sleeper());
            // Not ended yet, as the end of a thread wakes others.
            let _ = stays.recv();
        });
        let path = format!("/proc/self/task/{}/syscall", told.recv().unwrap());
        let sleeps = [libc::SYS_futex, libc::SYS_futex_waitv].map(|call| format!("{call} "));
        while !fs::read_to_string(&path).is_ok_and(|at| sleeps.iter().any(|s| at.starts_with(s))) {
            assert!(!thread.is_finished(), "it has not slept");
            thread::yield_now();
        }
    }
    wake();
    let patience = Duration::from_secs(60);
    let next = |_| ended.recv_timeout(patience).expect("nobody has woken it");
    (0..count).map(next).collect()
}

#[track_caller]
fn woken<R: Send + 'static>(
    sleeper: impl FnOnce() -> R + Send + Clone + 'static,
    wake: impl FnOnce(),
) -> R {
    all_woken(1, sleeper, wake).remove(0)
}

#[test]
fn of_mutexes() {
    let mutex = create(Mutex::new(0));
    let recoverable = create(RecoverableMutex::new(Total(0)));
    let reentrant = create(ReentrantMutex::new(0));
    for _ in 0..ROUNDS {
        let (guard, theirs) = (mutex.lock().unwrap(), mutex.clone());
        all_woken(3, move || *theirs.lock().unwrap() += 1, || drop(guard));
        let (guard, theirs) = (recoverable.lock().unwrap(), recoverable.clone());
        all_woken(3, move || theirs.lock().unwrap().0 += 1, || drop(guard));
        let (outer, theirs) = (reentrant.lock().unwrap(), reentrant.clone());
        drop(reentrant.lock().unwrap());
        all_woken(3, move || drop(theirs.lock().unwrap()), || drop(outer));
    }
    assert_eq!(*mutex.lock().unwrap(), 3 * ROUNDS);
    assert_eq!(recoverable.lock().unwrap().0, 3 * ROUNDS);
}

#[test]
fn of_rw_locks() {
    let lock = create(RwLock::new(0));
    for _ in 0..ROUNDS {
        let (writes, theirs) = (lock.write().unwrap(), lock.clone());
        all_woken(3, move || *theirs.read().unwrap(), || drop(writes));
        let (writes, theirs) = (lock.write().unwrap(), lock.clone());
        all_woken(3, move || *theirs.write().unwrap() += 1, || drop(writes));
        let (reads, theirs) = (lock.read().unwrap(), lock.clone());
        all_woken(3, move || *theirs.write().unwrap() += 1, || drop(reads));
    }
    assert_eq!(*lock.read().unwrap(), 6 * ROUNDS);
}

#[test]
fn of_semaphores() {
    let semaphore = create(Semaphore::new(1));
    for _ in 0..ROUNDS {
        let permit = semaphore.acquire().unwrap();
        let theirs = semaphore.clone();
        // Each of them gives its permit back.
        all_woken(3, move || drop(theirs.acquire()), || drop(permit));
        let permit = semaphore.acquire().unwrap();
        let theirs = semaphore.clone();
        let forget = move || theirs.acquire().unwrap().forget();
        all_woken(3, forget.clone(), || semaphore.add_permits(3).unwrap());
        semaphore.add_permits(1).unwrap();
        let another = semaphore.acquire().unwrap();
        // The second may find a permit that is there already.
        all_woken(2, forget, || drop((permit, another)));
        semaphore.add_permits(1).unwrap();
    }
}

#[test]
fn of_condvars() {
    let state = create((Mutex::new(0), Condvar::new()));
    let waits = {
        let theirs = state.clone();
        move || {
            let guard = theirs.0.lock().unwrap();
            let mut guard = theirs.1.wait_while(guard, |tokens| *tokens == 0).unwrap();
            *guard -= 1;
        }
    };
    for _ in 0..ROUNDS {
        woken(waits.clone(), || {
            *state.0.lock().unwrap() += 1;
            state.1.notify_one();
        });
        all_woken(3, waits.clone(), || {
            *state.0.lock().unwrap() += 3;
            state.1.notify_all();
        });
        all_woken(3, waits.clone(), || {
            *state.0.lock().unwrap() += 3;
            (0..3).for_each(|_| state.1.notify_one());
        });
    }
}

#[test]
fn of_events_and_barriers() {
    let event = create(Event::new());
    for _ in 0..ROUNDS {
        let theirs = event.clone();
        all_woken(3, move || theirs.wait().unwrap(), || event.set());
        assert!(event.clear());
        // A second round would miss the parties of this one, as their threads have ended.
        let barriers = [4, 4, 4, 5].map(|parties| create(Barrier::new(parties)));
        let [turned, reset, aborted, given_up] = barriers.clone();
        let went_on = all_woken(
            3,
            move || turned.wait().is_ok(),
            || {
                assert!(barriers[0].wait().unwrap().is_leader());
            },
        );
        assert_eq!(went_on, [true; 3]);
        let went_on = all_woken(3, move || reset.wait().is_ok(), || barriers[1].reset());
        assert_eq!(went_on, [false; 3]);
        let went_on = all_woken(3, move || aborted.wait().is_ok(), || barriers[2].abort());
        assert_eq!(went_on, [false; 3]);
        let went_on = all_woken(
            3,
            move || given_up.wait().is_ok(),
            || {
                let late = barriers[3].wait_timeout(Duration::ZERO);
                assert_eq!(late, Err(BarrierError::TimedOut));
            },
        );
        assert_eq!(went_on, [false; 3]);
    }
}

#[test]
fn of_who_waits_for_a_growth() {
    let array = create(Array::new());
    for _ in 0..ROUNDS {
        let gate = Arc::new(std::sync::Barrier::new(2));
        let (theirs, ours, way) = (array.clone(), array.clone(), gate.clone());
        thread::spawn(move || {
            let fill = |room: super::elements::NewElements<'_, u32>| {
                (0..2).for_each(|_| _ = way.wait());
                room.fill(7);
            };
            theirs.reshape(|len| Ok(len + 1), fill).unwrap();
            way.wait();
        });
        gate.wait();
        let gets = all_woken(3, move || ours.get(0), || _ = gate.wait());
        assert_eq!(gets, [Ok(7); 3]);
        gate.wait();
    }
}

#[test]
fn of_queues() {
    let bounded = create(Queue::bounded(2));
    for queue in [bounded.clone(), create(Queue::unbounded())] {
        for _ in 0..ROUNDS {
            let theirs = queue.clone();
            let pops = move || theirs.pop().unwrap();
            let mut popped = all_woken(2, pops.clone(), || {
                queue.push(1).unwrap();
                queue.push(2).unwrap();
            });
            popped.sort_unstable();
            assert_eq!(popped, [1, 2]);

            queue.push(3).unwrap();
            let lease = queue.lease().unwrap();
            assert_eq!(woken(pops, || drop(lease)), 3);
            let theirs = queue.clone();
            let leases = move || theirs.lease().unwrap().ack();
            woken(leases, || queue.push(4).unwrap());
        }
    }
    for _ in 0..ROUNDS {
        let theirs = bounded.clone();
        let pushes = move || theirs.push(7).unwrap();
        let fill = || (1..=2).for_each(|n| bounded.push(n).unwrap());
        fill();
        all_woken(2, pushes.clone(), || {
            assert_eq!([bounded.pop(), bounded.pop()], [Ok(1), Ok(2)]);
        });
        assert_eq!([bounded.pop(), bounded.pop()], [Ok(7), Ok(7)]);
        fill();
        all_woken(2, pushes.clone(), || bounded.clear());
        bounded.clear();
        fill();
        woken(pushes, || assert_eq!(bounded.lease().unwrap().ack(), 1));
        bounded.clear();
    }
}

#[test]
fn of_leases() {
    for _ in 0..ROUNDS {
        let queue = create(Queue::unbounded());
        (0..=64).for_each(|n| queue.push(n).unwrap());
        // All that there can be at a time.
        let mut held: Vec<_> = (0..64).map(|_| queue.lease().unwrap()).collect();
        let theirs = queue.clone();
        let leases = move || theirs.lease().unwrap().ack();
        let consume = |lease: Lease<'_, i32>| assert_eq!(lease.ack(), 0);
        assert_eq!(woken(leases.clone(), || consume(held.remove(0))), 64);
        (65..=66).for_each(|n| queue.push(n).unwrap());
        held.push(queue.lease().unwrap());
        assert_eq!(woken(leases, || drop(held.remove(0))), 1);
    }
}

/// One waiter, which wants a lease, is woken for an element, and has no entry for it: another has the element.
#[test]
fn of_who_waits_behind_one_without_an_entry() {
    for _ in 0..ROUNDS {
        let queue = create(Queue::unbounded());
        (0..64).for_each(|n| queue.push(n).unwrap());
        let mut held: Vec<_> = (0..64).map(|_| queue.lease().unwrap()).collect();
        let (theirs, first) = (queue.clone(), Arc::new(AtomicU32::new(1)));
        let waits = move || match first.swap(0, Ordering::Relaxed) {
            1 => theirs.lease().map(Lease::ack),
            _ => theirs.pop(),
        };
        let mut had = all_woken(2, waits, || {
            queue.push(64).unwrap();
            let pushed = Instant::now();
            while !queue.is_empty() {
                assert!(pushed.elapsed().as_secs() < 60, "the other sleeps still");
                thread::yield_now();
            }
            queue.push(65).unwrap();
            assert_eq!(held.remove(0).ack(), 0);
        });
        had.sort_unstable_by_key(|had| had.ok());
        assert_eq!(had, [Ok(64), Ok(65)]);
    }
}

#[test]
fn of_queues_that_are_closed() {
    for count in [1, 3].repeat(ROUNDS as usize) {
        let full = create(Queue::bounded(1));
        full.push(1).unwrap();
        let theirs = full.clone();
        let refused = move || theirs.push(2).is_err();
        assert_eq!(
            all_woken(count, refused, || full.close()),
            vec![true; count]
        );

        for empty in [create(Queue::<u32>::bounded(1)), create(Queue::unbounded())] {
            let theirs = empty.clone();
            let refused = all_woken(3, move || theirs.pop(), || empty.close());
            assert_eq!(refused, [Err(PopError::Closed); 3]);
        }

        let lease = full.lease().unwrap();
        let theirs = full.clone();
        let refused = all_woken(3, move || theirs.pop(), || assert_eq!(lease.ack(), 1));
        assert_eq!(refused, [Err(PopError::Closed); 3]);
    }
}

/// One waiter gets the last element, which was given back: the others are told that no more will
/// come.
#[test]
fn of_who_waits_behind_the_last_element() {
    for _ in 0..ROUNDS {
        let queue = create(Queue::bounded(1));
        queue.push(1).unwrap();
        let lease = queue.lease().unwrap();
        queue.close();
        let theirs = queue.clone();
        let mut popped = all_woken(3, move || theirs.pop().ok(), || drop(lease));
        popped.sort_unstable();
        assert_eq!(popped, [None, None, Some(1)]);
    }
}

#[test]
fn of_mailboxes() {
    let mailboxes = [(); 2].map(|()| create(Mailbox::<u32>::new(1)));
    let [mailbox, other] = &mailboxes;
    for round in 0..ROUNDS {
        let theirs = mailbox.clone();
        let receives = move || theirs.receiver().unwrap().recv();
        assert_eq!(
            woken(receives.clone(), || mailbox.send(round).unwrap()),
            Ok(round)
        );
        assert!(woken(receives, || mailbox.wake()).is_err());

        let theirs = mailboxes.clone();
        let waits = move || {
            let receivers = theirs.each_ref().map(|mailbox| mailbox.receiver().unwrap());
            let ready = Receiver::wait_any(&receivers.each_ref(), Duration::MAX);
            receivers[1].recv().unwrap();
            ready
        };
        assert_eq!(woken(waits, || other.send(1).unwrap()), Some(1));

        mailbox.send(1).unwrap();
        let theirs = mailbox.clone();
        let sends = move || theirs.send(2).unwrap();
        let receiver = mailbox.receiver().unwrap();
        woken(sends, || assert_eq!(receiver.recv(), Ok(1)));
        assert_eq!(receiver.recv(), Ok(2));
    }
    let theirs = mailbox.clone();
    let receives = move || theirs.receiver().unwrap().recv().is_err();
    assert!(woken(receives, || mailbox.close()));
}

#[test]
fn of_buffers() {
    for _ in 0..ROUNDS {
        let buffer = create(Buffer::with_capacity(64));
        let theirs = buffer.clone();
        let reads = move || {
            let mut bytes = [0; 8];
            let from = theirs.start();
            theirs.reader(from).read(&mut bytes).unwrap()
        };
        let read = all_woken(3, reads, || {
            buffer.append(b"12345").unwrap();
        });
        assert_eq!(read, [5; 3]);
        buffer.clear().unwrap();

        let theirs = buffer.clone();
        let writes = move || (&*theirs).write_all(&[1; 16]).unwrap();
        let fill = || {
            buffer.append(&[0; 64]).unwrap();
        };
        fill();
        let from = buffer.start();
        all_woken(3, writes.clone(), || {
            buffer.truncate_front(from + 48).unwrap();
        });
        buffer.clear().unwrap();
        fill();
        all_woken(3, writes, || buffer.clear().unwrap());
        buffer.clear().unwrap();

        fill();
        let theirs = buffer.clone();
        let refused = move || (&*theirs).write_all(&[1]).is_err();
        assert!(woken(refused, || buffer.close().unwrap()));
        let buffer = create(Buffer::with_capacity(64));
        let theirs = buffer.clone();
        let reads = move || theirs.reader(0).read(&mut [0]).unwrap();
        assert_eq!(all_woken(3, reads, || buffer.close().unwrap()), [0; 3]);
    }
}

#[test]
fn of_heaps() {
    let heap = create(Heap::new(0));
    for _ in 0..ROUNDS {
        let theirs = heap.clone();
        let modifies = move || theirs.modify(|tx| *tx.root_mut().unwrap() += 1).unwrap();
        let view = heap.view().unwrap();
        all_woken(3, modifies.clone(), || drop(view));
        let theirs = heap.clone();
        let views = move || drop(theirs.view().unwrap());
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let theirs = heap.clone();
        let holder = thread::spawn(move || {
            let held = |_: &mut crate::Tx<'_, _>| {
                tell.send(()).unwrap();
                gone.recv().unwrap();
            };
            theirs.modify(held).unwrap();
        });
        told.recv().unwrap();
        all_woken(3, modifies, || {
            all_woken(3, views, || go.send(()).unwrap());
        });
        holder.join().unwrap();
    }
    assert_eq!(*heap.view().unwrap().root(), 6 * ROUNDS);
}

/// All threads that sleep on what a killed process had are woken by whoever recovers it. (Otherwise some would wait for
/// a tick: those that are woken by the kernel do what they need, and perhaps no more.)
#[test]
fn of_what_the_dead_had() {
    for _ in 0..ROUNDS {
        let mutexes = [(); 2].map(|()| create(Mutex::new(0)));
        let (read, written) = (create(RwLock::new(0)), create(RwLock::new(0)));
        let permits = create(Semaphore::new(1));
        let (mut has_all, tell) = io::pipe().unwrap();
        let parent = process::pid();
        // SAFETY: the child locks, writes a byte and waits to be killed.
        let child = match unsafe { process::fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                process::die_with_parent(parent);
                let _all = (mutexes.each_ref().map(|mutex| mutex.lock()), read.read());
                let _more = (written.write(), permits.acquire());
                let _ = (&tell).write(b"!");
                loop {
                    thread::park();
                }
            }
        };
        has_all.read_exact(&mut [0]).unwrap();
        let pool = read.pool();
        let die = || {
            // SAFETY: a signal for our own child, which is not reaped yet.
            assert_eq!(unsafe { libc::kill(child as i32, libc::SIGKILL) }, 0);
            process::wait(child);
            pool.recover();
        };
        let [one, other] = mutexes;
        let took_over = |died: Vec<bool>| assert!(died.contains(&true));
        let locks = move || drop(read.write().unwrap());
        let acquires = move || drop(permits.acquire().unwrap());
        took_over(all_woken(
            2,
            move || one.lock().is_err(),
            || {
                took_over(all_woken(
                    2,
                    move || other.lock().is_err(),
                    || {
                        took_over(all_woken(
                            2,
                            move || written.read().is_err(),
                            || {
                                all_woken(2, locks, || drop(all_woken(2, acquires, die)));
                            },
                        ));
                    },
                ));
            },
        ));
        process::wait(child);
    }
}

/// One waiter was woken, as the lock was given back, but somebody else has already taken it, and would wake nobody
/// when giving it back.
#[test]
fn of_who_waits_behind_one_who_gives_up() {
    let word = create(AtomicU64::new(0));
    let arena = word.pool().0;
    let slot = move || slots::slot(arena).unwrap();
    let me = slot().tag();
    let held = lock::lock(arena, slot(), &word, Deadline::NEVER);
    assert!(held.is_ok());
    // Longer than a busy machine takes until the first waiter sleeps.
    const LIMIT: Duration = Duration::from_secs(2);
    let (theirs, first) = (word.clone(), Arc::new(AtomicU32::new(1)));
    let waits = move || {
        let is_first = first.swap(0, Ordering::Relaxed) == 1;
        let limit = if is_first {
            Deadline::after(LIMIT)
        } else {
            Deadline::NEVER
        };
        let taken = lock::lock(arena, slot(), &theirs, limit);
        if taken.is_ok() {
            lock::unlock(&theirs, slot().tag(), 0);
        }
        taken.map(drop)
    };
    let announced = || word.load(Ordering::Relaxed) & lock::WAITERS != 0;
    let outcomes = all_woken(2, waits, || {
        // Past the limit of the first waiter, which is asleep already.
        thread::sleep(LIMIT);
        // The lock is given back, and taken by another, before the woken thread looks.
        word.store(me.word(), Ordering::Relaxed);
        assert_eq!(futex::wake(Arena::low_half(&word), 1), 1);
        let given = Instant::now();
        while !announced() {
            assert!(given.elapsed().as_secs() < 60, "the other sleeps still");
            thread::yield_now();
        }
        lock::unlock(&word, me, 0);
    });
    for one in [Err(lock::Refused::TimedOut), Ok(())] {
        assert!(outcomes.contains(&one), "{outcomes:?}");
    }
}

/// Tests threads that are about to sleep, not only those that are asleep. Two threads do `one` and
/// two do `other`, each `TIMES` times.
#[track_caller]
fn none_sleeps_for_ever(
    one: impl Fn() + Send + Clone + 'static,
    other: impl Fn() + Send + Clone + 'static,
) {
    const TIMES: u32 = 5000;
    let (end, ended) = mpsc::channel();
    for user in 0..4 {
        let (one, other, end) = (one.clone(), other.clone(), end.clone());
        thread::spawn(move || {
            only_wakes::demand();
            (0..TIMES).for_each(|_| if user % 2 == 0 { one() } else { other() });
            end.send(()).unwrap();
        });
    }
    let patience = Duration::from_secs(60);
    (0..4).for_each(|_| ended.recv_timeout(patience).expect("somebody sleeps"));
}

/// Right after the look of a thread that is about to sleep, somebody makes its condition true and rings; for another
/// thread, nobody does so in time.
#[test]
fn of_who_has_looked() {
    let buffer = create(Buffer::new());
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        only_wakes::demand();
        let (bell, here) = (&buffer.words().arrivals, here(&*buffer).ok().unwrap());
        let is_ready = Cell::new(false);
        let looks = || {
            let was_ready = is_ready.replace(true);
            bell.ring_all();
            was_ready.then_some(())
        };
        let came = bell.wait_asleep(here, Deadline::NEVER, looks);
        end.send(came.is_some()).unwrap();
        let late = Deadline::after(Duration::ZERO);
        let came = bell.wait_asleep(here, late, || None::<()>);
        end.send(came.is_some()).unwrap();
    });
    for came in [true, false] {
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(came));
    }
}

#[test]
fn of_who_is_about_to_sleep() {
    let queue = create(Queue::bounded(1));
    let theirs = queue.clone();
    let push = move || theirs.push(1).unwrap();
    none_sleeps_for_ever(push, move || assert_eq!(queue.pop(), Ok(1)));

    let (permits, room) = (create(Semaphore::new(0)), create(Semaphore::new(1)));
    let (taken, left) = (permits.clone(), room.clone());
    let give = move || {
        room.acquire().unwrap().forget();
        permits.add_permits(1).unwrap();
    };
    none_sleeps_for_ever(give, move || {
        taken.acquire().unwrap().forget();
        left.add_permits(1).unwrap();
    });

    let place = create((Mutex::new(false), [Condvar::new(), Condvar::new()]));
    let fill = move |full: bool| {
        let place = place.clone();
        move || {
            let [mine, theirs] = [full, !full].map(|n| &place.1[usize::from(n)]);
            let guard = place.0.lock().unwrap();
            let mut guard = mine.wait_while(guard, |found| *found == full).unwrap();
            *guard = full;
            theirs.notify_one();
        }
    };
    none_sleeps_for_ever(fill(true), fill(false));

    let count = create(RwLock::new(0));
    let theirs = count.clone();
    let look = move || drop(theirs.read().unwrap());
    none_sleeps_for_ever(look, move || *count.write().unwrap() += 1);

    let buffer = create(Buffer::with_capacity(1));
    let theirs = buffer.clone();
    let append = move || (&*theirs).write_all(&[1]).unwrap();
    // Two readers would get the same byte.
    let turn = Arc::new(std::sync::Mutex::new(()));
    none_sleeps_for_ever(append, move || {
        let _mine = turn.lock().unwrap();
        let from = buffer.start();
        assert_eq!(buffer.reader(from).read(&mut [0]).unwrap(), 1);
        buffer.truncate_front(from + 1).unwrap();
    });
}
