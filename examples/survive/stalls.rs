//! How long a worker's round took, and for how much of that the worker was held up by the others. The rest is
//! due to the system, which gave the processor to another process while the worker was ready to run.

use std::time::{Duration, Instant};

/// Rounds up to this long are not examined: all of their time counts as held up.
const SHORT: Duration = Duration::from_millis(1);

/// Watches the rounds of the thread that leads its process.
pub struct Stalls {
    looked: Instant,
    /// How long the thread had waited for a processor in its whole life, as of then.
    waited: Duration,
}

impl Stalls {
    pub fn new() -> Self {
        Stalls {
            looked: Instant::now(),
            waited: waited_for_a_processor(),
        }
    }

    /// A round that began at `started` is over: returns how long it took, and for how much of that others
    /// held it up, to a millisecond or two.
    #[inline]
    pub fn round(&mut self, started: Instant) -> (Duration, Duration) {
        let now = Instant::now();
        let took = now - started;
        if now - self.looked < SHORT {
            return (took, took);
        }
        let before = self.waited;
        *self = Stalls::new();
        if took < SHORT {
            return (took, took);
        }
        (took, took.saturating_sub(self.waited - before))
    }
}

/// How long this process's first thread has been ready to run while others ran; 0 if the kernel does
/// not tell. (The second number of `schedstat`, in nanoseconds; Linux's Documentation/scheduler/sched-stats.)
fn waited_for_a_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let number = text.split_whitespace().nth(1);
    Duration::from_nanos(number.and_then(|n| n.parse().ok()).unwrap_or(0))
}
