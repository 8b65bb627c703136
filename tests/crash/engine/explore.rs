//! First- and second-order crashes: follows an operation or a recovery from change to change, with a survivor at each.
//!
//! [`Explorer::explore`] is recursive over images. On the arena it follows the operation; on an image it follows the
//! recovery. Each point is tried at once by a survivor on a copy. The path is kept as differences ([`Trail`]), from
//! which the images to continue from are made again when their turn comes. The victims of a path stay zombies until the
//! path has been explored, so that their pids are not reused.

use std::time::Instant;

use super::Arena;
use super::case::{Case, Crash, Victim};
use super::child::{
    Child, Ended, Fork, Ticker, adopt_orphans, keep_children, roam, stay_here, sweep, sweep_all,
};
use super::decode::Decoder;
use super::image::{Image, View, seals_of, take_over};
use super::stepper::{Point, SLOWER, Scene, Stepper, Way, name_of, perform};
use super::suite::{Place, Settings, Tally};

/// Recoveries of recoveries of the operation are not crashed again.
const LAST_ORDER: u8 = 2;
/// Recovery is followed from so many points of the operation whatever the time.
pub const ALWAYS_FOLLOWED: usize = 1;
/// So many points come first: the middle, the last and the first change.
const EARLY: usize = 3;
/// Of the points of a recovery one of so many is tried when the time is over.
const ONE_OF: usize = 16;
/// After so many failures a case is given up.
pub const ENOUGH_FAILURES: u64 = 5;

/// The points of one run, and the image it started from.
struct Trail {
    start: Image,
    points: Vec<Point>,
    /// Between two points where nothing changes: the number of the first, and the way.
    between: Vec<(usize, Way)>,
    /// Kept unreaped, see the module.
    victim: Child,
}

impl Trail {
    fn image_at(&self, point: usize) -> Image {
        let mut image = self.start.clone();
        for point in &self.points[..=point] {
            image.apply(&point.delta);
        }
        image
    }
}

impl Trail {
    /// Of the places between points those where something is left to be told.
    fn before_the_last_mark(&self) -> &[(usize, Way)] {
        let last = self.points.last().map_or(0, |point| point.progress);
        let told = self.points.iter().position(|point| point.progress == last);
        let told = told.filter(|_| last != 0).unwrap_or(self.points.len());
        let count = self.between.partition_point(|&(index, _)| index < told);
        &self.between[..count]
    }
}

/// Why an exploration stopped early; the failure is reported already.
pub(super) struct Halt;

/// The process that explores one case.
pub struct Explorer<'a, S> {
    pub(super) case: &'a Case<S>,
    settings: &'a Settings,
    pub(super) tally: &'a Tally,
    pub(super) state: S,
    decoder: Decoder,
    seals: i32,
    began: Instant,
    /// Where the victim was stopped to be overtaken.
    pub(super) stopped: Option<Way>,
    _ticker: Ticker,
}

/// Everything but the real kills, in the calling process, which must be a child for this purpose only.
pub fn explore_all<S: Arena>(
    case: &Case<S>,
    settings: &Settings,
    tally: &Tally,
) -> Result<(), String> {
    let mut explorer = Explorer::new(case, settings, tally);
    // A halt has been counted and reported as a failure.
    let _ = explorer.explore(None, None, 1);
    sweep_all();
    Ok(())
}

/// One real kill, at one of the places that were chosen, in the calling process, which must be a child for this
/// purpose only. `again` after a run that did not come to the place.
pub fn kill_at<S: Arena>(
    case: &Case<S>,
    settings: &Settings,
    tally: &Tally,
    place: &Place,
    again: bool,
) -> Result<(), String> {
    let mut explorer = Explorer::new(case, settings, tally);
    if again {
        let _ = explorer.step_and_kill(place.point.get() as usize);
    } else if let Ok(true) = explorer.kill_at(place) {
        tally.missed.add(1);
    }
    sweep_all();
    Ok(())
}

impl<'a, S: Arena> Explorer<'a, S> {
    pub(super) fn new(case: &'a Case<S>, settings: &'a Settings, tally: &'a Tally) -> Self {
        adopt_orphans();
        let state = (case.setup)();
        keep_children();
        stay_here();
        let seals = seals_of(state.fd());
        let began = Instant::now();
        Explorer {
            case,
            settings,
            tally,
            state,
            decoder: Decoder::new(),
            seals,
            began,
            stopped: None,
            _ticker: Ticker::start(),
        }
    }

