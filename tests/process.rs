//! Scopes of forked children, from outside.
//!
//! Its own harness: `spawn` demands a process with a single thread. The cases run in order in one
//! process; an argument picks those whose name contains it. A case that would change the process
//! for good (ignored signals, unflushed output, death) runs in a copy of this program, started with
//! the argument `role:<name>`.

use std::env;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use shmkit::process::{JoinError, KillError, ResultError, SpawnError, scope};

const CASES: &[(&str, fn())] = &[
    ("results_are_typed", results_are_typed),
    ("results_of_every_length", results_of_every_length),
    ("a_result_of_100_mb", a_result_of_100_mb),
    (
        "borrows_are_shared_and_copied",
        borrows_are_shared_and_copied,
    ),
    ("a_panic_gives_its_message", a_panic_gives_its_message),
    ("a_panic_is_printed_once", a_panic_is_printed_once),
    ("an_exit_is_no_result", an_exit_is_no_result),
    ("an_exec_is_an_exit", an_exec_is_an_exit),
    ("signals", signals),
    ("a_stack_overflow_is_a_signal", a_stack_overflow_is_a_signal),
    ("killed_by_handle", killed_by_handle),
    ("killed_while_writing", killed_while_writing),
    ("is_finished", is_finished),
    (
        "results_that_do_not_serialise",
        results_that_do_not_serialise,
    ),
    ("results_that_do_not_fit", results_that_do_not_fit),
    (
        "an_unjoined_failure_panics_the_scope",
        an_unjoined_failure_panics_the_scope,
    ),
    ("a_joined_failure_does_not", a_joined_failure_does_not),
    (
        "a_panic_of_the_scope_waits_for_children",
        a_panic_of_the_scope_waits_for_children,
    ),
    ("nothing_is_dropped_twice", nothing_is_dropped_twice),
    ("output_is_flushed_once", output_is_flushed_once),
    ("other_threads_are_refused", other_threads_are_refused),
    (
        "a_joined_thread_is_no_other_thread",
        a_joined_thread_is_no_other_thread,
    ),
    ("other_threads_may_be_allowed", other_threads_may_be_allowed),
    ("two_hundred_leave_nothing", two_hundred_leave_nothing),
    ("abandoned_children_are_swept", abandoned_children_are_swept),
    ("no_descriptor_no_child", no_descriptor_no_child),
    ("sigchld_ignored", sigchld_ignored),
    ("reaped_by_somebody_else", reaped_by_somebody_else),
    ("nested_scopes", nested_scopes),
    (
        "children_die_with_their_parent",
        children_die_with_their_parent,
    ),
];

const ROLES: &[(&str, fn())] = &[
    ("panic", role_panic),
    ("overflow", role_overflow),
    ("no_room", role_no_room),
    ("flush", role_flush),
    ("no_descriptor", role_no_descriptor),
    ("sigchld", role_sigchld),
    ("family", role_family),
];

fn main() -> ExitCode {
    let argument = env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    if let Some(role) = argument
        .as_deref()
        .and_then(|argument| argument.strip_prefix("role:"))
    {
        let (_, run) = ROLES
            .iter()
            .find(|(name, _)| *name == role)
            .expect("a known role");
        run();
        return ExitCode::SUCCESS;
    }
    let filter = argument.unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&filter)) {
        let before = open_descriptors();
        let outcome = catch_unwind(|| {
            case();
            assert_eq!(open_descriptors(), before, "descriptors left open");
            assert!(no_child_left(), "a child is left");
        });
        match outcome {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
        println!("{name}: {}", if outcome.is_ok() { "ok" } else { "FAILED" });
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

// ---- helpers ---------------------------------------------------------------------------------

/// Runs a role to its end.
fn role(name: &str) -> Output {
    let program = env::current_exe().unwrap();
    Command::new(program)
        .arg(format!("role:{name}"))
        .output()
        .unwrap()
}

#[track_caller]
fn role_succeeds(name: &str) -> Output {
    let output = role(name);
    assert!(output.status.success(), "{name}: {output:?}");
    output
}

/// Runs `f` with nothing printed on standard error, for panics that are meant.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    outcome.unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

fn panic_message(f: impl FnOnce()) -> String {
    let payload = quietly(|| catch_unwind(AssertUnwindSafe(f)).expect_err("no panic"));
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => payload
            .downcast::<&str>()
            .map_or(String::new(), |text| text.to_string()),
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Neither a zombie nor a living child.
fn no_child_left() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, options).err() == Some(rustix::io::Errno::CHILD)
}

/// Blocks for as long as somebody may still write.
fn sleep_on(mut reader: &PipeReader) {
    let _ = reader.read(&mut [0]);
}

fn tell(mut writer: &PipeWriter) {
    writer.write_all(b"!").unwrap();
}

fn listen(mut reader: &PipeReader) {
    reader.read_exact(&mut [0]).unwrap();
}

// ---- results ---------------------------------------------------------------------------------

#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Circle { radius: f64, label: Option<String> },
    Path(Vec<(i32, i32)>),
}

