//! Elements whose writer is stopped in the middle of the copy, and queue operations that are stopped. The
//! processes are brought to that point by single steps, so what happens next does not depend on their relative
//! speed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shmkit::process::{Scope, ScopedJoinHandle, scope};
use shmkit::{Array, Lease, Mailbox, Pool, PopError, PushRefusal, Queue, Shared};

use crate::workers::{until, was_killed};
use crate::{Page, Sealed, assert_sound, pool};

/// The element that is written.
const INDEX: usize = 1;
const OLD: Page = Page::new(1);
const NEW: Page = Page::new(2);

/// A child that makes steps when it is told to.
struct Stepper<'s> {
    child: ScopedJoinHandle<'s, ()>,
    pid: i32,
}

/// The parent asks something of a child that it traces.
#[track_caller]
fn trace(request: libc::c_uint, pid: i32) {
    // SAFETY: requests that take no memory of ours.
    let answer = unsafe { libc::ptrace(request, pid, 0, 0) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// Waits until a traced child stops.
#[track_caller]
fn stops(pid: i32) {
    let mut status = 0;
    // SAFETY: the status goes to a local.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert!(waited == pid && libc::WIFSTOPPED(status), "{status:#x}");
}

/// A child has its parent trace it, from here on step by step.
fn be_traced() {
    // SAFETY: takes no memory; a signal to ourselves.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0), 0);
        assert_eq!(libc::raise(libc::SIGSTOP), 0);
    }
}

impl<'s> Stepper<'s> {
    /// Starts a child, which is to [`be_traced`], and waits until it is.
    fn new(s: &'s Scope<'s, '_>, work: impl FnOnce() + Copy + Send + 's) -> Self {
        let child = s.spawn(work).unwrap();
        let pid = child.id().pid() as i32;
        stops(pid);
        Stepper { child, pid }
    }

    /// A child that is about to write [`NEW`], and has written a part of it.
    fn writing(s: &'s Scope<'s, '_>, array: &'s Shared<Array<Page>>) -> Self {
        let place = array.claim(..).unwrap()[INDEX].0.as_ptr();
        let writer = Stepper::new(s, || {
            // It has its slot.
            assert_eq!(array.get(INDEX), Ok(OLD));
            be_traced();
            array.set(INDEX, NEW).unwrap();
        });
        let written = || {
            // SAFETY: the element stays where it is, as nobody grows the array; its only writer
            // is stopped.
            let word = |i| unsafe { place.add(i).read_volatile() };
            (0..NEW.0.len()).filter(|&i| word(i) == NEW.0[i]).count()
        };
        while !(1..NEW.0.len()).contains(&written()) {
            writer.step();
        }
        writer
    }

    #[track_caller]
    fn step(&self) {
        trace(libc::PTRACE_SINGLESTEP, self.pid);
        stops(self.pid);
    }

    fn go_on(self) {
        trace(libc::PTRACE_DETACH, self.pid);
        self.child.join().unwrap();
    }
}

/// Whether a process sleeps.
pub fn sleeps(pid: u32) -> bool {
    state(pid) == 'S'
}

pub fn a_write_that_was_cut_off_is_completed() {
    let pool = pool();
    let array = Array::filled_in(pool, 4, OLD).unwrap();
    scope(|s| {
        let writer = Stepper::writing(s, &array);
        writer.child.kill().unwrap();
        was_killed(writer.child);
    });
    assert_eq!(array.get(INDEX), Ok(NEW));
    assert!(!array.claim_mut(..).unwrap().was_orphaned());
    assert_sound(pool);
}

/// `f` waits for a writer in the middle of an element; true if it then finds the element whole.
#[track_caller]
fn waits_for_the_writer(f: impl Fn(&Array<Page>) -> bool + Sync) {
    const STARTED: u32 = 1;
    const WHOLE: u32 = 2;
    const TORN: u32 = 3;
    let pool = pool();
    let array = Array::filled_in(pool, 4, OLD).unwrap();
    let step = pool.create(AtomicU32::new(0)).unwrap();
    scope(|s| {
        let writer = Stepper::writing(s, &array);
        let claimer = s.spawn(|| {
            step.store(STARTED, Ordering::Relaxed);
            let end = if f(&array) { WHOLE } else { TORN };
            step.store(end, Ordering::Relaxed);
        });
        let claimer = claimer.unwrap();
        let step = || step.load(Ordering::Relaxed);
        until(|| step() >= STARTED);
        // It sleeps nowhere else.
        until(|| step() > STARTED || sleeps(claimer.id().pid()));
        let waited = step() == STARTED;
        // The scope waits for it, whatever has failed.
        writer.go_on();
        claimer.join().unwrap();
        assert!(waited, "it did not wait");
        assert_eq!(step(), WHOLE);
    });
    assert_eq!(array.get(INDEX), Ok(NEW));
    assert_sound(pool);
}

pub fn claims_wait_for_elements_in_flight() {
    waits_for_the_writer(|array| array.claim(..).unwrap()[INDEX] == NEW);
    waits_for_the_writer(|array| array.claim_mut(INDEX..=INDEX).unwrap()[0] == NEW);
}

pub fn growth_waits_for_elements_in_flight() {
    waits_for_the_writer(|array| {
        array.grow(8, OLD).unwrap();
        array.get(INDEX) == Ok(NEW)
    });
}

/// The process has its slot, and has used a queue.
fn enter(pool: Pool) {
    let other = pool.create(Queue::bounded(1)).unwrap();
    other.push(1_u8).unwrap();
}

/// At how many places an operation is stopped.
const PLACES: usize = 8;

/// Has a child do `operation` and stops it, by SIGSTOP, after each of some parts of its instructions. `others`
/// then runs, and the child goes on. `end` is told what it came to.
fn stopped_in<W: Sync>(
    pool: Pool,
    world: impl Fn() -> W,
    operation: impl Fn(&W) -> u64 + Copy + Send + Sync,
    others: impl Fn(&W),
    end: impl Fn(&W, u64),
) {
    // What it came to, and one more; 0 if it has not ended.
    let result = pool.create(AtomicU64::new(0)).unwrap();
    let run = |world: &W, stop: Option<usize>| {
        result.store(0, Ordering::SeqCst);
        let mut steps = 0;
        scope(|s| {
            let stepper = Stepper::new(s, || {
                enter(pool);
                be_traced();
                result.store(operation(world) + 1, Ordering::SeqCst);
            });
            while result.load(Ordering::SeqCst) == 0 && stop.is_none_or(|stop| steps < stop) {
                stepper.step();
                steps += 1;
            }
            let Stepper { child, pid } = stepper;
            // SAFETY: takes no memory.
            let left = unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, libc::SIGSTOP) };
            assert_eq!(left, 0);
            until(|| state(child.id().pid()) == 'T');
            if stop.is_some() {
                others(world);
            }
            kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
            child.join().unwrap();
        });
        steps
    };
    let all = run(&world(), None);
    for place in 0..PLACES {
        let world = world();
        run(&world, Some(all * place / PLACES));
        end(&world, result.load(Ordering::SeqCst) - 1);
    }
}

