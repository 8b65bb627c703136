//! Elements whose writer is stopped in the middle of the copy. It is brought there by single steps,
//! so what happens next does not depend on who is how fast.

use std::sync::atomic::{AtomicU32, Ordering};

use shmkit::process::{Scope, ScopedJoinHandle, scope};
use shmkit::{Array, Shared};

use crate::workers::{until, was_killed};
use crate::{Page, assert_sound, pool};

/// The element that is written.
const INDEX: usize = 1;
const OLD: Page = Page::new(1);
const NEW: Page = Page::new(2);

/// A child that is about to write [`NEW`], and has written a part of it.
struct Writer<'s> {
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

impl<'s> Writer<'s> {
    /// Starts a writer and stops it in the middle of the element.
    fn new(s: &'s Scope<'s, '_>, array: &'s Shared<Array<Page>>) -> Self {
        let place = array.claim(..).unwrap()[INDEX].0.as_ptr();
        let child = s.spawn(|| {
            // It has its slot.
            assert_eq!(array.get(INDEX), Ok(OLD));
            // SAFETY: takes no memory; a signal to ourselves.
            unsafe {
                assert_eq!(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0), 0);
                assert_eq!(libc::raise(libc::SIGSTOP), 0);
            }
            array.set(INDEX, NEW).unwrap();
        });
        let child = child.unwrap();
        let pid = child.id().pid() as i32;
        stops(pid);
        let written = || {
            // SAFETY: the element stays where it is, as nobody grows the array; its only writer
            // is stopped.
            let word = |i| unsafe { place.add(i).read_volatile() };
            (0..NEW.0.len()).filter(|&i| word(i) == NEW.0[i]).count()
        };
        while !(1..NEW.0.len()).contains(&written()) {
            trace(libc::PTRACE_SINGLESTEP, pid);
            stops(pid);
        }
        Writer { child, pid }
    }

    fn go_on(self) {
        trace(libc::PTRACE_DETACH, self.pid);
        self.child.join().unwrap();
    }
}

/// Whether a process sleeps.
pub fn sleeps(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('S')
}

pub fn a_write_that_was_cut_off_is_completed() {
    let pool = pool();
    let array = Array::filled_in(pool, 4, OLD).unwrap();
    scope(|s| {
        let writer = Writer::new(s, &array);
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
        let writer = Writer::new(s, &array);
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
