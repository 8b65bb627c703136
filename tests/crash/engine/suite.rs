//! Running cases, and what the environment and the command line say about it.
//!
//! | variable | |
//! |---|---|
//! | `SHMKIT_CRASH=full` | second order from every image, many real kills, overtaken in every place, no budget |
//! | `SHMKIT_CRASH_BUDGET_MS` | how long a case may go on to new images of second order in a short run (3000); the middle image, and some points of its recovery, are tried in any case; a case is overtaken in points for as long, and between them for half as long |
//! | `SHMKIT_CRASH_CHECK=1` | step all, and compare the whole arena at every step |
//! | `SHMKIT_CRASH_SEED` | where real kills fall |
//! | `SHMKIT_CRASH_VERBOSE=1` | print the unexpected failures of deliberately broken cases too |
//! | `SHMKIT_CRASH_PART=I/N` | every N-th case only, from the I-th on; without it the cases are shared out to one process per processor |
//!
//! Arguments that are not flags select cases whose name contains one of them; `--list` names them all.

use std::io;
use std::process::{Command, ExitCode};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Arena;
use super::case::Case;
use super::child::{Child, Ended, Fork, Ticker, adopt_orphans, route_panics, sweep_all};
use super::explore::{ALWAYS_FOLLOWED, ENOUGH_FAILURES, explore_all, kill_at};
use super::overtake::overtake_at;
use super::pick::Pick;
use super::stepper::{Point, Way};

/// Real kills of a case at the most.
const MOST_KILLS: usize = 128;
/// And of the places in which it is overtaken: points, and others.
const MOST_OVERTAKINGS: usize = 1 << 14;
const MOST_BETWEEN: usize = 1 << 18;

/// How thorough a run is.
pub struct Settings {
    pub full: bool,
    pub cross_check: bool,
    pub verbose: bool,
    pub budget: Duration,
    seed: u64,
    real_kills: usize,
    /// For one process of a case. Only a setup that hangs gets there.
    limit: Duration,
}

impl Settings {
    fn from_env() -> Settings {
        let text = |name: &str| std::env::var(format!("SHMKIT_CRASH{name}")).unwrap_or_default();
        let number = |name: &str, default| text(name).parse().unwrap_or(default);
        let full = text("") == "full";
        Settings {
            full,
            cross_check: text("_CHECK") == "1",
            verbose: text("_VERBOSE") == "1",
            budget: Duration::from_millis(number("_BUDGET_MS", 3000)),
            seed: number("_SEED", 1),
            real_kills: if full { MOST_KILLS } else { 12 },
            limit: Duration::from_secs(if full { 24 * 3600 } else { 900 }),
        }
    }
}

impl Settings {
    /// Chooses where real kills are to fall.
    pub fn choose(&self, points: &[Point], places: &Places<MOST_KILLS>) {
        let mut random = Random(self.seed | 1);
        let chosen = (0..self.real_kills.min(points.len()))
            .map(|_| random.below(points.len() as u64) as usize)
            .map(|index| (index, points[index].way, points[index].finished));
        places.put(chosen);
    }
}

/// A counter that several processes share.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    // Relaxed: the processes that count are waited for before the counts are read.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a real kill is to fall, or a victim is to be overtaken: a point of first order, or behind it.
pub struct Place {
    pub point: Count,
    rip: Count,
    comings: Count,
    steps: Count,
    /// 1: the operation has returned there.
    pub finished: Count,
}

impl Place {
    fn set(&self, index: usize, way: Way, finished: bool) {
        self.point.add(index as u64);
        self.rip.add(way.rip);
        self.comings.add(way.comings);
        self.steps.add(way.steps);
        self.finished.add(u64::from(finished));
    }

    pub fn way(&self) -> Way {
        Way {
            rip: self.rip.get(),
            comings: self.comings.get(),
            steps: self.steps.get(),
        }
    }
}

/// Places that were chosen.
pub struct Places<const MOST: usize> {
    count: Count,
    places: [Place; MOST],
}

impl<const MOST: usize> Places<MOST> {
    /// Puts some there, each with the number of the point that it is, or comes after. If they are too many, the
    /// first ones.
    pub fn put(&self, chosen: impl Iterator<Item = (usize, Way, bool)>) {
        for (place, (index, way, finished)) in self.places.iter().zip(chosen) {
            place.set(index, way, finished);
            self.count.add(1);
        }
    }

    fn get(&self) -> &[Place] {
        &self.places[..self.count.get() as usize]
    }
}

