//! Events, and their descriptors.

use std::io::{Read, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::{SpawnError, scope};
use shmkit::sync::WaitError;
use shmkit::{Event, Shared};

use super::{LONG, kill, listen, shared, tell, until, until_asleep};
use crate::common::Random;

fn one() -> Shared<Event> {
    shared(Event::new())
}

pub fn set_and_clear() {
    let event = one();
    assert!(!event.is_set() && !event.clear());
    let limit = Duration::from_millis(20);
    let began = Instant::now();
    assert_eq!(event.wait_timeout(limit), Err(WaitError::TimedOut));
    assert!(began.elapsed() >= limit);
    event.set();
    event.set();
    // It stays set.
    event.wait().unwrap();
    event.wait_timeout(Duration::ZERO).unwrap();
    assert!(event.is_set() && event.clear() && !event.clear());
    assert_eq!(event.wait_timeout(limit), Err(WaitError::TimedOut));
    let outside = Event::new();
    outside.set();
    assert_eq!(outside.wait(), Err(WaitError::NotInPool));
    assert!(outside.open_fd().is_err());
}

pub fn all_waiters_go_on() {
    let event = one();
    scope(|s| {
        let waiters = [0; 4].map(|_| s.spawn(|| event.wait_timeout(LONG).is_ok()).unwrap());
        for waiter in &waiters {
            until_asleep(waiter.id().pid());
        }
        // Cleared at once: who waited was there.
        event.set();
        event.clear();
        for waiter in waiters {
            assert!(waiter.join().unwrap());
        }
    });
}

pub fn a_dead_waiter_hurts_nobody() {
    let event = one();
    scope(|s| {
        let [a, b] = [0; 2].map(|_| s.spawn(|| event.wait().is_ok()).unwrap());
        until_asleep(a.id().pid());
        until_asleep(b.id().pid());
        kill(a);
        event.set();
        assert!(b.join().unwrap());
    });
}

/// Workers add to a number and set the event, and are killed; the parent clears it and looks.
pub fn setters_killed_at_random() {
    let world = shared((Event::new(), AtomicU64::new(0), AtomicU64::new(0)));
    let (event, made, acknowledged) = &*world;
    let mut random = Random::new(1);
    let mut seen = 0;
    let mut wait_for = |goal: u64| {
        while seen < goal {
            event.wait_timeout(LONG).unwrap();
            event.clear();
            seen = made.load(Ordering::SeqCst);
        }
    };
    scope(|s| {
        for _ in 0..60 {
            let worker = || -> u8 {
                loop {
                    made.fetch_add(1, Ordering::SeqCst);
                    event.set();
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            };
            let [a, b] = [0; 2].map(|_| s.spawn(worker).unwrap());
            wait_for(acknowledged.load(Ordering::SeqCst) + random.next() % 1000);
            kill(a);
            kill(b);
            // What was acknowledged is seen without any further set.
            wait_for(acknowledged.load(Ordering::SeqCst));
        }
    });
}

fn readable(descriptor: &OwnedFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which is a local.
    let ready = unsafe { libc::poll(&raw mut poll, 1, limit.as_millis() as i32) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}

fn drain(descriptor: &OwnedFd) {
    let mut stream = UnixStream::from(descriptor.try_clone().unwrap());
    while stream.read(&mut [0; 64]).is_ok() {}
}

fn tasks() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

pub fn a_descriptor_per_process() {
    let event = one();
    let (reader, writer) = pipe().unwrap();
    let (go_reader, go) = pipe().unwrap();
    scope(|s| {
        let setter = s
            .spawn(|| {
                for _ in 0..3 {
                    listen(&go_reader);
                    event.set();
                }
            })
            .unwrap();
        let polls = s
            .spawn(|| {
                let descriptor = event.open_fd().unwrap();
                tell(&writer);
                readable(&descriptor, LONG)
            })
            .unwrap();
        listen(&reader);
        let descriptor = event.open_fd().unwrap();
        let short = Duration::from_millis(30);
        assert!(!readable(&descriptor, short));
        for _ in 0..3 {
            tell(&go);
            assert!(readable(&descriptor, LONG));
            drain(&descriptor);
            // Told once, although it stays set.
            assert!(!readable(&descriptor, short));
            assert!(event.clear());
        }
        assert!(polls.join().unwrap());
        setter.join().unwrap();
        assert!(matches!(
            s.spawn(|| ()),
            Err(SpawnError::MultiThreaded { tasks: 2 })
        ));
        drop(descriptor);
        until("its thread ends", || tasks() == 1);
        event.set();
        let descriptor = event.open_fd().unwrap();
        assert!(readable(&descriptor, LONG));
    });
    // The thread holds the object.
    let pool = event.pool();
    let before = pool.stats().allocated;
    let descriptor = event.open_fd().unwrap();
    drop(event);
    assert!(pool.stats().allocated == before);
    drop(descriptor);
    until("the object goes", || pool.stats().allocated < before);
}

/// What has happened since there is a descriptor is told, also if its thread is late.
pub fn a_descriptor_misses_nothing() {
    let pool = one().pool();
    for _ in 0..50 {
        let event = pool.create(Event::new()).unwrap();
        let descriptor = event.open_fd().unwrap();
        event.set();
        event.clear();
        assert!(readable(&descriptor, LONG));
    }
    for _ in 0..50 {
        let event = pool.create(Event::new()).unwrap();
        event.set();
        let descriptor = event.open_fd().unwrap();
        event.clear();
        assert!(readable(&descriptor, Duration::ZERO));
    }
}

/// The signals that the calling thread does not take.
fn blocked() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is written to, and no other is read.
    unsafe {
        let done = libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr());
        assert_eq!(done, 0);
        set.assume_init()
    }
}

pub fn a_descriptor_takes_no_signal() {
    let event = one();
    let mut descriptor = UnixStream::from(event.open_fd().unwrap());
    descriptor.set_nonblocking(false).unwrap();
    // Its thread runs.
    event.set();
    assert_eq!(descriptor.read(&mut [0; 8]).unwrap(), 1);
    // SAFETY: the sets are this frame's; a signal that is not blocked by all ends the process.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGUSR1, libc::SIGRTMIN()] {
            // Nobody else takes them, so the thread of the descriptor would.
            let before = blocked();
            assert_eq!(libc::sigismember(&raw const before, signal), 0);
            let mut only = std::mem::zeroed();
            libc::sigemptyset(&raw mut only);
            libc::sigaddset(&raw mut only, signal);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const only, std::ptr::null_mut());
            assert_eq!(libc::kill(libc::getpid(), signal), 0);
            let limit = libc::timespec {
                tv_sec: LONG.as_secs() as libc::time_t,
                tv_nsec: 0,
            };
            let taken = libc::sigtimedwait(&raw const only, std::ptr::null_mut(), &raw const limit);
            assert_eq!(taken, signal);
        }
    }
    assert!(event.clear());
    event.set();
    assert_eq!(descriptor.read(&mut [0; 8]).unwrap(), 1);
}
