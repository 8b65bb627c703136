//! The cases, and their run.

mod buffer;
mod byte_map;
mod cell;
mod children;
mod containers;
mod engine;
mod heap;
mod in_pool;
mod mailbox;
mod map;
mod meetings;
mod multi_map;
mod numbers;
mod overtaken;
mod pool;
mod pool_memory;
mod process;
mod queue;
mod recovery;
mod rwlock;
mod str_map;
mod sync;
mod toy;

use std::process::ExitCode;

pub fn run() -> ExitCode {
    if let Some(code) = engine::in_parts() {
        return code;
    }
    let mut suite = engine::Suite::from_env();
    toy::cases(&mut suite);
    pool_memory::cases(&mut suite);
    recovery::cases(&mut suite);
    pool::cases(&mut suite);
    children::cases(&mut suite);
    containers::cases(&mut suite);
    sync::cases(&mut suite);
    rwlock::cases(&mut suite);
    meetings::cases(&mut suite);
    buffer::cases(&mut suite);
    cell::cases(&mut suite);
    heap::cases(&mut suite);
    map::cases(&mut suite);
    str_map::cases(&mut suite);
    byte_map::cases(&mut suite);
    multi_map::cases(&mut suite);
    queue::cases(&mut suite);
    mailbox::cases(&mut suite);
    numbers::cases(&mut suite);
    overtaken::cases(&mut suite);
    process::cases(&mut suite);
    suite.finish()
}
