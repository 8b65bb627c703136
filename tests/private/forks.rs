//! Forks: the child has a copy of the heap, in which the parent's other threads died.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shmkit::Pool;
use shmkit::process::scope;

use super::HEAP;
use super::common::{Random, TestPool, address, block_at, fill, layout, reap, storm_time, verify};
use super::memory::assert_sound;
use super::threads::wait_for_threads;

/// Workers of a scope: their heap is their own, the pool is shared.
pub fn workers_of_a_scope() {
    let pool = TestPool::new();
    let total = pool.create(AtomicU64::new(0)).unwrap();
    let parents: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
    let before = HEAP.stats().allocated;
    scope(|s| {
        for worker in 0..3_u64 {
            let (total, parents) = (&total, &parents);
            s.spawn(move || {
                let sum: u64 = parents
                    .iter()
                    .map(|text| text.parse::<u64>().unwrap())
                    .sum();
                let mine: Vec<_> = parents.iter().map(|text| text.repeat(50)).collect();
                assert!(mine[999].len() == 150);
                total.fetch_add(sum + worker, Ordering::Relaxed);
            })
            .unwrap();
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 3 * 499_500 + 3);
    assert!(HEAP.stats().allocated < before + 65_536);
    assert!(Pool::containing(parents.as_ptr().addr()).is_none());
}

const WORDS: usize = 64;
const THREADS: usize = 3;
/// Blocks of one size class.
const SIZE: usize = 24 << 10;

static BOXES: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static STOP: AtomicBool = AtomicBool::new(false);

/// Blocks of [`SIZE`] that were there before.
static OTHERS: AtomicUsize = AtomicUsize::new(0);

fn count() -> usize {
    let stats = HEAP.stats();
    let class = stats.classes.iter().find(|class| class.block_size == SIZE);
    class.map_or(0, |class| class.allocated) - OTHERS.load(Ordering::Relaxed)
}

/// Exchanges blocks with the boxes. At any moment it alone knows of two blocks at most: one of
/// [`SIZE`] and one of another.
fn exchange(seed: u64) {
    let mut random = Random::new(seed);
    while !STOP.load(Ordering::Relaxed) {
        let block = HEAP.allocate(layout(SIZE - random.below(2000), 8)).unwrap();
        fill(block, SIZE - 4096);
        let old = BOXES[random.below(WORDS)].swap(address(block), Ordering::AcqRel);
        if let Some(old) = block_at(old) {
            verify(old);
            free(old);
        }
        drop(vec![0_u8; random.below(100_000)]);
    }
}

fn free(block: NonNull<u8>) {
    // SAFETY: the block was taken from its box, so nobody else has it.
    unsafe { HEAP.deallocate(block) }.unwrap();
}

/// In a child: all that the parent's threads had put into boxes is there, whole, and can be freed;
/// what they had in hand is all that is lost.
fn child() {
    // The parent's threads are recovered when memory is asked for, or now.
    HEAP.purge().unwrap();
    assert_eq!(HEAP.stats().threads, 1);
    assert_sound();
    let boxed = BOXES
        .iter()
        .filter(|word| word.load(Ordering::Relaxed) != 0);
    let boxed = boxed.count();
    let all = count();
    assert!(
        (boxed..=boxed + THREADS).contains(&all),
        "{all} blocks, {boxed} boxed"
    );
    for word in &BOXES {
        if let Some(old) = block_at(word.swap(0, Ordering::Relaxed)) {
            verify(old);
            free(old);
        }
    }
    assert_eq!(count(), all - boxed);
    // It can have threads of its own, and children.
    STOP.store(false, Ordering::Relaxed);
    let threads: Vec<_> = (0..2)
        .map(|i| thread::spawn(move || exchange(i + 900)))
        .collect();
    thread::yield_now();
    grandchild();
    STOP.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_sound();
}

fn grandchild() {
    in_child(|| {
        HEAP.purge().unwrap();
        assert_eq!(HEAP.stats().threads, 1);
        assert_sound();
        assert!(vec![3_u8; 200_000].iter().all(|&byte| byte == 3));
    });
}

/// Runs `does` in a forked child, and waits for it.
#[track_caller]
fn in_child(does: impl FnOnce()) {
    // SAFETY: the child uses the heap, which is made for it, and standard error if it fails.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(does));
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    assert_eq!(reap(pid), 0, "the child failed");
}

struct StopAtEnd;

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        STOP.store(true, Ordering::Relaxed);
    }
}

/// Does something while threads exchange blocks.
fn while_exchanging(threads: u64, does: impl FnOnce()) {
    STOP.store(false, Ordering::Relaxed);
    OTHERS.store(0, Ordering::Relaxed);
    OTHERS.store(count(), Ordering::Relaxed);
    thread::scope(|s| {
        let _stop = StopAtEnd;
        for i in 0..threads {
            s.spawn(move || exchange(i + 1));
        }
        does();
    });
    for word in &BOXES {
        if let Some(old) = block_at(word.swap(0, Ordering::Relaxed)) {
            verify(old);
            free(old);
        }
    }
    assert_eq!(count(), 0);
    wait_for_threads(1);
    assert_sound();
}

pub fn forked_while_threads_allocate() {
    let end = Instant::now() + storm_time(Duration::from_secs(3));
    while_exchanging(THREADS as u64, || {
        while Instant::now() < end {
            in_child(child);
        }
    });
}

/// Each of several threads forks: each child's one thread is another.
pub fn forked_by_threads_at_once() {
    let forks = AtomicUsize::new(0);
    while_exchanging(1, || {
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for i in 0..20_usize {
                        let text = "mine".repeat(i * 100);
                        in_child(|| {
                            assert_eq!(text.len(), i * 400);
                            HEAP.purge().unwrap();
                            assert_eq!(HEAP.stats().threads, 1);
                            assert_sound();
                        });
                        forks.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    assert_eq!(forks.load(Ordering::Relaxed), 60);
}
