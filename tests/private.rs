//! A whole program on the private heap: this one.
//!
//! Its own harness, see `common`.

use std::process::ExitCode;

use shmkit::PrivateAlloc;

mod common;

#[path = "private/forks.rs"]
mod forks;
#[path = "private/memory.rs"]
mod memory;
#[path = "private/threads.rs"]
mod threads;

#[global_allocator]
static HEAP: PrivateAlloc = PrivateAlloc::new();

const CASES: &[common::Named] = table! {
    memory:
        collections
        zeroed_memory_is_zero
        memory_goes_back
        large_data_has_huge_pages
        refused_by_name
        refused_through_the_global_allocator
        a_limited_address_space
        little_memory_to_begin_with
        the_auxiliary_vector_is_not_told
        what_is_not_to_be_had;
    threads:
        threads_are_counted
        threads_come_and_go
        freed_by_other_threads
        freed_after_the_thread_has_left
        more_threads_than_slots;
    forks:
        workers_of_a_scope
        forked_while_threads_allocate
        forked_by_threads_at_once;
};

const ROLES: &[common::Named] = table! {
    memory:
        frees_twice
        reallocates_what_is_freed
        has_freed_much
        is_limited
        has_little;
};

fn main() -> ExitCode {
    common::run(CASES, ROLES)
}
