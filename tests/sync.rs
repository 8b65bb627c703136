//! Locks, condition variables, semaphores and barriers between processes, some of which are killed.
//!
//! Its own harness, see `common`: each case has a process of its own.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::{JoinError, Scope, ScopedJoinHandle, scope};
use shmkit::{Pool, Shared, ShmSafe};

#[path = "sync/barriers.rs"]
mod barriers;
#[path = "common/mod.rs"]
mod common;
#[path = "sync/condvars.rs"]
mod condvars;
#[path = "sync/deaths.rs"]
mod deaths;
#[path = "sync/events.rs"]
mod events;
#[path = "sync/mutexes.rs"]
mod mutexes;
#[path = "sync/recoverable.rs"]
mod recoverable;
#[path = "sync/rwlocks.rs"]
mod rwlocks;
#[path = "sync/scarce.rs"]
mod scarce;
#[path = "sync/semaphores.rs"]
mod semaphores;

const CASES: &[common::Named] = table! {
    mutexes:
        totals_under_load
        totals_under_kills
        killed_owner
        killed_owner_while_another_waits
        a_taker_leaves_the_rest_of_recovery
        orphan_dropped
        orphan_reset
        only_a_reset_ends_poison
        orphan_into_guard
        a_guard_in_spite_of_the_error
        second_crash
        poison_by_panic
        unwinding_is_not_always_poison
        errors_are_typed
        not_in_a_pool
        guards_refuse_a_spawn
        a_leaked_guard_outlives_its_thread
        an_owner_goes_on_to_another_program
        a_forked_guard_is_void
        many_at_once
        reentrancy
        reentrant_owner_killed;
    condvars:
        producers_and_consumers
        a_woken_waiter_is_killed
        waiters_killed_at_random
        owner_killed_during_a_wait
        waits_time_out
        a_panic_hides_no_timeout
        broadcast;
    semaphores:
        no_more_than_there_are
        killed_holders_give_back
        killed_while_blocked
        killed_at_random
        forgotten_permits
        semaphore_errors
        a_permit_refuses_a_spawn;
    rwlocks:
        read_and_written_under_load
        read_and_written_under_kills
        readers_at_once
        a_reader_killed_while_a_writer_waits
        a_waiting_writer_keeps_readers_out
        a_writer_killed_while_it_waits
        killed_writer
        killed_writer_while_others_wait
        rwlock_poison
        rwlock_errors
        rwlock_guards_refuse_a_spawn
        a_forked_read_is_void
        a_leaked_read_outlives_its_thread;
    recoverable:
        repaired_after_a_kill
        repaired_after_a_panic
        repaired_after_a_panic_while_unwinding
        killed_while_repairing
        panic_while_repairing
        repaired_under_kills
        recoverable_errors;
    events:
        set_and_clear
        all_waiters_go_on
        a_dead_waiter_hurts_nobody
        setters_killed_at_random
        a_descriptor_per_process
        a_descriptor_misses_nothing
        a_descriptor_takes_no_signal;
    scarce:
        a_death_is_seen_without_descriptors
        waits_sleep_where_the_wait_is_refused
        who_can_have_no_slot_adds_none
        limits_need_not_be_told
        a_handle_dropped_late_leaves_no_memory
        guards_of_one_pool_are_not_anothers
        guards_are_dropped_late
        pools_are_used_late;
    barriers:
        phases_by_processes
        one_leader
        killed_before_waiting
        killed_while_waiting
        the_only_one_who_waits_is_killed
        ended_before_waiting
        a_new_group
        reset_wakes
        who_never_came_is_missed
        who_gives_up_breaks_it
        more_threads_than_parties
        barrier_errors;
    deaths:
        permits_come_before_memory
        broken_before_memory
        a_limit_comes_before_memory
        tries_find_the_dead
        a_process_without_its_first_thread
        a_process_that_has_unmapped_the_pool
        a_thread_that_has_unmapped_the_pool
        a_new_thread_recovers_all_of_the_dead
        processes_without_their_first_threads;
};

fn main() -> ExitCode {
    common::run_apart(CASES)
}

/// A value in a pool of its own.
fn shared<T: ShmSafe>(value: T) -> Shared<T> {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    pool.create(value).map_err(|e| e.cause).unwrap()
}

/// Longer than anything takes, on whatever machine.
const LONG: Duration = Duration::from_secs(20);

/// Kills the child and reaps it. It must not have ended before.
#[track_caller]
fn kill<R: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug>(
    child: ScopedJoinHandle<'_, R>,
) {
    child.kill().unwrap();
    match child.join() {
        Err(JoinError::Signaled(libc::SIGKILL)) => {}
        other => panic!("{other:?}"),
    }
}

/// A child that has what `take` gives it, of which it tells by the pipe, and hangs with it.
fn holder<'s, G>(
    s: &'s Scope<'s, '_>,
    pipe: &'s (PipeReader, PipeWriter),
    take: impl FnOnce() -> G + Copy + Send + 's,
) -> ScopedJoinHandle<'s, ()> {
    let child = s.spawn(move || {
        let _held = take();
        tell_and_hang(&pipe.1);
    });
    listen(&pipe.0);
    child.unwrap()
}

/// Has a child killed while it has what `take` gives it; its pid.
fn kill_with<G>(take: impl FnOnce() -> G + Copy + Send) -> u32 {
    let pipe = pipe().unwrap();
    scope(|s| {
        let child = holder(s, &pipe, take);
        let pid = child.id().pid();
        kill(child);
        pid
    })
}

/// Tells by the pipe, then waits for ever: for children that are to be killed.
fn tell_and_hang(writer: &PipeWriter) {
    tell(writer);
    loop {
        std::thread::park();
    }
}

fn tell(mut writer: &PipeWriter) {
    writer.write_all(b"!").unwrap();
}

fn listen(mut reader: &PipeReader) {
    reader.read_exact(&mut [0]).unwrap();
}

/// Waits until the condition is true, which other processes see to.
#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "never: {what}");
        std::thread::yield_now();
    }
}

/// Waits until the process sleeps in a system call.
#[track_caller]
fn until_asleep(pid: u32) {
    until("asleep", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('S')
    });
}

fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::SeqCst)
}