/// What a process does: 'S' for sleeping, 'T' for stopped.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

fn queue_of(pool: Pool, queue: Queue<Sealed>, elements: u64) -> Shared<Queue<Sealed>> {
    let queue = pool.create(queue).ok().unwrap();
    for n in 0..elements {
        queue.push(Sealed::new(n)).ok().unwrap();
    }
    queue
}

/// The numbers of the elements, all taken.
fn emptied(queue: &Queue<Sealed>) -> Vec<u64> {
    std::iter::from_fn(|| queue.try_pop().ok())
        .inspect(|element| assert!(element.is_whole()))
        .map(|element| element.a)
        .collect()
}

const LATE: u64 = 100;

pub fn a_stopped_producer_holds_up_nobody() {
    let push = |queue: &Shared<Queue<Sealed>>| {
        queue.push(Sealed::new(LATE)).unwrap();
        0
    };
    let pool = pool();
    // In a queue with bounds, until its place is come round to.
    stopped_in(
        pool,
        || queue_of(pool, Queue::bounded(3), 0),
        push,
        |queue| {
            let pushed = |n| queue.try_push(Sealed::new(n)).map_err(|e| e.cause);
            assert_eq!((pushed(1), pushed(2)), (Ok(()), Ok(())));
            let seen = emptied(queue);
            assert!([vec![1, 2], vec![LATE, 1, 2]].contains(&seen), "{seen:?}");
            let third = pushed(3);
            if third == Ok(()) {
                assert_eq!(emptied(queue), [3]);
            } else {
                assert_eq!(
                    (third, queue.try_pop()),
                    (Err(PushRefusal::Full), Err(PopError::Empty))
                );
            }
        },
        |queue, _| {
            let left = emptied(queue);
            assert!([vec![], vec![LATE]].contains(&left), "{left:?}");
            (0..3).for_each(|n| queue.try_push(Sealed::new(n)).unwrap());
            assert_eq!(emptied(queue), [0, 1, 2]);
            assert_sound(queue.pool());
        },
    );
    // In one without, never.
    stopped_in(
        pool,
        || queue_of(pool, Queue::unbounded(), 0),
        push,
        |queue| {
            for n in 0..100 {
                queue.push(Sealed::new(n)).unwrap();
                if n % 3 == 0 {
                    let seen = emptied(queue);
                    assert!(seen.ends_with(&[n]), "{seen:?}");
                }
            }
        },
        |queue, _| {
            let left = emptied(queue);
            assert!(left.iter().all(|&n| n == LATE), "{left:?}");
            assert_sound(queue.pool());
        },
    );
}