    /// Follows the operation (or, from a `ground`, the recovery of it after `crash`), then goes on from its points.
    fn explore(
        &mut self,
        ground: Option<&Image>,
        crash: Option<Crash>,
        order: u8,
    ) -> Result<(), Halt> {
        let trail = self.follow(ground, crash)?;
        if order == 1 && self.case.real_kills {
            self.settings.choose(&trail.points, &self.tally.places);
        }
        if order == 1 && self.case.overtaker.is_some() {
            let at = |index: usize| {
                let point = &trail.points[index];
                (index, point.way, point.finished)
            };
            let order = |count| match self.case.soon {
                true => (0..count).collect(),
                false => spread(count),
            };
            let points = order(trail.points.len()).into_iter();
            self.tally.overtakings.put(points.map(at));
            let between = trail.before_the_last_mark();
            let after = |&(index, way): &(usize, Way)| (index, way, false);
            // Right before a change first: all that it follows from has been read.
            let is_last = |pair: &[(usize, Way)]| pair[0].0 != pair[1].0;
            let last = between.windows(2).filter(|pair| is_last(pair));
            let last: Vec<_> = last.map(|pair| &pair[0]).collect();
            let first = order(last.len()).into_iter().map(|index| last[index]);
            let others = spread(between.len())
                .into_iter()
                .map(|index| &between[index]);
            self.tally.between.put(first.chain(others).map(after));
        }
        let changes = |point: &Point| point.delta.first_offset().is_some();
        if order != 1 {
            let count = trail.points.iter().filter(|&point| changes(point)).count();
            self.tally.changed.add(count as u64);
        } else if !trail.points.iter().any(changes) {
            // A case that tests nothing is a mistake in the case.
            return self.report(
                &describe(&NOWHERE),
                "the operation changes nothing in the arena",
            );
        }
        if order == LAST_ORDER || !self.case.second_order {
            return Ok(());
        }
        let count = trail.points.len();
        for (before, index) in spread(count).into_iter().enumerate() {
            if before >= ALWAYS_FOLLOWED && self.is_late() {
                break;
            }
            let crash = crash_at(&trail.points[index], index, trail.victim.pid(), crash);
            self.explore(Some(&trail.image_at(index)), Some(crash), order + 1)?;
            self.tally.followed.add(1);
        }
        Ok(())
    }

    /// Steps one victim from start to end, with a survivor at each point.
    fn follow(&mut self, ground: Option<&Image>, crash: Option<Crash>) -> Result<Trail, Halt> {
        let (mut stepper, view, mut image) = self.start(ground, crash)?;
        let start = image.clone();
        if crash.is_none() && self.case.overtaker.is_some() {
            stepper.trace = Some(Vec::new());
        }
        if crash.is_some() {
            self.run_between_writes(&mut stepper);
        }
        let (mut points, mut between) = (Vec::new(), Vec::new());
        let mut next = Some(Point {
            way: Way::default(),
            progress: crash.map_or(0, |crash| crash.progress),
            finished: false,
            delta: image.same(),
        });
        while let Some(point) = next {
            let here = crash_at(&point, points.len(), stepper.pid(), crash);
            if crash.is_none_or(|crash| self.is_due(&point, points.len(), &crash)) {
                self.tally.point(ground.is_some());
                let buried = Victim {
                    pid: stepper.pid(),
                    recovered: crash.is_some(),
                };
                if let Err(text) = self.survive(Some((&image, buried)), &here) {
                    self.fail(&here, &point, &text)?;
                }
            }
            points.push(point);
            next = self.advance(&mut stepper, &view, &mut image, points.len(), crash)?;
            let changed = next.as_ref().map(|point| point.way);
            for way in stepper.trace.iter_mut().flat_map(|trace| trace.drain(..)) {
                if Some(way) != changed {
                    between.push((points.len() - 1, way));
                }
            }
        }
        let victim = stepper.into_child();
        victim.kill();
        sweep();
        Ok(Trail {
            start,
            points,
            between,
            victim,
        })
    }

    /// For a victim whose points alone are asked for.
    pub(super) fn run_between_writes(&self, stepper: &mut Stepper) {
        if !self.is_cross_checked() {
            stepper.run_between_writes();
        }
    }

    fn is_cross_checked(&self) -> bool {
        self.case.cross_check || self.settings.cross_check
    }

    /// Whether the time of a short run is over.
    fn is_late(&self) -> bool {
        let hurried = self.case.hurried && !self.settings.full;
        hurried && self.began.elapsed() > self.settings.budget
    }

    /// Whether a point of the recovery after `crash` is tried: each of them in time; then the first change, the end, and
    /// one of so many between, other ones after other crashes.
    fn is_due(&self, point: &Point, index: usize, crash: &Crash) -> bool {
        index == 1
            || point.finished
            || (index + crash.point).is_multiple_of(ONE_OF)
            || !self.is_late()
    }

    /// Forks the victim onto the arena, or onto `ground`, and takes hold of it before its first instruction.
    pub(super) fn start(
        &mut self,
        ground: Option<&Image>,
        crash: Option<Crash>,
    ) -> Result<(Stepper, View, Image), Halt> {
        let started = self.try_start(ground, crash);
        started.or_else(|text| {
            let crash = crash.unwrap_or(NOWHERE);
            self.report(
                &describe(&crash),
                &format!("the victim did not start: {text}"),
            )
        })
    }

