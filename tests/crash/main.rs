//! Death at every instruction. See `engine` for how, and `engine/suite.rs` for the environment variables.
//!
//! `toy` tests the engine: on a toy pool, with operations that are right and operations that are broken on purpose.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod buffer;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cell;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod containers;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod engine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod heap;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod in_pool;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod mailbox;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod map;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod multi_map;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod numbers;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod pool;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod pool_memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod process;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod queue;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod recovery;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod rwlock;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod sync;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod toy;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    if let Some(code) = engine::in_parts() {
        return code;
    }
    let mut suite = engine::Suite::from_env();
    toy::cases(&mut suite);
    pool_memory::cases(&mut suite);
    recovery::cases(&mut suite);
    pool::cases(&mut suite);
    containers::cases(&mut suite);
    sync::cases(&mut suite);
    rwlock::cases(&mut suite);
    buffer::cases(&mut suite);
    cell::cases(&mut suite);
    heap::cases(&mut suite);
    map::cases(&mut suite);
    multi_map::cases(&mut suite);
    queue::cases(&mut suite);
    mailbox::cases(&mut suite);
    numbers::cases(&mut suite);
    process::cases(&mut suite);
    suite.finish()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("0 passed, 0 failed");
}
