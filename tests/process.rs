//! Scopes of forked children, from outside.
//!
//! `spawn` requires a process with a single thread: the cases run in order in one process. A case
//! that would change the process for good (ignored signals, unflushed output, death) is a role, in a
//! copy of this program.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use common::{Named, no_child_left, open_descriptors, program, quietly, role_succeeds};

mod common;
#[path = "process/crowds.rs"]
mod crowds;
#[path = "process/ends.rs"]
mod ends;
#[path = "process/events.rs"]
mod events;
#[path = "process/faults.rs"]
mod faults;
#[path = "process/forks.rs"]
mod forks;
#[path = "process/managed.rs"]
mod managed;
#[path = "process/masters.rs"]
mod masters;
#[path = "process/numbers.rs"]
mod numbers;
#[path = "process/parents.rs"]
mod parents;
#[path = "process/paths.rs"]
mod paths;
#[path = "process/peer_deaths.rs"]
mod peer_deaths;
#[path = "process/peers.rs"]
mod peers;
#[path = "process/results.rs"]
mod results;
#[path = "process/run_ends.rs"]
mod run_ends;
#[path = "process/scopes.rs"]
mod scopes;
#[path = "process/storms.rs"]
mod storms;
#[path = "process/strangers.rs"]
mod strangers;

