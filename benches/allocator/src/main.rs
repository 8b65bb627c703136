//! One pattern of allocations on one allocator.
//!
//! ```text
//! allocator-patterns PATTERN threads|processes COUNT [memory]
//! ```
//!
//! prints the seconds that the work took, the bytes that the process had of the kernel when most
//! was allocated, and, with `memory`, two seconds after everything was freed.
//!
//! | module     | patterns |
//! |------------|----------|
//! | `small`    | churn, mix, sh6, cache_scratch: each worker by itself |
//! | `handed_on`| larson, xmalloc, sh8, mstress: workers free each other's blocks |
//! | `big`      | realloc, large |
//!
//! ```text
//! allocator-patterns recovery GIB
//! ```
//!
//! prints the milliseconds a GiB that the recovery of a dead process takes (built for shmkit).
//!
//! A block is written when it is allocated, at both ends, and looked at when it is freed.

mod big;
#[path = "../../common/gate.rs"]
mod gate;
mod handed_on;
mod memory;
#[cfg(feature = "shmkit")]
mod recovery;
mod small;
mod stage;

use std::time::{Duration, Instant};

use stage::Stage;

/// The work of a worker; it leaves its last blocks on the stage.
type Work = fn(&Stage, usize);

const PATTERNS: &[(&str, Work)] = &[
    ("churn_16", small::churn::<16>),
    ("churn_64", small::churn::<64>),
    ("churn_1024", small::churn::<1024>),
    ("mix", small::mix),
    ("sh6", small::sh6),
    ("cache_scratch", small::cache_scratch),
    ("larson", handed_on::larson),
    ("xmalloc", handed_on::xmalloc),
    ("sh8", handed_on::sh8),
    ("mstress", handed_on::mstress),
    ("realloc", big::realloc),
    ("large", big::large),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() {
        for (name, _) in PATTERNS {
            println!("{name}");
        }
        return;
    }
    #[cfg(feature = "shmkit")]
    if args[0] == "recovery" {
        let gib = args[1].parse().expect("a number of GiB");
        println!("{}", recovery::milliseconds_a_gib(gib, 15));
        return;
    }
    let work = PATTERNS.iter().find(|(name, _)| *name == args[0]);
    let work = work.expect("a pattern").1;
    let workers: usize = args[2].parse().expect("a number of workers");
    // What takes place before the work: the first block, the main thread's slot.
    memory::begin();
    // SAFETY: allocated just now.
    unsafe { memory::free(memory::allocate(64)) };
    let stage = Stage::new(workers);
    let seconds = match args[1].as_str() {
        "threads" => threads(work, &stage),
        "processes" => processes(work, &stage),
        other => panic!("{other}"),
    };
    let peak = taken().max(resident("VmHWM:"));
    stage.clear();
    let settled = if args.get(3).is_some() { settle() } else { 0 };
    println!("{seconds} {peak} {settled}");
}

/// The seconds that the workers take, as threads.
fn threads(work: Work, stage: &Stage) -> f64 {
    std::thread::scope(|s| {
        for worker in 0..stage.workers() {
            s.spawn(move || {
                stage.gate().work(|| work(stage, worker));
            });
        }
        stage.gate().time()
    })
}

#[cfg(feature = "shmkit")]
fn processes(work: Work, stage: &Stage) -> f64 {
    shmkit::process::scope(|s| {
        for worker in 0..stage.workers() {
            s.spawn(move || {
                stage.gate().work(|| work(stage, worker));
            })
            .expect("a process");
        }
        stage.gate().time()
    })
}

#[cfg(not(feature = "shmkit"))]
fn processes(_: Work, _: &Stage) -> f64 {
    panic!("the processes of this allocator share nothing");
}

/// Bytes of the kernel's memory that the process has.
fn taken() -> u64 {
    resident("VmRSS:") + memory::unmapped()
}

/// A line of the process's status, in bytes.
fn resident(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find_map(|l| l.strip_prefix(line));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("a number of kB")
        * 1024
}

/// What the process still has after two seconds in which little is allocated.
fn settle() -> u64 {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        for size in [64, 1000, 10_000, 100_000] {
            // SAFETY: allocated just now.
            unsafe { memory::free(memory::allocate(size)) };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    taken()
}
