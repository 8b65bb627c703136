//! The allocator, from outside: against a model, at its borders, misused, full, shared by many
//! processes, and with its users killed.
//!
//! Its own harness, see `common`.

use std::process::ExitCode;

mod common;

#[path = "allocator/full.rs"]
mod full;
#[path = "allocator/guarded.rs"]
mod guarded;
#[path = "allocator/kept.rs"]
mod kept;
#[path = "allocator/kills.rs"]
mod kills;
#[path = "allocator/misuse.rs"]
mod misuse;
#[path = "allocator/model.rs"]
mod model;
#[path = "allocator/processes.rs"]
mod processes;
#[path = "allocator/sizes.rs"]
mod sizes;
#[path = "allocator/storm.rs"]
mod storm;

const CASES: &[common::Named] = table! {
    sizes:
        sizes_around_class_borders
        alignments
        large_blocks
        no_pool_can_hold_it
        reallocation
        runs_grow_where_they_lie
        no_run_grows_beyond_the_pool
        statistics_add_up
        purging_gives_memory_back
        spans_of_objects_go_back
        free_memory_ages_and_goes_back
        each_slice_ages_by_itself
        freed_memory_goes_back_within_two_seconds
        fragmentation_after_churn_is_bounded;
    model:
        random_operations
        long_random_operations;
    misuse:
        freed_twice
        freed_twice_by_another_process
        freed_twice_by_another_thread
        freed_in_a_span_that_went_back
        not_the_start_of_a_block
        not_of_this_pool
        never_allocated;
    full:
        every_class_fills_the_pool
        empty_spans_are_used_in_a_full_pool
        given_back_spans_are_not_known
        large_blocks_fill_the_pool
        mixed_sizes_fill_the_pool
        memory_comes_back_to_other_classes
        a_block_shrinks_in_a_full_pool
        the_largest_free_block_is_told
        slices_that_get_no_memory_are_as_before;
    kept:
        a_kept_run_is_taken_again
        what_is_kept_is_bounded
        what_is_not_needed_is_released
        kept_runs_count_as_free
        kept_runs_are_no_blocks
        kept_by_another_thread_in_a_full_pool
        kept_by_the_dead_in_a_full_pool
        a_pool_does_not_grow_for_what_is_kept
        a_run_grows_into_a_kept_one
        memory_of_what_is_kept_goes_back
        notes_of_the_one_before
        kept_and_released_at_once
        taken_and_released_at_once;
    guarded:
        written_past_the_end
        written_past_the_end_by_others
        written_after_the_free
        nothing_is_found_where_nothing_is_wrong;
    processes:
        producer_and_consumer
        freed_by_many_at_once
        threads_come_and_go
        processes_come_and_go
        spans_of_the_dead_are_used
        empty_spans_of_the_dead_go_back
        half_free_spans_of_the_dead_are_found_in_a_full_pool
        memory_of_the_settled_comes_before_an_error
        what_is_left_behind_goes_back;
    storm:
        killed_at_random;
    kills:
        killed_by_the_thousand;
};

fn main() -> ExitCode {
    common::run(CASES, &[])
}
