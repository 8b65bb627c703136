//! The command `shmkit`, from outside: on every kind of pool, and on files that are not pools.
//!
//! Each case runs in a process of its own; a case that needs a pool that others use, or have left,
//! starts a copy of this program in a role.

#[path = "cli/bad.rs"]
mod bad;
mod common;
#[path = "cli/exports.rs"]
mod exports;
#[path = "cli/live.rs"]
mod live;
#[path = "cli/numbers.rs"]
mod numbers;
#[path = "cli/removal.rs"]
mod removal;
#[path = "cli/terminal.rs"]
mod terminal;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::Named;
use serde_json::Value;

const CASES: &[Named] = table! {
    live:
        a_live_pool_is_reported
        a_full_pool_is_reported
        a_stopped_holder_is_in_nobodys_way
        the_types_of_containers_are_told
        locks_are_told
        top_tells_what_is_allocated_and_freed
        looking_changes_nothing
        a_crashed_pool_is_checked;
    numbers:
        matrices_and_arrays_travel
        an_export_is_whole_or_nothing
        without_memory_nothing_travels
        orders_and_bytes_are_turned
        what_does_not_fit_is_refused
        claimed_numbers_are_not_overwritten
        imports_at_once
        a_killed_import_leaves_the_target_whole
        numpy_reads_and_writes_in_place;
    exports:
        a_pool_is_not_exported_over_itself
        a_link_that_leads_nowhere_stays
        a_file_stays_its_owners
        a_leftover_is_passed_over;
    bad:
        what_is_no_pool
        truncated_pools
        damaged_headers
        damaged_tables
        damage_is_found
        bad_arguments
        names_that_a_terminal_would_obey
        names_that_are_no_text
        a_reader_that_goes_away;
    removal:
        only_what_nobody_has_goes
        gc_takes_the_stale_alone
        damaged_files_go_if_asked_to
        others_pools_stay;
    terminal:
        top_on_a_terminal
        top_is_ended_by_signals
        top_is_ended_when_it_is_stuck
        help_and_manual
        the_bench_measures;
};

const ROLES: &[Named] = table! {
    live: role_lives role_full role_holds role_crashes;
    numbers: role_claims;
};

fn main() -> ExitCode {
    common::run_apart_with(CASES, ROLES)
}

/// A name that no other pool has.
fn name(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test-cli-{}-{count}-{what}", std::process::id())
}

/// A pool's name, which goes with the case.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        Name(name(what))
    }

    fn path(&self) -> String {
        format!("/dev/shm/shmkit.{}", self.0)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

/// Runs the command.
fn shmkit<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
    command.args(arguments).output().unwrap()
}

/// What a command that succeeds prints; nothing on standard error.
#[track_caller]
fn said(arguments: &[&str]) -> String {
    let output = shmkit(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{arguments:?}: {:?} {errors}",
        output.status
    );
    assert_eq!(errors, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same with `--json`.
#[track_caller]
fn told(arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&said(&all)).unwrap()
}

/// Asserts that a command fails with that code and says so in one line, which contains `text`.
#[track_caller]
fn refused(arguments: &[&str], code: i32, text: &str) {
    let output = shmkit(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
    assert!(errors.starts_with("shmkit: "), "{arguments:?}: {errors}");
    assert!(errors.contains(text), "{arguments:?}: {errors}");
}

/// A copy of this program in a role, which has said that it is ready.
struct Actor {
    child: Child,
    /// Closed: the role ends.
    stdin: Option<ChildStdin>,
}

impl Actor {
    fn start(role: &str, name: &str) -> Actor {
        let mut child = common::program(role)
            .env("SHMKIT_TEST_POOL", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let stdin = child.stdin.take();
        Actor { child, stdin }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a child of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(self.pid() as libc::pid_t, signal) }, 0);
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a role: the pool's name.
fn given() -> String {
    std::env::var("SHMKIT_TEST_POOL").unwrap()
}

/// In a role: says that all is there, and waits until the case has seen it.
fn ready() {
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
}
