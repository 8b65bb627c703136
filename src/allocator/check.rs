//! Checks everything that must hold of the allocator's words.
//!
//! While others work, only what holds at every instant is checked; at rest
//! ([`Depth::Quiescent`]), everything.

use std::fmt;

use serde::Serialize;

use super::guard;
use super::size_class::TABLE;
use super::slice::{self, State};
use crate::layout::arena::Arena;
use crate::participants::life;
use crate::primitive::Ordering;

/// How much may be assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Others may be at work.
    Live,
    /// Nobody is at work.
    Quiescent,
}

/// What a check found.
///
/// ```
/// use shmkit::Pool;
///
/// let pool = Pool::builder().create()?;
/// let _object = pool.create(7_u32)?;
/// let report = pool.check();
/// assert_eq!(report.objects, 1);
/// assert!(report.problems.is_empty(), "{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What is wrong, one line each; at most the first hundred.
    pub problems: Vec<String>,
    /// Slices looked at.
    pub slices: usize,
    /// Spans looked at.
    pub spans: usize,
    /// Runs looked at.
    pub runs: usize,
    /// Objects looked at.
    pub objects: usize,
}

impl CheckReport {
    /// True if nothing is wrong.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let mut report = pool.check();
    /// assert!(report.is_ok());
    /// report.problems.push("the user's own invariant does not hold".into());
    /// assert!(!report.is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn problem(&mut self, what: fmt::Arguments<'_>) {
        if self.problems.len() < 100 {
            self.problems.push(what.to_string());
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} slices, {} spans, {} runs, {} objects: ",
            self.slices, self.spans, self.runs, self.objects
        )?;
        match self.problems.as_slice() {
            [] => write!(f, "ok"),
            some => write!(f, "{} problems\n{}", some.len(), some.join("\n")),
        }
    }
}

/// Checks tags, spans and runs.
pub(crate) fn check(arena: Arena, depth: Depth, report: &mut CheckReport) {
    let end = arena.slices();
    report.slices = end;
    let mut index = 0;
    while index < end {
        index += check_at(arena, depth, index, end, report);
    }
    if depth == Depth::Quiescent && guard::is_on(arena) {
        guard::check(arena, report);
    }
}

/// Checks what starts at a slice; returns how many slices that is.
fn check_at(
    arena: Arena,
    depth: Depth,
    index: usize,
    end: usize,
    report: &mut CheckReport,
) -> usize {
    let quiet = depth == Depth::Quiescent;
    let tag = arena.tag(index).load(Ordering::Acquire);
    match slice::state(tag) {
        State::Free { .. } => 1,
        State::Claimed { owner, .. } => {
            if quiet {
                report.problem(format_args!(
                    "slice {index} is claimed by {owner:?} at rest"
                ));
            }
            1
        }
        State::Garbage => {
            report.problem(format_args!("slice {index} has the tag {tag:#x}"));
            1
        }
        State::Tail { back } => {
            if quiet {
                report.problem(format_args!("slice {index} is a tail, {back} from nothing"));
            }
            1
        }
        State::Kept { slices } => check_extent(arena, quiet, index, slices, end, report),
        State::Run { slices } => {
            report.runs += 1;
            check_extent(arena, quiet, index, slices, end, report)
        }
        State::Span { owner } => {
            report.spans += 1;
            let slices = arena.span(index).slices.load(Ordering::Relaxed) as usize;
            if quiet && !owner.is_nobody() && life::is_gone_at_rest(arena, owner) {
                report.problem(format_args!(
                    "span {index} belongs to {owner:?}, who is gone"
                ));
            }
            if quiet && owner.is_nobody() && arena.span(index).is_empty(arena) {
                report.problem(format_args!("span {index} is nobody's and empty"));
            }
            check_bitmaps(arena, quiet, index, report);
            check_extent(arena, quiet, index, slices, end, report)
        }
    }
}

fn check_extent(
    arena: Arena,
    quiet: bool,
    index: usize,
    slices: usize,
    end: usize,
    report: &mut CheckReport,
) -> usize {
    if slices == 0 || slices > end - index {
        if quiet {
            report.problem(format_args!(
                "slice {index} heads {slices} slices of {}",
                end - index
            ));
        }
        return 1;
    }
    if quiet {
        for back in 1..slices {
            let tag = arena.tag(index + back).load(Ordering::Acquire);
            if tag != slice::tail_tag(back) {
                report.problem(format_args!(
                    "slice {} is {tag:#x}, no tail of {index}",
                    index + back
                ));
            }
        }
        slices
    } else {
        // It may be changing: the slice that follows is looked at by itself.
        1
    }
}

fn check_bitmaps(arena: Arena, quiet: bool, index: usize, report: &mut CheckReport) {
    let span = arena.span(index);
    let class = span.class.load(Ordering::Relaxed) as usize;
    let size = span.size.load(Ordering::Relaxed);
    if class >= TABLE.len() || (quiet && TABLE[class].size != size) {
        report.problem(format_args!(
            "span {index} has class {class} and blocks of {size} bytes"
        ));
        return;
    }
    if span.inverse.load(Ordering::Relaxed) != TABLE[class].inverse && quiet {
        report.problem(format_args!("span {index} divides by another size"));
    }
    for word in 0..super::span::WORDS {
        let beyond = !span.all(word);
        let freed = span.sets().freed(word).load(Ordering::Acquire);
        let remote = span.sets().remote(word).load(Ordering::Acquire);
        if quiet && (freed | remote) & beyond != 0 {
            report.problem(format_args!(
                "span {index} has blocks beyond its last in word {word}"
            ));
        }
        if quiet && freed & remote != 0 {
            report.problem(format_args!(
                "span {index} has blocks freed twice in word {word}"
            ));
        }
    }
}
