//! A process that is stopped in the middle of its operation, and overtaken by another.
//!
//! ```text
//!  runner (a process per place)                   victim                         overtaker
//!    setup, fork ------------------------------>  runs to the place, stops
//!    fork ------------------------------------------------------------------->   one operation, exits
//!    single step ------------------------------>  one instruction of the rest
//!    arena changed? a survivor on a copy             (stopped)
//! ```
//!
//! All of it happens on the arena itself: the victim's state is in its registers and its memory, so it must find the
//! arena as it left it, changed by nobody but the overtaker. The crashes that follow have the marks of both, so that
//! `verify` can require an order of their operations that explains the results.
//!
//! An overtaker that has to wait for the victim sleeps, if the case says that it may. Then the victim runs to its end,
//! both at once, and there is one survivor, at the end (if the case says that the overtaker only goes on, one before
//! and one at the end); and in another process the victim is killed, and the overtaker must finish without it.

use std::time::Instant;

use super::Arena;
use super::case::{Case, Crash, Overtaken};
use super::child::{Child, Ended, Fork, roam, sweep, sweep_all};
use super::explore::{Explorer, Halt, crash_at, describe};
use super::image::{Image, View};
use super::stepper::{Point, SLOWER, Stepper};
use super::suite::{Place, Settings, Tally};

/// Has the victim overtaken at one place, or killed there if the overtaker waits for it, in the calling process, which
/// must be a child for this purpose only.
pub fn overtake_at<S: Arena>(
    case: &Case<S>,
    settings: &Settings,
    tally: &Tally,
    place: &Place,
    is_killed: bool,
) -> Result<(), String> {
    let mut explorer = Explorer::new(case, settings, tally);
    // A halt has been counted and reported as a failure.
    let _ = explorer.overtake_at(place, is_killed);
    sweep_all();
    Ok(())
}

impl<S: Arena> Explorer<'_, S> {
    fn overtake_at(&mut self, place: &Place, is_killed: bool) -> Result<(), Halt> {
        let (stepper, view, mut image) = self.start(None, None)?;
        let Some((mut stepper, last)) = self.go_to(stepper, place, &image)? else {
            self.tally.lost.add(1);
            return Ok(());
        };
        self.stopped = Some(place.way());
        let stopped = crash_at(&last, place.point.get() as usize, stepper.pid(), None);
        let (overtaker, waits) = self.overtake(&stopped)?;
        if is_killed {
            return match waits {
                true => self.kill_awaited(stepper, overtaker, last, stopped),
                false => self.end(overtaker, &stopped, waits).map(drop),
            };
        }
        if waits {
            self.tally.waited.add(1);
            self.run_to_end(&mut stepper, &stopped)?;
        }
        let stopped = self.end(overtaker, &stopped, waits)?;
        self.tally.overtaken.add(1);
        self.look(&view, &mut image, &stopped)?;
        if !waits && self.case.only_goes_on {
            self.survive_at(&stepper, &image, &last, 0, stopped)?;
            self.run_to_end(&mut stepper, &stopped)?;
            self.look(&view, &mut image, &stopped)?;
        }
        self.follow_on(stepper, &view, image, last, stopped)
    }

    fn run_to_end(&mut self, stepper: &mut Stepper, stopped: &Crash) -> Result<(), Halt> {
        let ended = stepper.run_to_end(self.case.limit * SLOWER);
        ended.or_else(|text| self.report(&describe(stopped), &text))
    }

    /// Kills the victim for whom the overtaker waits.
    fn kill_awaited(
        &mut self,
        stepper: Stepper,
        overtaker: Child,
        last: Point,
        stopped: Crash,
    ) -> Result<(), Halt> {
        stepper.into_child().end();
        self.tally.killed.add(1);
        let killed = Crash {
            real: true,
            ..stopped
        };
        let here = self.end(overtaker, &killed, true)?;
        sweep();
        match self.survive(None, &here) {
            Ok(()) => Ok(()),
            Err(text) => self.fail(&here, &last, &text),
        }
    }

    /// A survivor for the victim as it is, and after each of its changes from here on.
    fn follow_on(
        &mut self,
        mut stepper: Stepper,
        view: &View,
        mut image: Image,
        last: Point,
        stopped: Crash,
    ) -> Result<(), Halt> {
        self.run_between_writes(&mut stepper);
        let mut index = 0;
        let mut next = Some(Point {
            progress: stepper.progress(),
            finished: stepper.finished(),
            ..last
        });
        while let Some(point) = next {
            self.survive_at(&stepper, &image, &point, index, stopped)?;
            index += 1;
            next = self.advance(&mut stepper, view, &mut image, index, Some(stopped))?;
        }
        Ok(())
    }

    fn survive_at(
        &mut self,
        stepper: &Stepper,
        image: &Image,
        point: &Point,
        index: usize,
        stopped: Crash,
    ) -> Result<(), Halt> {
        let here = Crash {
            progress: point.progress,
            finished: point.finished,
            ..crash_at(point, index, stepper.pid(), Some(stopped))
        };
        self.tally.after.add(1);
        let buried = here.victim;
        match self.survive(Some((image, buried)), &here) {
            Ok(()) => Ok(()),
            Err(text) => self.fail(&here, point, &text),
        }
    }

    fn look(&mut self, view: &View, image: &mut Image, stopped: &Crash) -> Result<(), Halt> {
        match view.scan(image) {
            Ok(_) => Ok(()),
            Err(error) => self.report(&describe(stopped), &error.to_string()),
        }
    }

    /// Starts the overtaker, and waits until it has ended; or until it waits, for whom but the victim, which may be so.
    fn overtake(&mut self, stopped: &Crash) -> Result<(Child, bool), Halt> {
        let Explorer { case, state, .. } = self;
        let overtaker = Child::fork(Fork::Bare, || {
            roam();
            (case.survivor)(state);
            let overtaker = case.overtaker.as_ref().ok_or("no overtaker")?;
            overtaker(state);
            Ok(())
        });
        let overtaker =
            overtaker.or_else(|error| self.report(&describe(stopped), &error.to_string()))?;
        let mut waits = false;
        if self.case.may_wait {
            let deadline = Instant::now() + self.case.limit;
            while !waits && !overtaker.has_ended() && Instant::now() < deadline {
                std::thread::yield_now();
                waits = overtaker.sleeps();
            }
        }
        Ok((overtaker, waits))
    }

    /// Waits for the overtaker; what the stop is then.
    fn end(&mut self, mut overtaker: Child, stopped: &Crash, at_once: bool) -> Result<Crash, Halt> {
        let ended = overtaker.wait(self.case.limit);
        let text = match ended {
            Ended::Exit(0) => {
                let overtaken = Overtaken {
                    mark: overtaker.progress(),
                    at: stopped.progress,
                    at_once,
                };
                return Ok(Crash {
                    overtaken: Some(overtaken),
                    ..*stopped
                });
            }
            Ended::Never => format!("the overtaker is held up {}", overtaker.place()),
            _ => format!("the overtaker: {ended:?} {}", overtaker.text()),
        };
        overtaker.end();
        sweep();
        self.report(&describe(stopped), &text)
    }
}
