//! The workers of a run, as threads or as forked processes.

use shmkit::process::scope;

use crate::gate::{self, Gate};

/// So many workers of one kind.
pub struct Crew {
    gate: &'static Gate,
    processes: bool,
}

impl Crew {
    pub fn new(processes: bool, workers: usize) -> Self {
        // SAFETY: atomic integers, for which zero is a value.
        let gate = unsafe { gate::shared::<Gate>() };
        gate.open(workers);
        Crew { gate, processes }
    }

    pub fn workers(&self) -> usize {
        self.gate.workers()
    }

    /// Runs `work` by each worker, which is told its number and the gate, does what it must before
    /// the gate, works in [`Gate::work`], and returns how many operations that was. Prints the
    /// outcome.
    pub fn run(&self, work: impl Fn(usize, &Gate) -> u64 + Sync) {
        let (gate, work) = (self.gate, &work);
        let numbers = 0..gate.workers();
        let (seconds, operations) = if self.processes {
            scope(|s| {
                let children: Vec<_> = numbers
                    .map(|number| s.spawn(move || work(number, gate)).expect("a process"))
                    .collect();
                let seconds = gate.time();
                let done = children.into_iter().map(|c| c.join().expect("a count"));
                (seconds, done.sum::<u64>())
            })
        } else {
            std::thread::scope(|s| {
                let children: Vec<_> = numbers
                    .map(|number| s.spawn(move || work(number, gate)))
                    .collect();
                let seconds = gate.time();
                let done = children.into_iter().map(|c| c.join().expect("a count"));
                (seconds, done.sum::<u64>())
            })
        };
        println!("{seconds} {operations} {}", gate.used());
    }

    /// [`run`](Self::run) of `operation(i)` for so many `i` by each worker.
    pub fn repeat(&self, times: u64, operation: impl Fn(u64) + Sync) {
        self.run(|_, gate| {
            gate.work(|| (0..times).for_each(&operation));
            times
        });
    }
}
