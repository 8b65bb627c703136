//! A gate in memory that threads and forked processes share: workers begin together, and the time
//! from the first beginning to the last end is known.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The gate of a run.
pub struct Gate {
    workers: AtomicU64,
    /// Who has arrived, of all times together.
    arrived: AtomicU32,
    /// When the first worker began and the last one ended, in nanoseconds.
    begun: AtomicU64,
    ended: AtomicU64,
    /// The processor's nanoseconds of the worker that used most.
    used: AtomicU64,
    /// If not 0, the nanoseconds of the work are these.
    batches: AtomicU64,
}

impl Gate {
    /// For so many workers and the one who waits for them.
    pub fn open(&self, workers: usize) {
        self.workers.store(workers as u64, Ordering::Relaxed);
        self.begun.store(u64::MAX, Ordering::Relaxed);
    }

    pub fn workers(&self) -> usize {
        self.workers.load(Ordering::Relaxed) as usize
    }

    /// Does a worker's work, between two gates, and notes when.
    ///
    /// The work's variables lie elsewhere in the stack in each run. A loop takes three times as long if
    /// one of them happens to lie across two pages, and a thread's stack begins at the same place of a
    /// page each time.
    pub fn work<R>(&self, work: impl FnOnce() -> R) -> R {
        let (mut work, mut result) = (Some(work), None);
        let frames = clock(libc::CLOCK_MONOTONIC) / 1000 % 64;
        below(frames, &mut || {
            result = work.take().map(|work| self.work_here(work));
        });
        result.expect("called once")
    }

    fn work_here<R>(&self, work: impl FnOnce() -> R) -> R {
        self.wait();
        self.begun
            .fetch_min(clock(libc::CLOCK_MONOTONIC), Ordering::Relaxed);
        let before = clock(libc::CLOCK_THREAD_CPUTIME_ID);
        let result = work();
        let used = clock(libc::CLOCK_THREAD_CPUTIME_ID) - before;
        self.ended
            .fetch_max(clock(libc::CLOCK_MONOTONIC), Ordering::Relaxed);
        self.used.fetch_max(used, Ordering::Relaxed);
        self.wait();
        result
    }

    /// Lets the workers begin, and waits for all: seconds from the first beginning to the last end.
    pub fn time(&self) -> f64 {
        self.wait();
        self.wait();
        let ended = self.ended.load(Ordering::Relaxed);
        match self.batches.load(Ordering::Relaxed) {
            0 => seconds(ended - self.begun.load(Ordering::Relaxed)),
            nanos => seconds(nanos),
        }
    }

    /// Does something so many times, a batch at a time: the time of the work is that of the median
    /// batch, as often as there are batches.
    #[allow(dead_code, reason = "not every bench asks")]
    pub fn batches(&self, times: u64, batch: u64, something: impl Fn()) {
        let count = times / batch;
        let mut took: Vec<u64> = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let begun = clock(libc::CLOCK_MONOTONIC);
            (0..batch).for_each(|_| something());
            took.push(clock(libc::CLOCK_MONOTONIC) - begun);
        }
        took.sort_unstable();
        let median = took[took.len() / 2];
        self.batches.fetch_max(median * count, Ordering::Relaxed);
    }

    /// The processor's seconds of the worker that used most.
    #[allow(dead_code, reason = "not every bench asks")]
    pub fn used(&self) -> f64 {
        seconds(self.used.load(Ordering::Relaxed))
    }

    /// Waits for all workers and the one who waits for them.
    pub fn wait(&self) {
        let parties = self.workers() as u32 + 1;
        let number = self.arrived.fetch_add(1, Ordering::AcqRel);
        let round = number / parties;
        if (number + 1).is_multiple_of(parties) {
            self.futex(libc::FUTEX_WAKE, i32::MAX.cast_unsigned());
            return;
        }
        let mut spins = 0;
        loop {
            let arrived = self.arrived.load(Ordering::Acquire);
            if arrived / parties != round {
                break;
            }
            // Who waits long leaves the cores to the others.
            spins += 1;
            if spins < 10_000 {
                spin_loop();
            } else {
                self.futex(libc::FUTEX_WAIT, arrived);
            }
        }
    }

    /// Who waits looks again, whatever came of it.
    fn futex(&self, operation: libc::c_int, value: u32) {
        let forever = std::ptr::null::<libc::timespec>();
        // SAFETY: a word that lives as long as the gate, and no time limit.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.arrived.as_ptr(),
                operation,
                value,
                forever,
            )
        };
    }
}

/// A new mapping that forked processes share, and that stays.
///
/// # Safety
///
/// Zeroes are a valid `T`.
pub unsafe fn shared<T: Sync>() -> &'static T {
    // SAFETY: a new mapping, zeroed, which is a valid `T` by the caller's promise.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(memory, libc::MAP_FAILED);
        &*memory.cast::<T>()
    }
}

/// Calls `work` below so many frames of some 100 bytes.
#[inline(never)]
fn below(frames: u64, work: &mut dyn FnMut()) {
    let frame = black_box([frames; 8]);
    match frame[0] {
        0 => work(),
        more => below(more - 1, work),
    }
    black_box(frame);
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Nanoseconds by a clock.
fn clock(which: libc::clockid_t) -> u64 {
    // SAFETY: the structure is the kernel's to fill.
    unsafe {
        let mut time = std::mem::zeroed::<libc::timespec>();
        libc::clock_gettime(which, &mut time);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}

/// A generator of pseudo-random numbers: xorshift64* (Vigna, 2016).
pub struct Random(u64);

impl Random {
    pub fn new(seed: usize) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1))
    }

    #[inline]
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((number * n as u64) >> 32) as usize
    }
}