fn results_are_typed() {
    let path = Shape::Path(vec![(1, -1), (i32::MAX, i32::MIN)]);
    scope(|s| {
        let circle = s
            .spawn(|| Shape::Circle {
                radius: 0.5,
                label: Some("ö".into()),
            })
            .unwrap();
        let same = s.spawn(|| path.clone()).unwrap();
        let nothing = s.spawn(|| Shape::Nothing).unwrap();
        let unit = s.spawn(|| ()).unwrap();
        let inner: Result<u8, String> = Err("inner".into());
        let inner_child = s.spawn(|| Err::<u8, _>("inner".to_string())).unwrap();
        let map = s
            .spawn(|| std::collections::BTreeMap::from([(1, 'a'), (2, 'b')]))
            .unwrap();
        // Joined in another order than they were started in.
        assert_eq!(map.join().unwrap()[&2], 'b');
        assert_eq!(inner_child.join().unwrap(), inner);
        unit.join().unwrap();
        assert_eq!(nothing.join().unwrap(), Shape::Nothing);
        assert_eq!(same.join().unwrap(), path);
        let expected = Shape::Circle {
            radius: 0.5,
            label: Some("ö".into()),
        };
        assert_eq!(circle.join().unwrap(), expected);
    });
}

fn results_of_every_length() {
    // The frame changes from one write to several at 4096 bytes, header and length included.
    for length in (4060..4110).chain([0, 1, 8191, 8192, 65536, 1 << 20]) {
        let text = "x".repeat(length);
        let bytes = scope(|s| {
            s.spawn(|| text.as_str().to_owned())
                .unwrap()
                .join()
                .unwrap()
        });
        assert_eq!(bytes.len(), length);
        let many = vec![7_u8; length];
        let one_by_one = scope(|s| s.spawn(|| many.to_vec()).unwrap().join().unwrap());
        assert_eq!(one_by_one, many);
    }
}

fn a_result_of_100_mb() {
    let length = 100_000_000;
    let text = scope(|s| {
        let child = s.spawn(move || {
            let mut text = "0123456789".repeat(length / 10);
            text.push('!');
            text
        });
        child.unwrap().join().unwrap()
    });
    assert_eq!(text.len(), length + 1);
    assert!(text.ends_with("789!") && text.as_bytes()[length / 2] == b'0');
}

fn borrows_are_shared_and_copied() {
    let mut numbers = vec![1, 2, 3];
    let factor = 10;
    let products: Vec<i32> = scope(|s| {
        let children: Vec<_> = numbers
            .iter()
            .map(|number| s.spawn(move || number * factor).unwrap())
            .collect();
        children
            .into_iter()
            .map(|child| child.join().unwrap())
            .collect()
    });
    numbers.extend(products); // the borrow ended with the scope
    assert_eq!(numbers, [1, 2, 3, 10, 20, 30]);
}

// ---- ends other than a result ----------------------------------------------------------------

fn a_panic_gives_its_message() {
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

fn role_panic() {
    scope(|s| {
        let child = s.spawn(|| -> u8 { panic!("said once") }).unwrap();
        assert!(matches!(child.join(), Err(JoinError::Panicked(_))));
    });
}

fn a_panic_is_printed_once() {
    let output = role_succeeds("panic");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(printed.matches("said once").count(), 1, "{printed}");
    assert_eq!(printed.matches("panicked at").count(), 1, "{printed}");
}

fn an_exit_is_no_result() {
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

fn an_exec_is_an_exit() {
    use std::os::unix::process::CommandExt;
    scope(|s| {
        let child = s
            .spawn(|| -> bool { panic!("{}", Command::new("true").exec()) })
            .unwrap();
        assert!(matches!(child.join(), Err(JoinError::Exited(0))));
    });
}

fn signals() {
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

fn role_overflow() {
    scope(|s| match s.spawn(|| deeper(0)).unwrap().join() {
        Err(JoinError::Signaled(libc::SIGABRT | libc::SIGSEGV)) => {}
        other => panic!("{other:?}"),
    });
}

fn a_stack_overflow_is_a_signal() {
    role_succeeds("overflow");
}

fn killed_by_handle() {
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

fn killed_while_writing() {
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

fn is_finished() {
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s.spawn(|| listen(&reader)).unwrap();
        assert!(!child.is_finished());
        tell(&writer);
        while !child.is_finished() {
            std::thread::yield_now();
        }
        assert!(child.is_finished(), "and stays so until it is joined");
        child.join().unwrap();
    });
}

// ---- results that do not arrive --------------------------------------------------------------

/// Fails to serialise, or panics while it is, after `length` bytes.
#[derive(Debug)]
struct Bad {
    length: usize,
    panics: bool,
}

impl Serialize for Bad {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error, SerializeTuple};
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&"x".repeat(self.length))?;
        assert!(!self.panics, "in the middle");
        Err(S::Error::custom("never"))
    }
}