/// What the processes of a case have counted and chosen. In memory that they share.
pub struct Tally {
    pub places: Places<MOST_KILLS>,
    /// In which the victim is overtaken: its points, and others.
    pub overtakings: Places<MOST_OVERTAKINGS>,
    pub between: Places<MOST_BETWEEN>,
    pub steps: Count,
    /// Of first order.
    points: Count,
    /// Of second order.
    second: Count,
    /// Images of first order from which recovery was followed.
    pub followed: Count,
    /// What these recoveries changed.
    pub changed: Count,
    pub killed: Count,
    /// Runs that did not come to the place of their kill.
    pub missed: Count,
    /// Places in which the victim was overtaken, its points after that, and runs that did not come there.
    pub overtaken: Count,
    pub after: Count,
    pub lost: Count,
    /// Overtakers that had to wait.
    pub waited: Count,
    pub failures: Count,
    /// Failures of the kind that a deliberately broken case expects.
    pub caught: Count,
}

impl Tally {
    pub fn point(&self, second: bool) {
        if second { &self.second } else { &self.points }.add(1);
    }
}

/// An owned [`Tally`] in a shared mapping.
struct SharedTally(NonNull<Tally>);

impl SharedTally {
    fn new() -> io::Result<SharedTally> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address the kernel chooses disturbs nothing.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Tally>(),
                protection,
                flags,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at.cast())
            .map(SharedTally)
            .ok_or_else(|| io::Error::other("mapped at null"))
    }

    fn get(&self) -> &Tally {
        // SAFETY: the mapping is zeroed, which is a `Tally` (of atomics), and lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedTally {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and `get` lends nothing beyond `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Tally>()) };
    }
}

/// What came of a case.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub steps: u64,
    /// Crash points of first order.
    pub points: u64,
    /// Crash points of second order.
    pub second: u64,
    pub failures: u64,
    /// Overtakers that had to wait for a victim.
    pub waited: u64,
}

/// Runs cases one after another and counts.
pub struct Suite {
    settings: Settings,
    pick: Pick,
    /// Which of the cases are this process's.
    part: Part,
    passed: usize,
    failed: usize,
    _ticker: Ticker,
}

/// Every `of`-th case, counted from `first`.
struct Part {
    first: usize,
    of: usize,
    seen: usize,
}

/// The variable that names a [`Part`].
const PART: &str = "SHMKIT_CRASH_PART";

impl Part {
    fn from_env() -> Part {
        let text = std::env::var(PART).unwrap_or_default();
        let numbers = text
            .split_once('/')
            .and_then(|(first, of)| Some((first.parse().ok()?, of.parse().ok()?)));
        let (first, of) = numbers.filter(|&(_, of)| of > 0).unwrap_or((0, 1));
        Part { first, of, seen: 0 }
    }

    /// Whether the next case is in it. What tests the engine compares its cases: they stay together.
    fn takes(&mut self, name: &str) -> bool {
        if name.starts_with("engine/") {
            return self.first == 0;
        }
        self.seen += 1;
        self.seen % self.of == self.first
    }
}

