//! Containers from outside, also from several processes and with workers that are killed.
//!
//! Its own harness, see `common`: each case has a process of its own.

use std::env;
use std::process::ExitCode;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use shmkit::{KillSafe, Pool, ShmSafe};

#[path = "containers/arrays.rs"]
mod arrays;
#[path = "containers/banks.rs"]
mod banks;
#[path = "containers/buffers.rs"]
mod buffers;
#[path = "containers/byte_maps.rs"]
mod byte_maps;
#[path = "containers/cells.rs"]
mod cells;
#[path = "containers/claims.rs"]
mod claims;
#[path = "common/mod.rs"]
mod common;
#[path = "containers/full_maps.rs"]
mod full_maps;
#[path = "common/graph_model.rs"]
mod graph_model;
#[path = "containers/graphs.rs"]
mod graphs;
#[path = "containers/heaps.rs"]
mod heaps;
#[path = "containers/histories.rs"]
mod histories;
#[path = "containers/mailboxes.rs"]
mod mailboxes;
#[path = "containers/map_users.rs"]
mod map_users;
#[path = "containers/maps.rs"]
mod maps;
#[path = "containers/matrices.rs"]
mod matrices;
#[path = "containers/multi_maps.rs"]
mod multi_maps;
#[path = "containers/queue_users.rs"]
mod queue_users;
#[path = "containers/queues.rs"]
mod queues;
#[path = "containers/refused.rs"]
mod refused;
#[path = "containers/scarce.rs"]
mod scarce;
#[path = "containers/stopped.rs"]
mod stopped;
#[path = "containers/streams.rs"]
mod streams;
#[path = "containers/workers.rs"]
mod workers;

const CASES: &[common::Named] = table! {
    arrays:
        constructors
        behaves_like_a_vec
        bounds
        elements_of_every_size
        updates
        grows
        outside_of_a_pool
        a_panic_makes_nothing
        a_full_pool_loses_nothing
        destruction_returns_every_byte
        fields_of_a_struct;
    claims:
        overlaps
        empty_ranges
        elements_against_claims
        as_many_as_there_are
        a_panic_with_a_claim_is_told
        claims_refuse_growth
        claims_refuse_spawn;
    matrices:
        matrices_behave_like_rows
        shapes
        bands
        a_matrix_grows
        a_matrix_in_a_struct
        what_is_replaced_is_described
        bands_across_processes;
    buffers:
        buffer_behaves_like_its_model
        buffer_refusals
        a_full_pool_loses_no_bytes
        deleting_returns_memory
        deleting_from_closed_buffers_returns_memory
        views_keep_their_bytes
        appended_by_many
        killed_writers_tear_nothing
        killed_deleters_lose_nothing
        a_stopped_writer_blocks_nobody
        readers_and_writers_give_up
        records_stay_whole
        readers_and_writers_wait
        closing_wakes_all
        a_buffer_is_written_to_whatever_is_imported;
    workers:
        disjoint_bands_in_parallel
        the_claims_of_the_killed_are_over
        the_claims_of_threads_that_have_ended_are_over
        marks_of_the_killed_are_struck
        more_are_killed_than_there_are_claims
        a_forked_copy_of_a_claim_is_void
        sets_are_never_torn
        updates_are_counted
        killed_setters_tear_nothing
        growth_under_use
        killed_growers;
    refused:
        objects_refused
        arrays_refused
        cells_refused
        maps_refused
        queues_refused
        buffers_refused
        matrices_refused
        heaps_refused
        slots_refused
        pools_refused;
    scarce:
        growth_makes_room
        an_update_lives_on_what_its_pin_held
        attempts_come_to_an_end
        an_entry_keeps_its_values_apart
        the_end_of_a_pin_frees_what_it_held
        idle_threads_hold_nothing_back;
    stopped:
        a_write_that_was_cut_off_is_completed
        claims_wait_for_elements_in_flight
        growth_waits_for_elements_in_flight
        a_stopped_producer_holds_up_nobody
        a_stopped_consumer_holds_up_nobody
        elements_that_come_and_go_are_not_missed
        a_stopped_waiter_is_passed
        who_has_little_time_passes_a_stopped_waiter
        a_stopped_waiter_takes_a_last_look;
    cells:
        cells_behave_like_variables
        cells_outside_of_a_pool
        an_update_that_panics_changes_nothing
        a_view_holds_back_what_it_sees
        a_full_pool_keeps_the_cell
        updates_of_a_cell_are_counted
        killed_setters_of_cells_lose_nothing
        a_stopped_viewer_holds_up_memory_only;
    byte_maps:
        bytes_behave_like_stds
        bytes_of_all_lengths
        maps_of_bytes_outside_of_a_pool
        maps_of_bytes_are_told_apart
        damaged_lengths_are_passed_over
        a_full_pool_keeps_the_bytes
        replaced_bytes_are_counted
        removed_bytes_are_counted
        the_killed_leave_bytes_whole;
    maps:
        behaves_like_stds
        grows_and_shrinks
        keys_of_all_kinds
        damaged_keys_are_passed_over
        damaged_derived_keys_are_passed_over
        derived_keys
        hashers_of_all_kinds
        entries_are_one_operation
        an_entry_makes_one_value
        maps_that_grow_under_an_iteration
        maps_outside_of_a_pool
        handles_and_names_of_maps
        closures_may_panic_and_re_enter;
    full_maps:
        a_full_pool_loses_no_entry
        changes_live_on_what_they_outgrow;
    map_users:
        a_mixed_load_of_processes
        the_killed_leave_a_map_whole
        increments_of_the_killed_are_counted
        killed_fillers_of_a_growing_map;
    heaps:
        objects_of_all_kinds
        heaps_outside_of_a_pool
        one_use_a_thread
        ids_are_checked
        an_id_of_a_type_made_to_look_alike
        places_are_not_believed
        objects_are_saved_once
        parts_are_saved_once
        records_of_any_length
        a_new_table_has_no_objects
        what_fails_is_undone
        the_dead_may_leave_a_heap_for_good
        collections_come_by_themselves
        the_more_is_left_the_later_is_the_next_collection
        a_collection_leaves_what_may_come_back
        what_was_collected_is_not_saved
        a_full_pool_loses_no_object
        a_forked_copy_of_a_transaction_is_void
        a_forked_copy_of_a_transaction_undoes_nothing;
    graphs:
        heaps_behave_like_graphs;
    banks:
        transfers_by_many
        killed_modifiers_lose_nothing
        a_killed_viewer_holds_up_nobody;
    histories:
        the_check_of_histories_can_fail
        histories_of_cells
        histories_of_maps
        histories_of_flat_maps
        histories_of_multi_maps
        histories_of_heaps;
    streams:
        histories_of_queues
        histories_of_mailboxes
        histories_of_buffers;
    multi_maps:
        stacks_behave_like_vecs
        pushes_live_on_what_they_outgrow
        stacks_outside_of_a_pool
        a_stack_is_cleared_at_once
        killed_users_of_stacks_lose_nothing;
    queues:
        first_in_first_out
        behaves_like_a_vec_deque
        queued_elements_of_every_size
        queues_refuse
        a_full_pool_loses_no_element
        destroyed_queues_return_every_byte
        closed_queues
        leases_come_back
        leases_of_several_rings_come_back_in_order
        the_leases_of_the_killed_come_back
        the_leases_of_threads_that_have_ended_come_back;
    queue_users:
        producers_and_a_consumer
        producers_and_consumers
        no_producer_starves
        a_sleeping_producer_gets_its_turn
        elements_that_come_back_are_not_missed
        snapshots_of_what_comes_back
        nothing_is_counted_twice
        what_the_dead_held_makes_room_for_queues_and_buffers
        killed_producers
        killed_consumers
        killed_leasers
        more_leasers_than_leases;
    mailboxes:
        mailboxes_behave_like_vec_deques
        many_senders_one_receiver
        a_mailbox_has_one_receiver
        the_receiver_of_the_killed
        wakes
        woken_by_a_thread_without_a_slot
        waiting_for_any
        nothing_to_wait_for
        mailboxes_refuse
        killed_senders_and_receivers;
};

