//! What is done before sleeping: looking again for a while, and letting others run once.
//!
//! # Rationale
//!
//! A sleep costs two system calls and, mostly, a switch to another thread that takes as long as
//! hundreds of elements. Three cases differ in what is best; they cannot be told apart beforehand,
//! and they change:
//!
//! | the other side | what ends the wait soonest |
//! |---|---|
//! | runs on another processor | looking again and again |
//! | waits for this processor, and nobody else does | a yield: it runs at once, and may do much before control is back here |
//! | sleeps, or others want to run | sleeping: a thread that is woken runs before those |
//!
//! So each thread tries, and skips for a while what has not paid off: once, then twice as often
//! with each failure in a row, up to [`MOST`] times. A thread that waits often pays next to nothing
//! for attempts in vain, and one for which looking has paid off goes on with it. These notes are a
//! thread's own; a wrong one costs some time.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crossbeam_utils::Backoff;

use crate::participants::deadline::Deadline;

/// How often a way of waiting is skipped, at most, before it is tried again.
const MOST: u32 = 1 << 10;

/// How long looking goes on: about as long as waking a thread on another processor takes, so that a
/// thread that has just woken the other side may see its answer.
const LOOKING: Duration = Duration::from_micros(25);

/// Pauses of the processor before the first look. A thread that looks at once is right behind the
/// other side, and takes away the cache line to which the other side adds what comes next:
/// `docs/measurements.md`, One behind the other.
const APART: u32 = 16;

/// The number of looks before the clock is read.
const UNTIMED: u32 = 6;

/// A yield that takes longer has let others run besides the other side.
const YIELD: Duration = Duration::from_micros(500);

/// Looks at a word that others change, for a wait that is short if the other side runs: before
/// anything slower is done.
///
/// A look takes the word's cache line away from the thread that is about to change it. So the
/// pauses between two looks get longer (Anderson, *The performance of spin lock alternatives for
/// shared-memory multiprocessors*, 1990). They begin at some 80 nanoseconds: about what it costs to
/// have the line come and go, and long enough for a thread that comes back to the word at once,
/// which has then done several operations without a wait. `docs/measurements.md` has what that
/// gives.
pub(crate) struct Looks {
    left: u32,
    pauses: u32,
    longest: u32,
}

impl Looks {
    /// About 5 microseconds in all, as long as a sleep and a wake take.
    const MOST: u32 = 9;
    /// The first pause and the longest, in pauses of the processor.
    const FIRST: u32 = 8;
    const LONGEST: u32 = 64;

    pub(crate) fn new() -> Self {
        Looks {
            left: Self::MOST,
            pauses: Self::FIRST,
            longest: Self::LONGEST,
        }
    }

    /// Without longer pauses, for a microsecond: for a thread that waits for another that will not
    /// come back to the word at once.
    pub(crate) fn steady() -> Self {
        Looks {
            left: 100,
            pauses: 1,
            longest: 1,
        }
    }

    /// Pauses, if it is worth looking again.
    pub(crate) fn go_on(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        self.left = left;
        for _ in 0..self.pauses {
            std::hint::spin_loop();
        }
        self.pauses = (self.pauses * 2).min(self.longest);
        true
    }
}

/// Whether a way of waiting has paid off lately.
struct Habit {
    /// How many more times it is to be skipped.
    left_out: Cell<u32>,
    /// How many times it will be skipped after the next failure.
    next: Cell<u32>,
}

impl Habit {
    const fn new() -> Self {
        Habit {
            left_out: Cell::new(0),
            next: Cell::new(1),
        }
    }

    fn is_due(&self) -> bool {
        let left_out = self.left_out.get();
        self.left_out.set(left_out.saturating_sub(1));
        left_out == 0
    }

    fn note(&self, paid: bool) {
        let next = self.next.get();
        self.left_out.set(if paid { 0 } else { next });
        self.next.set(if paid { 1 } else { (next * 2).min(MOST) });
    }
}

thread_local! {
    static LOOKS: Habit = const { Habit::new() };
    static YIELDS: Habit = const { Habit::new() };
}

/// Attempts it for a moment, as far as that has paid off and `deadline` allows: a thread that has
/// little time left does not yield the processor to others, which may keep it for long.
#[inline]
pub(crate) fn attempt_awake<R>(
    deadline: Deadline,
    mut attempt: impl FnMut() -> Option<R>,
) -> Option<R> {
    let attempt = |()| match attempt() {
        Some(done) => ControlFlow::Break(done),
        None => ControlFlow::Continue(()),
    };
    attempt_awake_with((), deadline, || {}, attempt).break_value()
}

/// As [`attempt_awake`], with a state that goes from one attempt to the next. `about_to_yield` is
/// called before a yield.
pub(crate) fn attempt_awake_with<S, R>(
    mut state: S,
    deadline: Deadline,
    about_to_yield: impl FnOnce(),
    mut attempt: impl FnMut(S) -> ControlFlow<R, S>,
) -> ControlFlow<R, S> {
    if LOOKS.with(Habit::is_due) {
        let looked = look_on(state, deadline, &mut attempt);
        LOOKS.with(|habit| habit.note(looked.is_break()));
        state = looked?;
    }
    if deadline.leaves(YIELD) && YIELDS.with(Habit::is_due) {
        about_to_yield();
        let since = Instant::now();
        std::thread::yield_now();
        let attempted = attempt(state);
        YIELDS.with(|habit| habit.note(attempted.is_break() && since.elapsed() < YIELD));
        state = attempted?;
    }
    ControlFlow::Continue(state)
}

fn look_on<S, R>(
    mut state: S,
    deadline: Deadline,
    mut attempt: impl FnMut(S) -> ControlFlow<R, S>,
) -> ControlFlow<R, S> {
    for _ in 0..APART {
        std::hint::spin_loop();
    }
    // Each pause is twice as long as the one before, up to about a microsecond.
    let pauses = Backoff::new();
    for _ in 0..UNTIMED {
        pauses.spin();
        state = attempt(state)?;
    }
    let end = Deadline::after(deadline.left(LOOKING));
    while !end.is_over() {
        pauses.spin();
        state = attempt(state)?;
    }
    ControlFlow::Continue(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_to_an_end() {
        let pauses = |mut looks: Looks| -> Vec<u32> {
            let next = || Some(looks.pauses).filter(|_| looks.go_on());
            std::iter::from_fn(next).take(1000).collect()
        };
        assert_eq!(pauses(Looks::new()), [8, 16, 32, 64, 64, 64, 64, 64, 64]);
        assert_eq!(pauses(Looks::steady()), [1; 100]);
    }

    /// Looking until the end of its time would be some more attempts, and a yield.
    #[test]
    fn nothing_is_tried_beyond_the_deadline() {
        let (mut attempts, mut yields) = (0, 0);
        let again = |()| {
            attempts += 1;
            ControlFlow::<(), ()>::Continue(())
        };
        let _ = attempt_awake_with((), Deadline::after(Duration::ZERO), || yields += 1, again);
        assert_eq!((attempts, yields), (UNTIMED, 0));
    }

    #[test]
    fn what_does_not_pay_is_left_out_more_and_more() {
        let habit = Habit::new();
        let tried = (0..5000).filter(|_| habit.is_due().then(|| habit.note(false)).is_some());
        // 1 + 2 + 4 + ... times it is skipped, then MOST times after each failure.
        assert_eq!(tried.count(), 14);
        while !habit.is_due() {}
        habit.note(true);
        assert!((0..100).all(|_| habit.is_due()));
        habit.note(false);
        assert_eq!([habit.is_due(), habit.is_due()], [false, true]);
    }
}
