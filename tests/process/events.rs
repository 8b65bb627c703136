//! Events of the `log` crate.

use std::fmt::Write;
use std::sync::Mutex;

use shmkit::Pool;
use shmkit::process::{Backoff, Config, Entry, Restart, StartOptions, run, scope};

use super::role_succeeds;
use crate::common::{fork, reap};

/// Collects what is logged, a line an event; in each process for itself.
struct Collector(Mutex<String>);

static LINES: Collector = Collector(Mutex::new(String::new()));

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = self.0.lock().unwrap();
        let (level, target) = (record.level(), record.target());
        writeln!(lines, "{level} {target} {}", record.args()).unwrap();
    }

    fn flush(&self) {}
}

static FLAKY: Entry<(), u32> = Entry::new("flaky", |worker, ()| match worker.restarts() {
    0 => std::process::abort(),
    restarts => restarts,
});
static FIRST: Entry<(), u32> = Entry::new("first", |worker, ()| {
    let again = Restart::OnCrash(Backoff::new(std::time::Duration::from_millis(1)));
    let options = StartOptions::new().restart(again);
    worker
        .start_with(options, &FLAKY, &())
        .unwrap()
        .join()
        .unwrap()
});

pub fn role_logs() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let pool = Pool::builder().initial_size(1 << 20).create().unwrap();
    pool.grow_to(3 << 20).unwrap();
    let name = format!("log-{}", std::process::id());
    Pool::builder().create_named(&name).unwrap();
    Pool::unlink(&name).unwrap();
    scope(|s| s.spawn(|| 1).unwrap().join().unwrap());
    // A raw fork, which nobody but us waits for.
    let Some(child) = fork() else {
        // With a slot of its own, too.
        let _ = pool.create(1_u64);
        std::process::abort()
    };
    reap(child);
    let recovered = pool.recover();
    assert!(recovered.threads + recovered.processes > 0, "{recovered:?}");
    assert_eq!(run(&Config::new(), &FIRST, ()).unwrap(), 1);
    print!("{}", LINES.0.lock().unwrap());
}

pub fn what_happens_is_logged() {
    let output = role_succeeds("role_logs");
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = [
        "DEBUG shmkit::pool made a pool without a name at 0x",
        "DEBUG shmkit::pool the pool at 0x",
        "DEBUG shmkit::pool made a pool /dev/shm/shmkit.log-",
        "DEBUG shmkit::pool removed the name of the pool log-",
        "DEBUG shmkit::process spawned process ",
        "DEBUG shmkit::process process ",
        "INFO shmkit::pool recovered ",
        "DEBUG shmkit::process started worker 1 as process ",
        "DEBUG shmkit::process started worker 2 as process ",
        "WARN shmkit::process worker 2 has ended: the process was ended by signal 6; started again in 1ms",
        "DEBUG shmkit::process worker 2 has returned",
        "DEBUG shmkit::process worker 1 has returned",
        "DEBUG shmkit::process the run comes to its end, with 0 workers left",
    ];
    // In this order, with others between them.
    let mut lines = text.lines();
    for expected in expected {
        assert!(
            lines.any(|line| line.starts_with(expected)),
            "{expected:?} in {text}"
        );
    }
}

struct Panics;

impl log::Log for Panics {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        panic!("{}", record.args());
    }

    fn flush(&self) {}
}

pub fn role_panicking_logger() {
    log::set_logger(&Panics).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    std::panic::set_hook(Box::new(|_| ()));
    let name = format!("log-panics-{}", std::process::id());
    let pool = Pool::builder().create_named(&name).unwrap();
    pool.grow_to(3 << 20).unwrap();
    Pool::unlink(&name).unwrap();
    scope(|s| {
        assert_eq!(s.spawn(|| 1).unwrap().join().unwrap(), 1);
        // Some are waited for when the list is swept, some at the end.
        (0..50).for_each(|_| drop(s.spawn(|| ()).unwrap()));
    });
    assert!(super::no_child_left(), "a child is left");
    assert_eq!(run(&Config::new(), &FIRST, ()).unwrap(), 1);
    assert!(super::no_child_left(), "a child is left");
}

pub fn a_logger_that_panics_is_in_nobodys_way() {
    role_succeeds("role_panicking_logger");
}