const CASES: &[Named] = table! {
    results:
        results_are_typed
        errors_are_results
        results_of_every_length
        a_result_of_100_mb
        borrows_are_shared_and_copied
        results_that_do_not_serialise
        results_that_do_not_fit
        files_that_may_not_be_so_long;
    numbers:
        a_pool_does_not_grow_through_it
        a_result_is_not_written_through_it
        the_master_is_not_woken_through_it
        an_event_is_not_told_through_it;
    ends:
        a_panic_gives_its_message
        a_panic_is_printed_once
        an_exit_is_no_result
        an_exec_is_an_exit
        signals
        a_stack_overflow_is_a_signal
        killed_by_handle
        killed_while_writing
        is_finished;
    scopes:
        an_unjoined_failure_panics_the_scope
        a_failure_that_is_swept_panics_the_scope
        what_a_dead_child_held_goes_with_its_join
        a_joined_failure_does_not
        a_panic_of_the_scope_waits_for_children
        nothing_is_dropped_twice
        output_is_flushed_once
        two_hundred_leave_nothing
        abandoned_children_are_swept
        nested_scopes
        a_full_pool_refuses_a_child
        a_refused_child_has_no_record;
    parents:
        other_threads_are_refused
        a_joined_thread_is_no_other_thread
        a_thread_of_a_scope_that_is_over_may_end
        other_threads_may_be_allowed
        no_descriptor_no_child
        a_thread_without_a_slot_may_fork
        who_ends_beside_other_threads_lets_go_of_nothing
        sigchld_ignored
        closed_streams_stay_closed
        reaped_by_somebody_else
        children_die_with_their_parent;
    masters:
        arguments_and_results_of_every_length
        workers_start_workers
        entries_need_not_be_statics
        a_result_is_joined_once_by_whomever
        every_end_has_its_cause
        the_first_worker_fails
        try_join_kill_detach
        who_must_not_wait_does_not
        restarts_by_policy
        what_the_joined_dead_held_is_free
        what_a_dead_joiner_had_taken_is_left_to_the_next
        forged_handles_are_errors
        nobody_finds_a_control_pool
        two_masters_in_one_process;
    crowds:
        thousands_one_after_another
        five_hundred_at_once
        workers_are_limited
        the_dead_leave_no_place_in_use;
    run_ends:
        the_rest_is_asked_then_killed
        nothing_is_started_at_the_end
        a_forked_copy_of_a_master_ends_nothing
        who_wakes_a_master_that_is_gone_writes_nowhere_else
        a_master_that_gets_no_memory_leaves_nothing
        a_run_in_little_address_space
        a_panic_of_the_hook_comes_last
        a_masters_output_is_flushed_once
        a_killed_master_leaves_nothing
        what_is_requested_is_answered_before_there_is_no_run
        the_dead_are_recovered_before_they_have_ended
        a_copy_of_a_master_does_not_keep_it_awake
        workers_have_no_descriptor_of_the_pid_file
        a_worker_has_of_its_master_what_wakes_it
        a_master_has_one_thread
        a_worker_is_a_master_or_has_children
        a_master_is_dropped_beside_a_thread_that_waits
        a_master_is_dropped_within_a_join
        a_control_pool_that_was_opened_stays_when_its_master_is_dropped
        a_worker_with_other_credentials_is_told
        a_worker_that_may_not_be_killed_is_asked
        who_has_locked_the_output_is_not_waited_for
        who_reads_the_output_is_waited_for;
    forks:
        a_fork_that_fails_holds_nothing
        a_child_that_is_killed_on_its_way_holds_nothing
        a_child_on_its_way_is_no_other
        a_child_on_its_way_whose_parent_is_dead
        who_returns_at_once_leaves_its_child_alive
        who_becomes_a_daemon_lives
        a_child_without_a_record_ends
        a_pool_is_used_first_while_the_process_forks
        who_cannot_be_watched_is_looked_at
        who_gets_no_signal_by_descriptor_is_killed_by_number
        a_restart_that_is_refused_is_tried_again
        two_threads_that_fork_at_once
        what_a_copy_returns_is_no_result
        a_copy_does_not_go_on_from_the_hook;
    managed:
        the_last_user_of_a_resource_ends_it
        a_copy_of_a_use_ends_nothing
        a_restarted_worker_keeps_what_it_inherited
        what_nobody_is_started_for_is_removed
        resources_are_limited
        devices_and_directories_stay
        the_next_run_removes_what_a_killed_one_left
        a_pool_that_somebody_uses_is_left
        damaged_journals_are_errors
        what_cannot_be_removed_stays_in_the_journal
        names_of_one_file_are_one_resource
        a_resource_announced_twice_is_one;
    paths:
        what_is_no_pid_file_stays
        paths_that_lead_nowhere_are_errors
        a_program_may_go_to_another_directory
        who_has_the_name_by_now_keeps_it;
    strangers:
        a_pool_that_is_there_is_not_managed
        who_is_refused_removes_nothing
        a_journal_that_others_can_write_is_refused
        what_a_link_leads_to_by_now_stays
        links_are_not_followed
        a_pool_that_is_no_runs_has_the_name
        a_pool_whose_addresses_are_taken_has_the_name
        a_directorys_name_is_no_files
        a_name_that_is_another_runs_by_now_stays;
    events:
        what_happens_is_logged
        a_logger_that_panics_is_in_nobodys_way;
    peers:
        peers_run_jobs_by_name
        peers_start_and_join
        every_end_of_a_peer_has_its_cause
        who_disagrees_is_refused
        what_nobody_can_define_is_refused
        what_a_dropped_peer_started_is_joined
        a_thread_that_a_job_left_uses_nothing;
    peer_deaths:
        peers_outlive_their_master_by_little
        who_waits_for_a_dead_master_is_told
        who_waits_for_a_master_that_is_gone_is_told
        a_doorbell_is_a_pipe
        a_doorbell_is_not_looked_for_in_another_proc
        what_a_killed_peer_used_is_removed
        a_peer_that_ends_its_job_when_it_is_asked_is_not_killed
        what_a_killed_peer_held_is_free
        a_peer_that_dies_when_its_job_is_done_has_done_it
        a_peer_that_is_dead_when_it_is_seen_is_forgotten
        who_has_the_types_is_found_among_others
        a_peer_that_cannot_be_watched_is_looked_at_again
        peers_killed_at_random;
    faults:
        killed_holders_block_nobody
        kills_inside_changes_and_allocations_block_nobody
        a_killed_waiter_swallows_no_signal
        a_shutdown_does_not_wait_for_the_blocked
        emptied_containers_fill_again
        small_pools_can_be_used_up;
    storms:
        killed_workers_are_started_again
        killed_masters_leave_nothing_after_the_next_start;
};

const ROLES: &[Named] = table! {
    results: role_no_room role_short_files;
    events: role_logs role_panicking_logger;
    ends: role_panic role_overflow;
    scopes: role_flush;
    parents: role_no_descriptor role_sigchld role_closed_streams role_family;
    masters: role_ends;
    run_ends: role_pid_file role_prints role_fills role_little_address_space;
    forks: role_failing_fork role_killed_on_its_way role_late role_orphan role_returns_at_once role_first_use role_unwatched role_unsignalled role_fork_at_once;
    managed: role_makes;
    peers: role_peer role_odd_peer role_asking_peer role_leaving_peer role_waiting_peer role_late_peer;
    peer_deaths: role_named_master role_storm;
    storms: role_churn;
};

fn main() -> ExitCode {
    common::run(CASES, ROLES)
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

fn loop_for_ever() {
    loop {
        std::thread::park();
    }
}
