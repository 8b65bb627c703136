//! The hooks, which no other crate can install, and files that a child left half-written. All else
//! is tested from outside, in a process with a single thread.

use std::io::{PipeWriter, Read, Write, pipe};
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::hooks::{Hooks, install};
use super::*;
use crate::sys::process::exit_now;

static GUARDS: AtomicUsize = AtomicUsize::new(0);
static REFUSE: AtomicUsize = AtomicUsize::new(0);
static REAPED: AtomicU32 = AtomicU32::new(0);
static ENDING: OnceLock<PipeWriter> = OnceLock::new();

fn before_fork() -> Result<(), SpawnError> {
    match REFUSE.load(Ordering::Relaxed) {
        0 => Ok(()),
        tasks => Err(SpawnError::MultiThreaded { tasks }),
    }
}

fn child_ending() {
    ENDING.get().unwrap().write_all(b"e").unwrap();
}

#[test]
fn hooks_are_called() {
    let (mut ending, writer) = pipe().unwrap();
    ENDING.set(writer).unwrap();
    let table = || Hooks {
        guards_held: || GUARDS.load(Ordering::Relaxed),
        before_fork,
        fork_failed: || panic!("no fork fails here"),
        forked: |_| {},
        child_ending,
        child_reaped: |pid| REAPED.store(pid, Ordering::Relaxed),
    };
    assert!(install(table()));
    assert!(!install(table()), "the second table is not taken");
    scope(|s| {
        GUARDS.store(2, Ordering::Relaxed);
        // SAFETY: the closure takes no lock and uses nothing of other threads.
        let refused = unsafe { s.spawn_with_threads(|| 1) };
        assert!(matches!(refused, Err(SpawnError::GuardsHeld { count: 2 })));
        GUARDS.store(0, Ordering::Relaxed);

        REFUSE.store(9, Ordering::Relaxed);
        // SAFETY: the closure takes no lock and uses nothing of other threads.
        let refused = unsafe { s.spawn_with_threads(|| 1) };
        assert!(matches!(
            refused,
            Err(SpawnError::MultiThreaded { tasks: 9 })
        ));
        REFUSE.store(0, Ordering::Relaxed);

        // SAFETY: as above.
        let child = unsafe { s.spawn_with_threads(|| 1) }.unwrap();
        let pid = child.id().pid();
        assert_eq!(child.join().unwrap(), 1);
        assert_eq!(REAPED.load(Ordering::Relaxed), pid);
        // SAFETY: as above.
        let child = unsafe { s.spawn_with_threads(|| -> u8 { exit_now(4) }) }.unwrap();
        let pid = child.id().pid();
        assert!(matches!(child.join(), Err(JoinError::Exited(4))));
        assert_eq!(REAPED.load(Ordering::Relaxed), pid, "however it ended");

        // SAFETY: as above; the panic is silent, for the hook of the harness takes locks.
        let child = unsafe { s.spawn_with_threads(|| -> u8 { resume_unwind(Box::new("no")) }) };
        assert!(matches!(child.unwrap().join(), Err(JoinError::Panicked(text)) if text == "no"));

        assert!(matches!(s.spawn(|| 1), Err(SpawnError::MultiThreaded { tasks }) if tasks > 1));
    });
    let mut seen = [0; 8];
    assert_eq!(ending.read(&mut seen).unwrap(), 2, "two ended in order");
}

#[test]
fn only_whole_frames_count() {
    use std::os::fd::AsFd;
    // Read by one call, by several, and written by several.
    for length in [0, 5, 239, 240, 241, 5000, 200_000] {
        let text = "x".repeat(length);
        let file = frame::create().unwrap();
        assert!(
            frame::Frame::load(&file).unwrap().is_none(),
            "an empty file"
        );
        frame::write_value(file.as_fd(), &text).unwrap();
        let whole = frame::Frame::load(&file).unwrap().unwrap();
        assert_eq!(whole.kind(), frame::Kind::Value);
        let read = whole.payload(|bytes| postcard::from_bytes::<String>(bytes).unwrap());
        assert_eq!(read.unwrap(), text);

        let size = rustix::fs::fstat(&file).unwrap().st_size.unsigned_abs();
        rustix::fs::ftruncate(&file, size + 1).unwrap();
        assert!(
            frame::Frame::load(&file).unwrap().is_none(),
            "longer than it says"
        );
        // Shorter and shorter, for making it longer would add zeros.
        let cuts = [size - 1, size / 2, 16, 15, 8, 1];
        for cut in (0..size).rev().filter(|cut| cuts.contains(cut)) {
            rustix::fs::ftruncate(&file, cut).unwrap();
            assert!(
                frame::Frame::load(&file).unwrap().is_none(),
                "{cut} of {size} bytes"
            );
        }
        // The header comes last when there are several writes.
        frame::write_value(file.as_fd(), &text).unwrap();
        rustix::io::pwrite(&file, &[0; 16], 0).unwrap();
        assert!(
            frame::Frame::load(&file).unwrap().is_none(),
            "no header yet"
        );
    }
}