impl<'de> Deserialize<'de> for Bad {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        unreachable!("no value is ever written")
    }
}

/// Writes a number, and reads a string.
#[derive(Debug)]
struct Crooked(usize);

impl Serialize for Crooked {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (200_u8, "y".repeat(self.0)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Crooked {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer).map(|n| Crooked(n.into()))
    }
}

fn results_that_do_not_serialise() {
    quietly(|| {
        scope(|s| {
            for length in [0, 10_000] {
                let fails = s
                    .spawn(move || Bad {
                        length,
                        panics: false,
                    })
                    .unwrap()
                    .join();
                let Err(JoinError::NoResult(ResultError::Encode(message))) = fails else {
                    panic!("{fails:?}")
                };
                assert!(!message.is_empty());
                match s
                    .spawn(move || Bad {
                        length,
                        panics: true,
                    })
                    .unwrap()
                    .join()
                {
                    Err(JoinError::Panicked(message)) => assert_eq!(message, "in the middle"),
                    other => panic!("{other:?}"),
                }
                match s.spawn(move || Crooked(length)).unwrap().join() {
                    Err(JoinError::NoResult(ResultError::Decode(_))) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    });
}

fn role_no_room() {
    // SAFETY: plain system calls; the limit makes writes to files fail with EFBIG.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit {
            rlim_cur: 100_000,
            rlim_max: 100_000,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    scope(|s| {
        assert_eq!(
            s.spawn(|| "x".repeat(90_000))
                .unwrap()
                .join()
                .unwrap()
                .len(),
            90_000
        );
        match s.spawn(|| "x".repeat(100_000)).unwrap().join() {
            Err(JoinError::NoResult(ResultError::Write(error))) => {
                assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            }
            other => panic!("{other:?}"),
        }
    });
    // SAFETY: as above.
    unsafe {
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    scope(|s| match s.spawn(|| 1).unwrap().join() {
        Err(JoinError::Exited(74)) => {}
        other => panic!("{other:?}"),
    });
}

fn results_that_do_not_fit() {
    role_succeeds("no_room");
}

// ---- the end of a scope ----------------------------------------------------------------------

fn an_unjoined_failure_panics_the_scope() {
    let message = panic_message(|| {
        scope(|s| {
            s.spawn(|| 1).unwrap();
            s.spawn(|| -> u8 { panic!("unheard") }).unwrap();
        });
    });
    assert!(message.contains("unheard"), "{message}");
    let message = panic_message(|| {
        scope(|s| std::mem::forget(s.spawn(|| -> u8 { std::process::exit(0) }).unwrap()));
    });
    assert!(message.contains("code 0"), "{message}");
    let message = panic_message(|| {
        scope(|s| {
            drop(
                s.spawn(|| Bad {
                    length: 1,
                    panics: false,
                })
                .unwrap(),
            )
        });
    });
    assert!(message.contains("did not arrive"), "{message}");
}

fn a_joined_failure_does_not() {
    let value = scope(|s| {
        s.spawn(|| 1).unwrap();
        assert!(
            s.spawn(|| -> u8 { std::process::exit(1) })
                .unwrap()
                .join()
                .is_err()
        );
        9
    });
    assert_eq!(value, 9);
}

fn a_panic_of_the_scope_waits_for_children() {
    let (reader, writer) = pipe().unwrap();
    let message = panic_message(|| {
        scope(|s| {
            let _joined_by_the_scope = s.spawn(|| tell(&writer)).unwrap();
            s.spawn(|| -> u8 { std::process::exit(1) }).unwrap();
            panic!("of the scope");
        });
    });
    assert_eq!(
        message, "of the scope",
        "goes before the failure of a child"
    );
    drop(writer);
    listen(&reader);
    assert!(no_child_left());
}

/// Writes a byte when it is dropped.
struct Tells<'a>(&'a PipeWriter);

impl Drop for Tells<'_> {
    fn drop(&mut self) {
        tell(self.0);
    }
}

fn nothing_is_dropped_twice() {
    let (mut reader, writer) = pipe().unwrap();
    {
        let owned = Tells(&writer);
        let boxed = Box::new(Tells(&writer));
        quietly(|| {
            scope(|s| {
                let in_scope = Tells(&writer);
                let address = s.spawn(|| std::ptr::from_ref(owned.0).addr()).unwrap();
                s.spawn(|| std::ptr::from_ref(boxed.0).addr())
                    .unwrap()
                    .join()
                    .unwrap();
                let _ = s.spawn(|| -> u8 { panic!() }).unwrap().join();
                let _ = s.spawn(|| -> u8 { std::process::exit(0) }).unwrap().join();
                address.join().unwrap();
                drop(in_scope);
            });
        });
    }
    // A value that the child itself made is dropped by the child.
    scope(|s| s.spawn(|| drop(Tells(&writer))).unwrap().join().unwrap());
    drop(writer);
    let mut drops = Vec::new();
    reader.read_to_end(&mut drops).unwrap();
    assert_eq!(drops.len(), 4);
}

fn role_flush() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    extern "C" fn at_exit() {
        print!("exit,");
        let _ = io::stdout().flush();
    }
    print!("rust,");
    // SAFETY: C's standard output is open, the text ends with a zero, and the handler may run at
    // any exit.
    unsafe {
        libc::fputs(c"c,".as_ptr(), stdout);
        libc::atexit(at_exit);
    }
    scope(|s| {
        let _held = io::stdout().lock(); // by the thread that forks: no obstacle in the child
        s.spawn(|| print!("child,")).unwrap().join().unwrap();
        s.spawn(|| {
            // SAFETY: as above.
            unsafe { libc::fputs(c"c child,".as_ptr(), stdout) };
        })
        .unwrap()
        .join()
        .unwrap();
        print!("after,");
        let _ = s
            .spawn(|| -> u8 { std::panic::resume_unwind(Box::new(())) })
            .unwrap()
            .join();
    });
}

fn output_is_flushed_once() {
    let output = role_succeeds("flush");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "rust,c,child,c child,after,exit,");
}

// ---- the state of the parent -----------------------------------------------------------------

fn other_threads_are_refused() {
    let (reader, writer) = pipe().unwrap();
    let thread = std::thread::spawn(move || listen(&reader));
    scope(|s| match s.spawn(|| 1) {
        Err(SpawnError::MultiThreaded { tasks: 2 }) => {}
        other => panic!("{other:?}"),
    });
    tell(&writer);
    thread.join().unwrap();
}

fn a_joined_thread_is_no_other_thread() {
    // Its task may linger in the kernel when `join` returns.
    for _ in 0..300 {
        std::thread::spawn(|| ()).join().unwrap();
        scope(|s| s.spawn(|| ()).map(drop).unwrap());
    }
}

fn other_threads_may_be_allowed() {
    let (reader, writer) = pipe().unwrap();
    let thread = std::thread::spawn(move || {
        listen(&reader);
        reader
    });
    scope(|s| {
        // SAFETY: the closure needs nothing that the other thread does.
        let child = unsafe { s.spawn_with_threads(|| "text".repeat(2)) }.unwrap();
        assert_eq!(child.join().unwrap(), "texttext");
    });
    tell(&writer);
    thread.join().unwrap();
}

fn two_hundred_leave_nothing() {
    let before = open_descriptors();
    scope(|s| {
        for n in 0..200_usize {
            match n % 4 {
                0 => assert_eq!(s.spawn(move || n).unwrap().join().unwrap(), n),
                1 => assert!(
                    s.spawn(|| -> u8 { std::process::exit(1) })
                        .unwrap()
                        .join()
                        .is_err()
                ),
                2 => {
                    let child = s.spawn(|| loop_for_ever()).unwrap();
                    child.kill().unwrap();
                    assert!(child.join().is_err());
                }
                _ => drop(s.spawn(|| ()).unwrap()),
            }
        }
    });
    assert_eq!(open_descriptors(), before);
    assert!(no_child_left());
}

fn loop_for_ever() {
    loop {
        std::thread::park();
    }
}

fn abandoned_children_are_swept() {
    let before = open_descriptors();
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let kept = s.spawn(|| listen(&reader)).unwrap();
        for _ in 0..300 {
            let child = s.spawn(|| ()).unwrap();
            while !child.is_finished() {
                std::thread::yield_now();
            }
        }
        assert!(
            open_descriptors() < before + 40,
            "{} descriptors",
            open_descriptors()
        );
        tell(&writer);
        kept.join().unwrap();
    });
    // The failure of one that was swept is not forgotten.
    let message = panic_message(|| {
        scope(|s| {
            s.spawn(|| -> u8 { std::process::exit(33) }).unwrap();
            for _ in 0..100 {
                s.spawn(|| ()).unwrap();
            }
        });
    });
    assert!(message.contains("code 33"), "{message}");
}

