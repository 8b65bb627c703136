//! The start time of a child that was just forked, without a look into `/proc`, which would take
//! more of its time than everything else that it does.
//!
//! The kernel takes a process's start from the clock that is `CLOCK_BOOTTIME`, in nanoseconds, and
//! `/proc` shows it in ticks, both shifted by the reader's time namespace. So a child that is in
//! the time namespace of its parent knows its own start if the parent has read that clock before
//! the fork, the child reads it after the fork, and both readings are in the same tick. Otherwise
//! it asks `/proc`.
//!
//! With a wrong start, a living process would be taken for dead. So the clock is believed only
//! after `/proc` has shown what the clock says, for one child of this process or of a process from
//! which it descends.
//!
//! # Crash behaviour
//!
//! What is remembered is in private memory, and one word.

use std::sync::atomic::{AtomicU8, Ordering};

use super::super::call;
use super::{TaskState, own_start, start_time};

/// Nanoseconds of a tick.
const TICK: u64 = 10_000_000;
/// A start that is this near to the edge of a tick is read from `/proc`: what a program reads and
/// what the kernel reads may differ by some nanoseconds.
const EDGE: u64 = 100_000;

const UNKNOWN: u8 = 0;
const BELIEVED: u8 = 1;
const REFUTED: u8 = 2;

/// What `/proc` has shown about the clock. Relaxed: no other memory goes with it.
static CLOCK: AtomicU8 = AtomicU8::new(UNKNOWN);

/// The clock that starts are taken from. Never 0.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn clock() -> u64 {
    let mut now = [0_i64; 2];
    let arguments = [
        libc::CLOCK_BOOTTIME as usize,
        (&raw mut now).expose_provenance(),
        0,
    ];
    // SAFETY: the call writes seconds and nanoseconds, two words on every 64-bit system, to the local.
    if unsafe { call::bare(libc::SYS_clock_gettime, arguments) }.is_err() {
        // A system-call filter may refuse it, and does not see the clock being read through the C
        // library.
        let read = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now = [read.tv_sec, read.tv_nsec];
    }
    1.max(now[0] as u64 * 1_000_000_000 + now[1] as u64)
}

/// The tick in which something began, if it began between two readings of the clock and the tick is
/// certain.
fn tick_between(before: u64, after: u64) -> Option<u64> {
    let first = before.saturating_sub(EDGE) / TICK;
    let last = after.checked_add(EDGE)? / TICK;
    (before <= after && first == last).then_some(first)
}

/// The start of this process, whose parent read the clock before it forked this process; 0 if it
/// cannot be known. If `before` is 0, for instance because the child may be in another time
/// namespace, `/proc` is asked.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn own_start_since(before: u64) -> u64 {
    let known = (before != 0 && CLOCK.load(Ordering::Relaxed) == BELIEVED)
        .then(|| tick_between(before, clock()))
        .flatten();
    known.unwrap_or_else(own_start)
}

/// Asks `/proc` once whether the clock can be believed, about a child that was just forked, is not
/// yet reaped and is in this process's time namespace. The clock was read before the fork.
pub(crate) fn compare(child: u32, before: u64) {
    if before == 0 || CLOCK.load(Ordering::Relaxed) != UNKNOWN {
        return;
    }
    if let Some(tick) = tick_between(before, clock())
        && let TaskState::Alive { start } = start_time(child)
    {
        let outcome = if start == tick { BELIEVED } else { REFUTED };
        CLOCK.store(outcome, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ended, ForkResult, exit_now, fork, pid, wait};
    use super::*;

    #[test]
    fn what_is_not_certain_is_asked_for() {
        let middle = 7 * TICK + TICK / 2;
        assert_eq!(tick_between(middle, middle + 1000), Some(7));
        assert_eq!(tick_between(middle, middle + TICK), None);
        assert_eq!(tick_between(middle + 1, middle), None);
        assert_eq!(tick_between(7 * TICK, middle), None);
        assert_eq!(tick_between(7 * TICK + EDGE, 8 * TICK - EDGE - 1), Some(7));
        assert_eq!(tick_between(7 * TICK + EDGE, 8 * TICK - EDGE), None);
        assert_eq!(tick_between(middle, u64::MAX), None);
    }

    /// It says of one process that it has just begun, which `/proc` denies.
    #[test]
    fn a_clock_that_was_wrong_is_not_believed() {
        // SAFETY: the child calls what is usable after a fork, and ends. The clock is its own.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => assert_eq!(wait(child), Ended::Exited(0)),
            ForkResult::Child => {
                let started = own_start();
                CLOCK.store(UNKNOWN, Ordering::Relaxed);
                while CLOCK.load(Ordering::Relaxed) == UNKNOWN {
                    // Not in the tick in which it has indeed begun.
                    if clock() / TICK > started + 1 {
                        compare(pid(), clock());
                    }
                }
                let is_right = own_start_since(clock()) == started;
                let is_believed = CLOCK.load(Ordering::Relaxed) == BELIEVED;
                exit_now(i32::from(is_believed || !is_right));
            }
        }
    }
}
