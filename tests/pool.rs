//! Pools and objects, from outside: made, named, passed on, grown, full, damaged; objects by name,
//! by handle and by link, in many processes.
//!
//! Its own harness, see `common`.

use std::process::ExitCode;

mod common;

#[path = "pool/attach.rs"]
mod attach;
#[path = "pool/create.rs"]
mod create;
#[path = "pool/damage.rs"]
mod damage;
#[path = "pool/damaged_heap.rs"]
mod damaged_heap;
#[path = "pool/damaged_maps.rs"]
mod damaged_maps;
#[path = "pool/damaged_words.rs"]
mod damaged_words;
#[path = "pool/full_systems.rs"]
mod full_systems;
#[path = "pool/growth.rs"]
mod growth;
#[path = "pool/inspect.rs"]
mod inspect;
#[path = "pool/links.rs"]
mod links;
#[path = "pool/named.rs"]
mod named;
#[path = "pool/objects.rs"]
mod objects;
#[path = "pool/postponed.rs"]
mod postponed;

const CASES: &[common::Named] = table! {
    create:
        options
        prefaulted
        mapped_as_it_is_committed
        invalid_sizes
        invalid_participants
        bases
        participants_are_limited
        forty_eight_pools
        private_memory_is_no_pools
        created_open_and_unlinked
        invalid_names
        without_proc
        without_memory_nothing_is_left
        without_files_in_memory
        a_taken_name
        a_creator_killed_at_any_time
        a_pool_without_a_name_is_not_cut_off;
    attach:
        by_name_from_another_program
        by_descriptor_through_exec
        twice_in_one_process
        not_a_pool
        truncated
        other_version_or_layout
        damaged_values
        an_address_that_is_taken
        by_two_threads_at_once
        another_pid_namespace
        a_namespace_whose_proc_is_anothers
        a_child_in_another_namespace
        a_process_that_changes_its_time_namespace
        while_it_grows
        a_copy_gets_what_it_lacks
        a_pool_that_others_made_is_in_use
        who_attaches_leaves_it_out_of_dumps
        observers_share_a_place
        another_pool_in_a_file_that_is_looked_at;
    damage:
        flipped_header_bytes
        changed_table_words
        changed_array_words
        changed_heap_words
        changed_map_words
        changed_container_words
        spans_of_who_comes_next;
    damaged_heap:
        a_table_takes_nothing_behind_its_block
        a_table_finds_nothing_behind_its_block
        damaged_heaps_are_found;
    damaged_maps:
        a_stack_that_leads_in_a_circle_is_cleared
        a_chain_of_tables_has_an_end
        what_has_moved_away_is_not_looked_at
        hints_are_not_believed
        tables_of_impossible_shapes
        parts_that_are_nowhere
        a_table_behind_its_chunks
        a_table_that_follows_itself
        what_a_split_has_left_does_not_move_on;
    damaged_words:
        a_table_full_of_empty_claims
        the_last_chunk_that_can_be_counted
        a_chunk_in_a_small_block
        blocks_larger_than_the_pool
        a_ring_that_leads_to_itself
        a_log_longer_than_its_block
        the_last_position_there_is
        a_permit_of_something_else
        a_flag_that_no_writer_has_set
        what_a_free_slot_reads_under
        a_lock_taken_as_often_as_can_be_counted
        kept_runs_of_any_length
        kept_runs_that_are_not_told_of
        kept_runs_are_told_of_after_a_death
        kept_runs_at_the_end_are_grown;
    inspect:
        participants_and_what_they_have
        nothing_is_damaged_at_any_look
        a_map_of_the_data
        a_copy_is_not_the_pool_itself
        leaks_are_what_nobody_reaches
        a_large_block_takes_no_memory_to_look_into
        containers_reach_what_they_own;
    growth:
        four_gib_by_four_processes
        grow_to
        more_than_there_is_memory
        a_memory_limit a_limit_of_file_sizes a_limit_of_address_space;
    full_systems:
        a_full_file_system
        a_copy_takes_no_memory_that_the_machine_lacks
        memory_that_is_free_elsewhere
        who_is_refused_takes_no_memory
        what_a_dead_one_took_is_no_others;
    named:
        by_name
        names_have_limits
        a_name_keeps_its_object
        of_another_type
        of_a_type_made_to_look_alike
        the_table_of_names_fills_up
        a_race_has_one_winner
        made_and_removed_at_once;
    objects:
        counts
        the_value_comes_back
        handles_of_what_is_gone
        a_stale_handle_takes_nothing
        handles_of_pools_not_attached
        forged_handles
        handles_travel
        inherited_handles
        the_dead_let_go
        who_ends_lets_go
        a_copy_of_which_no_handler_knows_lets_go_of_nothing
        a_free_entry_is_found_however_far_off_it_is;
    postponed:
        the_dead_postponed_it
        who_has_left_postponed_it
        who_unmaps_the_pool_postponed_it
        the_living_keep_what_they_postponed
        nobody_waits_for_an_idle_keeper
        a_full_pool_is_tried_again;
    links:
        a_long_list
        a_long_list_of_a_dead_process
        a_cycle_stays
        links_stay_in_their_pool
        a_view_keeps_its_object
        set_and_read_by_four_processes
        collections_of_other_crates
        a_hash_map_under_a_lock;
};

const ROLES: &[common::Named] = table! {
    create: role_create role_legacy_layout role_no_files_in_memory;
    attach: role_by_name role_by_descriptor;
    full_systems: role_full_file_system role_little_memory role_free_elsewhere role_refused role_left_behind;
    growth: role_file_size role_address_space role_memory_limit;
};

fn main() -> ExitCode {
    common::run(CASES, ROLES)
}