/// 24 bytes of which the third eight tell whether they belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ShmSafe, KillSafe)]
struct Sealed {
    a: u64,
    b: u64,
    seal: u64,
}

impl Sealed {
    fn new(a: u64) -> Self {
        let b = a.rotate_left(31) ^ 0x5bd1_e995;
        let seal = Self::seal(a, b);
        Sealed { a, b, seal }
    }

    fn seal(a: u64, b: u64) -> u64 {
        a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.rotate_left(7)
    }

    fn is_whole(self) -> bool {
        self == Sealed::new(self.a)
    }
}

/// As large as an element can be that is written at once: most of a write is the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ShmSafe, KillSafe)]
struct Page([u64; 512]);

impl Page {
    const fn new(value: u64) -> Self {
        Page([value; 512])
    }

    fn is_whole(&self) -> bool {
        *self == Page::new(self.0[0])
    }
}

/// A pool of 16 MiB at most.
fn pool() -> Pool {
    Pool::builder().max_size(16 << 20).create().unwrap()
}

/// Bytes in use once everybody dead is recovered and everything unheld is gone.
fn allocated(pool: Pool) -> usize {
    pool.recover();
    pool.stats().allocated
}

/// Runs a test on so many random inputs, or on as many as the environment says; of those on which it
/// fails, the smallest that is found is told.
fn on_random<S: Strategy>(cases: u32, inputs: &S, test: impl Fn(S::Value)) {
    let told = env::var("PROPTEST_CASES").ok();
    let mut runner = TestRunner::new(Config {
        cases: told.and_then(|n| n.parse().ok()).unwrap_or(cases),
        failure_persistence: None,
        ..Config::default()
    });
    let run = |input| {
        test(input);
        Ok(())
    };
    if let Err(failure) = runner.run(inputs, run) {
        panic!("{failure}");
    }
}

#[track_caller]
fn assert_sound(pool: Pool) {
    pool.recover();
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report:?}");
}

fn main() -> ExitCode {
    common::run_apart(CASES)
}