pub fn a_stopped_consumer_holds_up_nobody() {
    let pool = pool();
    type Take = fn(&Queue<Sealed>) -> Result<Sealed, PopError>;
    let pop: Take = Queue::pop;
    let lease: Take = |queue| queue.lease().map(Lease::ack);
    for (take, keeps_its_place) in [(pop, false), (lease, true)] {
        stopped_in(
            pool,
            || queue_of(pool, Queue::bounded(4), 2),
            |queue| {
                let element = take(queue).unwrap();
                assert!(element.is_whole());
                element.a
            },
            |queue| {
                for n in 10..50 {
                    match queue.try_push(Sealed::new(n)).map_err(|e| e.cause) {
                        Ok(()) => assert!(queue.try_pop().unwrap().is_whole()),
                        // In the middle of a lease, until its place is come round to.
                        Err(PushRefusal::Full) if keeps_its_place && n > 11 => break,
                        Err(cause) => panic!("{cause}"),
                    }
                }
            },
            |queue, had| {
                // It had the first, or what was the first when it went on.
                let left = emptied(queue);
                assert!(left.len() == 1 || left.is_empty() && keeps_its_place);
                assert!(!left.contains(&had), "{had} again: {left:?}");
                (0..4).for_each(|n| queue.try_push(Sealed::new(n)).unwrap());
                assert_eq!(emptied(queue), [0, 1, 2, 3]);
                assert_sound(queue.pool());
            },
        );
    }
}

/// At how many places who looks for an element is stopped, twice each.
const LOOKS: usize = 12;

/// There is an element at all times, but at first in the queue, then come back, then in the queue again;
/// so who looks in one place after the other might see none. That another may take the one in the queue
/// while one is back, it has looked for such before.
pub fn elements_that_come_and_go_are_not_missed() {
    type Look = fn(&Queue<Sealed>) -> bool;
    let looks: [Look; 4] = [
        |queue| queue.try_pop() != Err(PopError::Empty),
        |queue| queue.peek().is_some(),
        |queue| !queue.is_empty(),
        |queue| queue.try_lease().map(Lease::ack).is_ok(),
    ];
    let pool = pool();
    let taken = pool.create(AtomicU64::new(0)).unwrap();
    let found = pool.create(AtomicU64::new(0)).unwrap();
    // Where the taker, and the looker, are to stop. How many steps each made.
    let run = |look: Look, take_at: usize, look_at: (usize, usize)| {
        let queue = queue_of(pool, Queue::bounded(4), 2);
        taken.store(0, Ordering::SeqCst);
        found.store(0, Ordering::SeqCst);
        let (mut took, mut looked) = (0, 0);
        scope(|s| {
            let taker = Stepper::new(s, || {
                enter(pool);
                be_traced();
                taken.store(queue.try_pop().unwrap().a + 1, Ordering::SeqCst);
            });
            let looker = Stepper::new(s, || {
                enter(pool);
                be_traced();
                found.store(1 + u64::from(look(&queue)), Ordering::SeqCst);
            });
            // After the children, as it is a guard.
            let held = queue.lease().unwrap();
            while taken.load(Ordering::SeqCst) == 0 && took < take_at && !queue.is_empty() {
                taker.step();
                took += 1;
            }
            let mut look_until = |place| {
                while found.load(Ordering::SeqCst) == 0 && looked < place {
                    looker.step();
                    looked += 1;
                }
            };
            look_until(look_at.0);
            drop(held);
            taker.go_on();
            look_until(look_at.1);
            queue.push(Sealed::new(2)).unwrap();
            // The one that came back, if it is there.
            let _ = queue.try_pop();
            look_until(usize::MAX);
            looker.go_on();
        });
        assert_eq!(found.load(Ordering::SeqCst), 2, "missed at {look_at:?}");
        (took, looked)
    };
    for look in looks {
        // By the last step but one the element is still there, and the taker has looked for others.
        let (to_take, _) = run(look, usize::MAX, (0, usize::MAX));
        let (_, to_look) = run(look, 0, (usize::MAX, usize::MAX));
        // It begins and ends with what is no look.
        for first in LOOKS / 4..LOOKS * 3 / 4 {
            for second in first + 1..first + 3 {
                let place = |at| to_look * at / LOOKS;
                run(look, to_take - 1, (place(first), place(second)));
            }
        }
    }
    assert_sound(pool);
}