/// Runs this program once for each processor, each with a part of the cases; how they ended. `None` if
/// this process is to run them itself.
pub fn in_parts() -> Option<ExitCode> {
    let parts = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    if parts == 1 || Pick::from_args().list || std::env::var_os(PART).is_some() {
        return None;
    }
    let start = |part| {
        Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(PART, format!("{part}/{parts}"))
            .spawn()
    };
    let running: Vec<_> = (0..parts).map(start).collect();
    let mut all = true;
    for child in running {
        let ended = child.and_then(|mut child| child.wait());
        all &= ended.is_ok_and(|status| status.success());
    }
    Some(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Suite {
    pub fn from_env() -> Suite {
        route_panics();
        adopt_orphans();
        Suite {
            settings: Settings::from_env(),
            pick: Pick::from_args(),
            part: Part::from_env(),
            passed: 0,
            failed: 0,
            _ticker: Ticker::start(),
        }
    }

    /// Runs a case, unless the command line leaves it out.
    pub fn run<S: Arena>(&mut self, case: Case<S>) -> Option<Outcome> {
        if !self.pick.takes(&case.name) {
            return None;
        }
        if self.pick.list {
            println!("{}: test", case.name);
            return None;
        }
        if !self.part.takes(&case.name) {
            return None;
        }
        let began = Instant::now();
        let tally = SharedTally::new().expect("a page for the counts");
        let tally = tally.get();
        self.in_process(&case, tally, || explore_all(&case, &self.settings, tally));
        for place in tally.places.get() {
            for again in [false, true] {
                let missed = tally.missed.get();
                self.in_process(&case, tally, || {
                    kill_at(&case, &self.settings, tally, place, again)
                });
                if tally.missed.get() == missed {
                    break;
                }
            }
        }
        self.overtake(&case, tally);
        if let Some(lack) = lack(&case, tally) {
            tally.failures.add(1);
            println!("  FAIL {}: {lack}", case.name);
        }
        let passed = match case.expects {
            None => tally.failures.get() == 0,
            Some(_) => tally.caught.get() > 0,
        };
        self.count(passed);
        println!(
            "{} {:<40} steps {:>8}  points {:>6}  second {:>7} (from {})  killed {:>3} (missed {})  overtaken {:>3} of {} (after {}, lost {})  failures {}{}  {:.2} s",
            if passed { "ok  " } else { "FAIL" },
            case.name,
            tally.steps.get(),
            tally.points.get(),
            tally.second.get(),
            tally.followed.get(),
            tally.killed.get(),
            tally.missed.get(),
            tally.overtaken.get(),
            tally.overtakings.get().len() + tally.between.get().len(),
            tally.after.get(),
            tally.lost.get(),
            tally.failures.get(),
            match (&case.expects, passed) {
                (None, _) => "",
                (Some(_), true) => " (as expected)",
                (Some(_), false) => " (not the expected one)",
            },
            began.elapsed().as_secs_f64(),
        );
        Some(Outcome {
            steps: tally.steps.get(),
            points: tally.points.get(),
            second: tally.second.get(),
            failures: tally.failures.get(),
            waited: tally.waited.get(),
        })
    }

    /// Has the victim overtaken in the places chosen, while there is time.
    fn overtake<S: Arena>(&self, case: &Case<S>, tally: &Tally) {
        let hurried = case.hurried && !self.settings.full;
        let budget = self.settings.budget;
        let places = [
            (tally.overtakings.get(), budget),
            (tally.between.get(), budget / 2),
        ];
        for (places, budget) in places {
            let began = Instant::now();
            for place in places {
                let late = hurried && began.elapsed() > budget;
                if late && tally.overtaken.get() > 0 || tally.failures.get() >= ENOUGH_FAILURES {
                    break;
                }
                let waited = tally.waited.get();
                for is_killed in [false, true] {
                    self.in_process(case, tally, || {
                        overtake_at(case, &self.settings, tally, place, is_killed)
                    });
                    if tally.waited.get() == waited {
                        break;
                    }
                }
            }
        }
    }

    /// Runs a part of a case in a process of its own.
    fn in_process<S>(
        &self,
        case: &Case<S>,
        tally: &Tally,
        part: impl FnOnce() -> Result<(), String>,
    ) {
        let mut child = Child::fork(Fork::Library, part).expect("a process for the case");
        let ended = child.wait(self.settings.limit);
        if ended != Ended::Exit(0) {
            tally.failures.add(1);
            println!(
                "  FAIL {}: its process: {ended:?} {}",
                case.name,
                child.text()
            );
        }
        child.end();
        sweep_all();
    }

    /// Counts something else that was tested, if there was something to test.
    pub fn check(&mut self, name: &str, truth: Option<bool>) {
        if let Some(truth) = truth {
            println!("{} {name}", if truth { "ok  " } else { "FAIL" });
            self.count(truth);
        }
    }

    fn count(&mut self, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Prints the sum. The exit status is a failure if anything failed.
    pub fn finish(self) -> ExitCode {
        if !self.pick.list {
            println!("{} passed, {} failed", self.passed, self.failed);
        }
        ExitCode::from(u8::from(self.failed != 0))
    }
}

/// What a case that has found nothing wrong has not looked at either.
fn lack<S>(case: &Case<S>, tally: &Tally) -> Option<String> {
    if case.expects.is_some() || tally.failures.get() != 0 {
        return None;
    }
    let (points, least) = (tally.points.get(), case.least);
    if points < least {
        return Some(format!("{points} points, not {least}"));
    }
    let followed = tally.followed.get();
    let expected = points.min(ALWAYS_FOLLOWED as u64);
    if case.second_order && followed < expected {
        return Some(format!("recovery was followed from {followed} points"));
    }
    let (overtaken, lost) = (tally.overtaken.get(), tally.lost.get());
    if case.overtaker.is_some() && (overtaken == 0 || overtaken < lost) {
        return Some(format!("overtaken {overtaken} times, lost {lost}"));
    }
    if case.second_order && tally.changed.get() == 0 {
        return Some("no recovery changes anything".into());
    }
    None
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