    fn try_start(
        &mut self,
        ground: Option<&Image>,
        crash: Option<Crash>,
    ) -> Result<(Stepper, View, Image), String> {
        let Explorer {
            case, state, seals, ..
        } = self;
        let memfd = ground
            .map(|image| image.to_memfd(*seals))
            .transpose()
            .map_err(|error| error.to_string())?;
        let view = match &memfd {
            None => View::of_arena(state),
            Some(memfd) => View::of_image(memfd, state.mapped_len()),
        };
        let view = view.map_err(|error| error.to_string())?;
        let how = if ground.is_some() {
            Fork::Bare
        } else {
            case.fork
        };
        let child = Child::fork(how, || match (&memfd, crash) {
            (Some(memfd), Some(crash)) => {
                take_over(state, memfd).map_err(|error| error.to_string())?;
                (case.bury)(state, &crash.victim);
                (case.survivor)(state);
                perform(|| (case.recover)(state))
            }
            _ => {
                (case.attach)(state);
                perform(|| {
                    (case.operation)(state);
                    Ok(())
                })
            }
        });
        let stepper = Stepper::new(child.map_err(|error| error.to_string())?, case.limit)?;
        let mut image = Image::default();
        view.scan(&mut image).map_err(|error| error.to_string())?;
        Ok((stepper, view, image))
    }

    pub(super) fn advance(
        &mut self,
        stepper: &mut Stepper,
        view: &View,
        image: &mut Image,
        index: usize,
        crash: Option<Crash>,
    ) -> Result<Option<Point>, Halt> {
        let base = self.state.base() as u64;
        let scene = Scene {
            arena: base..base + self.state.mapped_len() as u64,
            view,
            limit: self.case.limit,
            cross_check: self.is_cross_checked(),
        };
        let before = stepper.steps;
        let next = stepper.advance(&scene, &mut self.decoder, image);
        self.tally.steps.add(stepper.steps - before);
        next.or_else(|text| {
            let here = crash.map_or(
                Crash {
                    point: index,
                    ..NOWHERE
                },
                |crash| Crash {
                    later: Some(index),
                    ..crash
                },
            );
            self.report(
                &describe(&here),
                &format!("after {} steps: {text}", stepper.steps),
            )
        })
    }

    /// A real kill at a point that [`explore_all`] has come to; the survivor works on the arena itself.
    /// True if the victim did not come there, and has not been killed.
    fn kill_at(&mut self, place: &Place) -> Result<bool, Halt> {
        let (stepper, _, image) = self.start(None, None)?;
        let Some((stepper, last)) = self.go_to(stepper, place, &image)? else {
            return Ok(true);
        };
        self.kill_here(stepper, &last, place.point.get() as usize)?;
        Ok(false)
    }

    /// Lets a victim run to a place. `None` if it did not come there.
    pub(super) fn go_to(
        &mut self,
        mut stepper: Stepper,
        place: &Place,
        image: &Image,
    ) -> Result<Option<(Stepper, Point)>, Halt> {
        let way = place.way();
        let reached = stepper.run_to(way, self.case.limit * SLOWER);
        let reached = reached.or_else(|text| {
            let here = Crash {
                point: place.point.get() as usize,
                ..NOWHERE
            };
            self.report(&describe(&here), &format!("on the way there: {text}"))
        })?;
        if !reached && place.finished.get() == 0 {
            return Ok(None);
        }
        let last = Point {
            way,
            progress: stepper.progress(),
            finished: stepper.finished(),
            delta: image.same(),
        };
        Ok(Some((stepper, last)))
    }

    /// As [`kill_at`](Self::kill_at), at the point with that number of this run: for an operation that takes another way each time.
    fn step_and_kill(&mut self, index: usize) -> Result<(), Halt> {
        let (mut stepper, view, mut image) = self.start(None, None)?;
        self.run_between_writes(&mut stepper);
        let mut last = Point {
            way: Way::default(),
            progress: 0,
            finished: false,
            delta: image.same(),
        };
        let mut reached = 0;
        while reached < index {
            match self.advance(&mut stepper, &view, &mut image, reached, None)? {
                Some(point) => last = point,
                None => break,
            }
            reached += 1;
        }
        self.kill_here(stepper, &last, reached)
    }

    fn kill_here(&mut self, stepper: Stepper, last: &Point, index: usize) -> Result<(), Halt> {
        let here = Crash {
            real: true,
            ..crash_at(last, index, stepper.pid(), None)
        };
        stepper.into_child().end();
        sweep();
        self.tally.killed.add(1);
        match self.survive(None, &here) {
            Ok(()) => Ok(()),
            Err(text) => self.fail(&here, last, &text),
        }
    }