/// A producer that sleeps until there is room, and has the turn, is stopped.
pub fn a_stopped_waiter_is_passed() {
    let mailbox = pool().create(Mailbox::new(1)).unwrap();
    mailbox.send(0).unwrap();
    scope(|s| {
        let mailbox = &mailbox;
        let child = s
            .spawn(move || mailbox.send(1_000_000_u64).unwrap())
            .unwrap();
        until(|| sleeps(child.id().pid()));
        let pid = Pid::from_raw(child.id().pid() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        until(|| state(child.id().pid()) == 'T');
        let receiver = mailbox.receiver().unwrap();
        for n in 0..1000 {
            assert_eq!(receiver.recv(), Ok(n));
            mailbox
                .send_timeout(n + 1, Duration::from_secs(60))
                .unwrap();
        }
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(
            (receiver.recv(), receiver.recv()),
            (Ok(1000), Ok(1_000_000))
        );
        child.join().unwrap();
    });
}

/// The same for those who wait for less than they would hold back: what they are told is true, and is so for good
/// once that producer is dead.
pub fn who_has_little_time_passes_a_stopped_waiter() {
    let queue = queue_of(pool(), Queue::bounded(1), 1);
    scope(|s| {
        let child = s.spawn(|| queue.push(Sealed::new(LATE)).unwrap()).unwrap();
        until(|| sleeps(child.id().pid()));
        let pid = Pid::from_raw(child.id().pid() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        until(|| state(child.id().pid()) == 'T');
        let passes = || {
            for n in 0..100 {
                assert!(queue.pop().unwrap().is_whole());
                let limit = Duration::from_micros(n * 10);
                queue.push_timeout(Sealed::new(n), limit).unwrap();
                let refused = queue.push_timeout(Sealed::new(n), limit).unwrap_err();
                assert_eq!(refused.cause, PushRefusal::TimedOut);
            }
        };
        passes();
        child.kill().unwrap();
        was_killed(child);
        passes();
    });
    assert_sound(queue.pool());
}

/// Who was late finds what there was in time.
pub fn a_stopped_waiter_takes_a_last_look() {
    let limit = Duration::from_millis(200);
    let is_late = |wait: &(dyn Fn() -> bool + Sync), meanwhile: &dyn Fn()| {
        scope(|s| {
            let since = Instant::now();
            let child = s.spawn(|| assert!(wait())).unwrap();
            until(|| sleeps(child.id().pid()));
            let pid = Pid::from_raw(child.id().pid() as i32);
            kill(pid, Signal::SIGSTOP).unwrap();
            until(|| state(child.id().pid()) == 'T');
            meanwhile();
            until(|| since.elapsed() > 2 * limit);
            kill(pid, Signal::SIGCONT).unwrap();
            child.join().unwrap();
        });
    };
    let queue = pool().create(Queue::bounded(1)).unwrap();
    let push = || queue.push(7_u32).unwrap();
    is_late(&|| queue.pop_timeout(limit) == Ok(7), &push);
    push();
    is_late(&|| queue.push_timeout(8, limit).is_ok(), &|| {
        assert_eq!(queue.pop(), Ok(7));
    });
    assert_eq!(queue.pop(), Ok(8));
}