fn role_no_descriptor() {
    // SAFETY: plain system calls.
    unsafe {
        let limit = libc::rlimit {
            rlim_cur: 3,
            rlim_max: 3,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    scope(|s| match s.spawn(|| 1) {
        Err(SpawnError::ResultFile(error)) => {
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        other => panic!("{other:?}"),
    });
    assert!(no_child_left());
}

fn no_descriptor_no_child() {
    role_succeeds("no_descriptor");
}

fn role_sigchld() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let before = open_descriptors();
    scope(|s| {
        assert_eq!(
            s.spawn(|| 5).unwrap().join().unwrap(),
            5,
            "the result is there"
        );
        for child in [
            s.spawn(|| -> u8 { std::process::exit(1) }),
            s.spawn(|| std::process::abort()),
        ] {
            match child.unwrap().join() {
                Err(JoinError::NoResult(ResultError::Lost)) => {}
                other => panic!("{other:?}"),
            }
        }
        let child = s.spawn(|| 6).unwrap();
        while !child.is_finished() {
            std::thread::yield_now();
        }
        assert!(matches!(child.kill(), Err(KillError::Ended)));
        assert_eq!(child.join().unwrap(), 6);
        s.spawn(|| 7).unwrap();
    });
    assert_eq!(open_descriptors(), before);
}

fn sigchld_ignored() {
    role_succeeds("sigchld");
}

fn reaped_by_somebody_else() {
    use rustix::process::{WaitOptions, wait};
    scope(|s| {
        let fine = s.spawn(|| 5).unwrap();
        wait(WaitOptions::empty()).unwrap();
        assert!(fine.is_finished());
        assert!(matches!(fine.kill(), Err(KillError::Ended)));
        assert_eq!(fine.join().unwrap(), 5);
        let ends = s.spawn(|| -> u8 { std::process::exit(0) }).unwrap();
        wait(WaitOptions::empty()).unwrap();
        assert!(matches!(
            ends.join(),
            Err(JoinError::NoResult(ResultError::Lost))
        ));
    });
}

fn nested_scopes() {
    fn tree(depth: u32) -> u64 {
        if depth == 0 {
            return 1;
        }
        scope(|s| {
            let children = [0, 1].map(|_| s.spawn(move || tree(depth - 1)).unwrap());
            children
                .into_iter()
                .map(|child| child.join().unwrap())
                .sum::<u64>()
                + 1
        })
    }
    assert_eq!(tree(4), 31);
    quietly(|| {
        scope(|s| {
            // A child whose own scope panics has panicked.
            let child = s.spawn(|| scope(|s| drop(s.spawn(|| -> u8 { panic!("deep") }).unwrap())));
            match child.unwrap().join() {
                Err(JoinError::Panicked(message)) => assert!(message.contains("deep"), "{message}"),
                other => panic!("{other:?}"),
            }
        });
    });
    // Two scopes at once in one process.
    scope(|outer| {
        let first = outer.spawn(|| 1).unwrap();
        scope(|inner| {
            let second = inner.spawn(|| 2).unwrap();
            assert_eq!(first.join().unwrap() + second.join().unwrap(), 3);
        });
    });
}

/// A parent, a child and a grandchild, each of which says that it is there and stays.
fn role_family() {
    fn present() {
        io::stdout().write_all(b"here\n").unwrap();
        io::stdout().flush().unwrap();
    }
    scope(|s| {
        s.spawn(|| {
            scope(|s| {
                s.spawn(|| {
                    present();
                    loop_for_ever();
                })
                .unwrap();
                present();
                loop_for_ever();
            });
        })
        .unwrap();
        present();
        loop_for_ever();
    });
}

fn children_die_with_their_parent() {
    let started = Instant::now();
    let program = env::current_exe().unwrap();
    let mut parent = Command::new(program)
        .arg("role:family")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = parent.stdout.take().unwrap();
    output.read_exact(&mut [0; 15]).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    // The end of the stream comes when the last of the three has closed it, by dying.
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    assert!(started.elapsed().as_secs() < 60);
}
