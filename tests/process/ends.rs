//! Children that end in other ways than by returning.

use std::io::{PipeWriter, pipe};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmkit::process::{JoinError, KillError, scope};

use super::{listen, quietly, role_succeeds, sleep_on, tell};

pub fn a_panic_gives_its_message() {
    quietly(|| {
        scope(|s| {
            let text = s.spawn(|| -> u8 { panic!("plain") }).unwrap();
            let formatted = s.spawn(|| -> u8 { panic!("{} and {}", 1, "two") }).unwrap();
            let long = s
                .spawn(|| -> u8 { panic!("{}", "long".repeat(5000)) })
                .unwrap();
            let other = s.spawn(|| -> u8 { std::panic::panic_any(17) }).unwrap();
            let message = |joined| match joined {
                Err(JoinError::Panicked(message)) => message,
                other => panic!("{other:?}"),
            };
            assert_eq!(message(text.join()), "plain");
            assert_eq!(message(formatted.join()), "1 and two");
            assert_eq!(message(long.join()), "long".repeat(5000));
            assert_eq!(message(other.join()), "(the panic carried no message)");
        });
    });
}

pub fn role_panic() {
    scope(|s| {
        let child = s.spawn(|| -> u8 { panic!("said once") }).unwrap();
        assert!(matches!(child.join(), Err(JoinError::Panicked(_))));
    });
}

pub fn a_panic_is_printed_once() {
    let output = role_succeeds("role_panic");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(printed.matches("said once").count(), 1, "{printed}");
    assert_eq!(printed.matches("panicked at").count(), 1, "{printed}");
}

pub fn an_exit_is_no_result() {
    scope(|s| {
        for code in [0, 1, 74, 101, 255] {
            let child = s.spawn(move || -> u8 { std::process::exit(code) }).unwrap();
            match child.join() {
                Err(JoinError::Exited(exited)) => assert_eq!(exited, code),
                other => panic!("{other:?}"),
            }
        }
    });
}

pub fn an_exec_is_an_exit() {
    use std::os::unix::process::CommandExt;
    scope(|s| {
        let child = s
            .spawn(|| -> bool { panic!("{}", Command::new("true").exec()) })
            .unwrap();
        assert!(matches!(child.join(), Err(JoinError::Exited(0))));
    });
}

pub fn signals() {
    scope(|s| {
        let aborts = s.spawn(|| -> u8 { std::process::abort() }).unwrap();
        assert!(matches!(
            aborts.join(),
            Err(JoinError::Signaled(libc::SIGABRT))
        ));
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1] {
            // SAFETY: no handler is installed for these signals.
            let child = s.spawn(move || unsafe { libc::raise(signal) }).unwrap();
            match child.join() {
                Err(JoinError::Signaled(ended)) => assert_eq!(ended, signal),
                other => panic!("{other:?}"),
            }
        }
        let faults = s.spawn(|| {
            // SAFETY: the default action ends the process, as a wild access would.
            unsafe {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                libc::raise(libc::SIGSEGV)
            }
        });
        assert!(matches!(
            faults.unwrap().join(),
            Err(JoinError::Signaled(libc::SIGSEGV))
        ));
        let stopped = s.spawn(|| {
            // SAFETY: stops the process until it is continued or killed.
            unsafe { libc::raise(libc::SIGSTOP) }
        });
        let stopped = stopped.unwrap();
        assert!(!stopped.is_finished());
        stopped.kill().unwrap();
        assert!(matches!(
            stopped.join(),
            Err(JoinError::Signaled(libc::SIGKILL))
        ));
    });
}

#[allow(unconditional_recursion, reason = "the case is about just that")]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    deeper(depth + 1) + frame[7]
}

pub fn role_overflow() {
    scope(|s| match s.spawn(|| deeper(0)).unwrap().join() {
        Err(JoinError::Signaled(libc::SIGABRT | libc::SIGSEGV)) => {}
        other => panic!("{other:?}"),
    });
}

pub fn a_stack_overflow_is_a_signal() {
    role_succeeds("role_overflow");
}

pub fn killed_by_handle() {
    let (reader, _writer) = pipe().unwrap();
    let reader = &reader;
    scope(|s| {
        let child = s.spawn(move || sleep_on(reader)).unwrap();
        child.kill().unwrap();
        assert!(matches!(
            child.join(),
            Err(JoinError::Signaled(libc::SIGKILL))
        ));

        let child = s.spawn(|| 5).unwrap();
        while !child.is_finished() {
            std::thread::yield_now();
        }
        assert!(matches!(child.kill(), Err(KillError::Ended)));
        assert_eq!(child.join().unwrap(), 5, "a late kill changes nothing");
    });
}

/// Tells that it is about to be written, and is long enough to be caught in the middle.
struct Slow<'a>(Option<&'a PipeWriter>, Vec<u64>);

impl Serialize for Slow<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(started) = self.0 {
            tell(started);
        }
        self.1.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Slow<'_> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(|numbers| Slow(None, numbers))
    }
}

pub fn killed_while_writing() {
    let numbers: Vec<u64> = (0..2_000_000).map(|n| n << 32).collect();
    let mut caught = 0;
    for delay in 0..30_u32 {
        let (started, start) = pipe().unwrap();
        scope(|s| {
            let child = s.spawn(|| Slow(Some(&start), numbers.clone())).unwrap();
            listen(&started);
            for _ in 0..delay * delay * 100 {
                std::hint::spin_loop();
            }
            let _ = child.kill();
            match child.join() {
                Err(JoinError::Signaled(libc::SIGKILL)) => caught += 1,
                Ok(Slow(_, result)) => assert_eq!(result, numbers),
                Err(other) => panic!("{other:?}"),
            }
        });
    }
    assert!(caught > 0);
}

pub fn is_finished() {
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s.spawn(|| listen(&reader)).unwrap();
        assert!(!child.is_finished());
        for time in [0, 1] {
            assert!(!child.wait_timeout(Duration::from_millis(time)).unwrap());
        }
        tell(&writer);
        assert!(child.wait_timeout(Duration::MAX).unwrap());
        assert!(child.is_finished(), "and stays so until it is joined");
        child.join().unwrap();
    });
}