    /// Forks a survivor, on a copy of the image with the victim to bury or on the arena itself, and hears its verdict.
    pub(super) fn survive(
        &mut self,
        copy: Option<(&Image, Victim)>,
        crash: &Crash,
    ) -> Result<(), String> {
        let Explorer {
            case, state, seals, ..
        } = self;
        let memfd = copy
            .map(|(image, _)| image.to_memfd(*seals))
            .transpose()
            .map_err(|error| error.to_string())?;
        let child = Child::fork(Fork::Bare, || {
            roam();
            if let (Some(memfd), Some((_, victim))) = (&memfd, copy) {
                take_over(state, memfd).map_err(|error| error.to_string())?;
                (case.bury)(state, &victim);
            }
            (case.survivor)(state);
            (case.recover)(state).map_err(|text| format!("recovery: {text}"))?;
            (case.verify)(state, crash)
        });
        let mut child = child.map_err(|error| error.to_string())?;
        let ended = child.wait(case.limit);
        let verdict = match ended {
            Ended::Exit(0) => Ok(()),
            Ended::Exit(_) => Err(child.text()),
            Ended::Signal(signal) => Err(format!(
                "the survivor was ended by signal {signal} {}",
                child.text()
            )),
            Ended::Stop(_) | Ended::Never => Err(format!("the survivor hangs {}", child.place())),
        };
        child.end();
        sweep();
        verdict
    }

    pub(super) fn fail(&mut self, crash: &Crash, point: &Point, text: &str) -> Result<(), Halt> {
        let mut place = describe(crash);
        if let Some(offset) = point.delta.first_offset() {
            place += &format!(", after the write at +{offset:#x}");
        }
        let seen = self.failure(&place, text, || {
            if point.way.rip == 0 {
                String::new()
            } else {
                name_of(point.way.rip)
            }
        });
        if seen < ENOUGH_FAILURES {
            Ok(())
        } else {
            Err(Halt)
        }
    }

    /// A failure that ends the exploration.
    pub(super) fn report<T>(&mut self, place: &str, text: &str) -> Result<T, Halt> {
        self.failure(place, text, String::new);
        Err(Halt)
    }

    fn failure(&mut self, place: &str, text: &str, code: impl Fn() -> String) -> u64 {
        let line = format!("{}: {place}: {text}", self.case.name);
        match &self.case.expects {
            Some(texts) if texts.iter().all(|text| line.contains(text)) => self.tally.caught.add(1),
            Some(_) if !self.settings.verbose => {}
            _ => {
                println!("  FAIL {line}\n       {}", code());
                if let Some(way) = self.stopped {
                    println!("       overtaken behind {}", name_of(way.rip));
                }
            }
        }
        self.tally.failures.add(1);
        self.tally.failures.get()
    }
}

pub(super) const NOWHERE: Crash = Crash {
    point: 0,
    later: None,
    progress: 0,
    finished: false,
    real: false,
    overtaken: None,
    victim: Victim {
        pid: 0,
        recovered: false,
    },
};

/// The crash at a point of the operation, or of the recovery from `earlier`.
pub(super) fn crash_at(point: &Point, index: usize, pid: i32, earlier: Option<Crash>) -> Crash {
    match earlier {
        Some(crash) => Crash {
            later: Some(index),
            ..crash
        },
        None => Crash {
            point: index,
            progress: point.progress,
            finished: point.finished,
            victim: Victim {
                pid,
                ..NOWHERE.victim
            },
            ..NOWHERE
        },
    }
}

pub(super) fn describe(crash: &Crash) -> String {
    let order = match (crash.real, crash.later) {
        (true, _) => "real kill at".to_owned(),
        (_, None) => "order 1,".to_owned(),
        (_, Some(point)) if crash.overtaken.is_some() => {
            format!("overtaken, point {point} after it was stopped after")
        }
        (_, Some(point)) => format!("order 2, point {point} of the recovery from"),
    };
    let finished = if crash.finished { ", finished" } else { "" };
    format!(
        "{order} point {} (progress {}{finished})",
        crash.point, crash.progress
    )
}

/// The numbers below `count`, if it is not 0: one in the middle, the last and that of the first change, then the others
/// so that each beginning is spread over the whole.
fn spread(count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut stride = (count * 618 / 1000).max(1);
    while gcd(stride, count) != 1 {
        stride += 1;
    }
    let mut all = vec![count / 2];
    let others = [count - 1, 1.min(count - 1)].into_iter();
    for index in others.chain((0..count).map(|step| step * stride % count)) {
        // What is visited out of turn is among the first.
        if !all.iter().take(EARLY).any(|&early| early == index) {
            all.push(index);
        }
    }
    all
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
