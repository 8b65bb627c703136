//! How long the recovery of a dead participant takes, in a pool that is full of blocks.

use std::alloc::Layout;
use std::time::Instant;

use shmkit::Pool;

/// Milliseconds a GiB, the median of so many deaths.
pub fn milliseconds_a_gib(gib: usize, deaths: usize) -> f64 {
    let pool = Pool::builder().create().expect("a pool");
    let sizes = [48, 200, 1000, 5000, 30_000, 100_000];
    let layout = |i: usize| Layout::from_size_align(sizes[i % sizes.len()], 16).expect("a layout");
    for i in 0.. {
        pool.allocate(layout(i)).expect("memory");
        if i % 1000 == 0 && pool.stats().total >= gib << 30 {
            break;
        }
    }
    let mut times: Vec<f64> = (0..deaths).map(|_| one_death(pool, &layout)).collect();
    times.sort_by(f64::total_cmp);
    let total = pool.stats().total as f64 / (1 << 30) as f64;
    times[deaths / 2] / total
}

/// A process with some thousand blocks is killed; the milliseconds until all of it is recovered.
fn one_death(pool: Pool, layout: &impl Fn(usize) -> Layout) -> f64 {
    // Not by `scope`, whose `join` would do it. SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        for i in 0..5000 {
            pool.allocate(layout(i)).expect("memory");
        }
        // SAFETY: ends this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    // SAFETY: a child of ours; nobody asks how it ended.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    let begun = Instant::now();
    let recovered = pool.recover();
    let time = begun.elapsed();
    assert_eq!(recovered.threads, 1);
    time.as_secs_f64() * 1e3
}
