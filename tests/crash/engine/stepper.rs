//! A victim under ptrace: run from its first stop to its last, one instruction at a time; each change of the arena is
//! reported.
//!
//! The victim is forked, brings itself into position, asks to be traced and stops itself (SIGSTOP); runs its body;
//! stops itself again. Everything between the stops is stepped. Each step yields at most one [`Point`]: the arena, or
//! the mark that the victim gave to `progress`, differs from what it was before that instruction. Nothing between two
//! points is left out, because only one instruction lies between two looks, and [`super::decode`] errs towards looking.
//!
//! Other threads and children of the victim are not traced: what they do to the arena is seen with the victim's
//! next write, at no particular granularity.
//!
//! A victim that is to be killed at a point to which another victim was stepped runs there ([`Way`]), stopped by the
//! processor each time it comes to the point's instruction: compared with stepping that costs nothing. Where only the
//! points matter and not the way to them, a victim runs to the next write, see [`super::shutter`].
//!
//! A victim dies with its tracer (`PTRACE_O_EXITKILL`).

use std::collections::HashMap;
use std::io;
use std::mem::offset_of;
use std::ops::Range;
use std::ptr;
use std::time::{Duration, Instant};

use libc::user_regs_struct as Regs;

use super::child::{Child, Ended};
use super::decode::{Decoder, Effect};
use super::image::{Delta, Image, View};
use super::shutter::Shutter;

/// How much longer a loop, or a whole run, may take than the limit for one system call.
pub const SLOWER: u32 = 5;
/// So often, in steps, the time is looked at.
const LOOK_AT_CLOCK: u64 = 4096;

/// A moment at which a kill leaves memory in a state of its own.
#[derive(Clone)]
pub struct Point {
    /// The instruction that made the change, and how it is come to.
    pub way: Way,
    /// The last mark given to `progress`.
    pub progress: u64,
    /// The body has returned.
    pub finished: bool,
    /// What changed since the point before.
    pub delta: Delta,
}

/// The way to a point, for a victim that runs and is not stepped.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// The instruction. 0 for the start.
    pub rip: u64,
    /// How often it is come to from another one.
    pub comings: u64,
    /// The steps taken in it then: a string instruction takes one for each of its parts.
    pub steps: u64,
}

/// What is to be stepped, and what is to be looked at meanwhile.
pub struct Scene<'a> {
    /// The arena's addresses in the victim.
    pub arena: Range<u64>,
    /// The harness's eye on the same memory.
    pub view: &'a View,
    /// How long one step may take (a system call that waits for what will never come), and how long, times
    /// [`SLOWER`], it may be from point to point (a loop that waits for it).
    pub limit: Duration,
    /// Compare everything at every step, and call a change that was not foretold an error.
    pub cross_check: bool,
}

/// A stopped victim.
pub struct Stepper {
    pub(super) child: Child,
    pub(super) regs: Regs,
    /// To be delivered with the next step.
    pub(super) signal: i32,
    progress: u64,
    finished: bool,
    pub steps: u64,
    /// How often each instruction was come to, and the way to the one stepped last.
    comings: HashMap<u64, u64>,
    way: Way,
    ranges: Vec<(u64, u64)>,
    /// The way to each instruction that was stepped, if somebody wants it.
    pub trace: Option<Vec<Way>>,
    /// For a victim that runs from write to write: the ways to its points are none.
    pub(super) shutter: Option<Shutter>,
}

/// The victim's side: runs `body` between two stops. The tracer never lets it get past the second.
pub fn perform(body: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    // SAFETY: PTRACE_TRACEME uses no other argument; raise has no preconditions.
    unsafe {
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
            return Err(format!("PTRACE_TRACEME: {}", io::Error::last_os_error()));
        }
        libc::raise(libc::SIGSTOP);
    }
    body()?;
    // SAFETY: raise has no preconditions.
    unsafe { libc::raise(libc::SIGSTOP) };
    Ok(())
}

pub(super) fn failed(what: &str) -> String {
    format!("{what}: {}", io::Error::last_os_error())
}

pub(super) fn ended_early(child: &Child, ended: Ended) -> String {
    let text = child.text();
    match ended {
        Ended::Never => format!("the victim hangs {}", child.place()),
        _ if text.is_empty() => format!("the victim ended before its time: {ended:?}"),
        _ => format!("the victim ended before its time: {text}"),
    }
}

impl Stepper {
    /// Takes hold of a child that runs [`perform`], at its first stop.
    pub fn new(mut child: Child, limit: Duration) -> Result<Stepper, String> {
        match child.wait(limit) {
            Ended::Stop(libc::SIGSTOP) => {}
            other => return Err(ended_early(&child, other)),
        }
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        // SAFETY: the child is our stopped tracee; PTRACE_SETOPTIONS takes its options as a number.
        if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child.pid(), 0, options) } == -1 {
            return Err(failed("PTRACE_SETOPTIONS"));
        }
        let regs = registers(child.pid())?;
        let progress = child.progress();
        Ok(Stepper {
            child,
            regs,
            signal: 0,
            progress,
            finished: false,
            steps: 0,
            comings: HashMap::new(),
            way: Way::default(),
            ranges: Vec::new(),
            trace: None,
            shutter: None,
        })
    }

    /// Has it run from write to write from here on.
    pub fn run_between_writes(&mut self) {
        self.shutter = Some(Shutter::new());
    }

    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// The last mark that the victim gave to `progress`.
    pub fn progress(&self) -> u64 {
        self.child.progress()
    }

    /// Whether the body has returned.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// The child, still stopped where it is.
    pub fn into_child(self) -> Child {
        self.child
    }

    /// Steps to the next point and brings `image` up to it. The point after the last instruction has `finished` set;
    /// after that there is none.
    pub fn advance(
        &mut self,
        scene: &Scene<'_>,
        decoder: &mut Decoder,
        image: &mut Image,
    ) -> Result<Option<Point>, String> {
        let began = Instant::now();
        while !self.finished {
            self.run_to_write(scene)?;
            let before = self.regs;
            if self.steps.is_multiple_of(LOOK_AT_CLOCK) && began.elapsed() > scene.limit * SLOWER {
                return Err(format!(
                    "the victim loops without changing anything, at {}",
                    name_of(before.rip)
                ));
            }
            self.note_way();
            let effect = decoder.effect(self.child.pid(), &before, &mut self.ranges);
            let unknown = matches!(effect, Effect::Anything);
            let whole = self.step(scene.limit)? || unknown;
            if let Effect::String { from, size } = effect {
                let to = self.regs.rdi;
                self.ranges
                    .push((from.min(to), from.abs_diff(to).max(size)));
            }
            let told = if whole {
                scene.view.scan(image)
            } else {
                self.look(scene, image)
            };
            if let Some(shutter) = &mut self.shutter {
                shutter.note(whole || !self.ranges.is_empty(), unknown);
            }
            let mut delta = told.map_err(|error| format!("reading the arena: {error}"))?;
            if scene.cross_check && !whole {
                let missed = scene
                    .view
                    .scan(image)
                    .map_err(|error| format!("reading the arena: {error}"))?;
                if let Some(missed) = missed.as_ref().and_then(Delta::first_offset) {
                    return Err(format!(
                        "the decoder missed the write at {:#x} by {:#x}",
                        missed, before.rip
                    ));
                }
                delta = delta.or(missed);
            }
            let progress = self.child.progress();
            if delta.is_some() || progress != self.progress || self.finished {
                self.progress = progress;
                let delta = delta.unwrap_or_else(|| image.same());
                return Ok(Some(Point {
                    way: self.way,
                    progress,
                    finished: self.finished,
                    delta,
                }));
            }
        }
        Ok(None)
    }

    /// Notes that the instruction at which the victim stands is stepped next.
    fn note_way(&mut self) {
        let rip = self.regs.rip;
        if rip == self.way.rip {
            self.way.steps += 1;
        } else {
            let comings = self.comings.entry(rip).or_default();
            *comings += 1;
            self.way = Way {
                rip,
                comings: *comings,
                steps: 1,
            };
        }
        if let Some(trace) = &mut self.trace {
            trace.push(self.way);
        }
    }

    /// Lets the victim run to a point that another one was stepped to. False if it did not come there, and
    /// has finished.
    pub fn run_to(&mut self, way: Way, limit: Duration) -> Result<bool, String> {
        self.break_at(Some(way.rip))?;
        for _ in 0..way.comings {
            if !self.run_to_break(way.rip, limit)? {
                return Ok(false);
            }
        }
        self.break_at(None)?;
        for _ in 0..way.steps {
            if !self.finished {
                self.step(limit)?;
            }
        }
        Ok(true)
    }

    /// Lets the victim run to the end of the body.
    pub fn run_to_end(&mut self, limit: Duration) -> Result<(), String> {
        while !self.finished {
            self.resume(libc::PTRACE_CONT, limit)?;
        }
        Ok(())
    }

    /// Has the processor stop the victim, and none that it forks, before that instruction.
    fn break_at(&self, rip: Option<u64>) -> Result<(), String> {
        /// Of the debug register 7: the first breakpoint is on, and is one of execution.
        const ON: u64 = 1;
        for (register, value) in [
            (7, 0),
            (0, rip.unwrap_or(0)),
            (7, u64::from(rip.is_some()) * ON),
        ] {
            let offset = offset_of!(libc::user, u_debugreg) + size_of::<u64>() * register;
            // SAFETY: the child is our stopped tracee; the offset is that of a register, the data its value.
            let set =
                unsafe { libc::ptrace(libc::PTRACE_POKEUSER, self.child.pid(), offset, value) };
            if set == -1 {
                return Err(failed("PTRACE_POKEUSER of a breakpoint"));
            }
        }
        Ok(())
    }

    /// False if the victim has finished before.
    fn run_to_break(&mut self, rip: u64, limit: Duration) -> Result<bool, String> {
        loop {
            self.resume(libc::PTRACE_CONT, limit)?;
            if self.finished || self.signal == 0 && self.regs.rip == rip {
                return Ok(!self.finished);
            }
        }
    }

    /// Compares those of the foretold ranges that are in the arena.
    fn look(&mut self, scene: &Scene<'_>, image: &mut Image) -> io::Result<Option<Delta>> {
        let Range { start, end } = scene.arena;
        self.ranges.retain_mut(|(address, length)| {
            let from = (*address).max(start);
            let to = address.saturating_add(*length).min(end);
            (*address, *length) = (from.wrapping_sub(start), to.saturating_sub(from));
            from < to
        });
        if self.ranges.is_empty() {
            Ok(None)
        } else {
            scene.view.compare(image, &self.ranges)
        }
    }

    /// One instruction. True if more than its own doing may have happened.
    pub fn step(&mut self, limit: Duration) -> Result<bool, String> {
        let signal = self.signal;
        self.resume(libc::PTRACE_SINGLESTEP, limit)?;
        self.steps += 1;
        Ok(signal != 0 || self.signal != 0 || self.finished)
    }

    /// Lets the victim go on, by that request, to its next stop.
    fn resume(&mut self, request: libc::c_uint, limit: Duration) -> Result<(), String> {
        let signal = std::mem::take(&mut self.signal);
        self.go(request, signal)?;
        match self.child.wait(limit) {
            Ended::Stop(libc::SIGTRAP) => {}
            Ended::Stop(libc::SIGSTOP) => self.finished = true,
            Ended::Stop(other) => self.signal = other,
            other => return Err(ended_early(&self.child, other)),
        }
        self.regs = registers(self.child.pid())?;
        Ok(())
    }

    pub(super) fn go(&self, request: libc::c_uint, signal: i32) -> Result<(), String> {
        // SAFETY: the child is our stopped tracee; the address is ignored and the data is a signal number.
        if unsafe { libc::ptrace(request, self.child.pid(), 0, signal) } == -1 {
            return Err(failed("letting a victim go on"));
        }
        Ok(())
    }
}

pub(super) fn registers(pid: i32) -> Result<Regs, String> {
    // SAFETY: all-zero is a valid user_regs_struct.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    // SAFETY: the process is our stopped tracee, and `regs` is a valid place of the type the request fills.
    if unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, ptr::null_mut::<u8>(), &mut regs) } == -1 {
        return Err(failed("PTRACE_GETREGS"));
    }
    Ok(regs)
}

/// Names the code at `rip`. All processes here are forks of one, so this one's symbols are theirs.
pub fn name_of(rip: u64) -> String {
    let mut name = String::new();
    // `resolve` takes return addresses and looks one byte before them.
    backtrace::resolve((rip + 1) as *mut _, |symbol| {
        let function = symbol
            .name()
            .map_or_else(|| "?".to_owned(), |name| format!("{name:#}"));
        let file = symbol
            .filename()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        let line = symbol.lineno().unwrap_or(0);
        name += &format!("\n         {function} ({file}:{line})");
    });
    format!("{rip:#x} {}{name}", in_module(rip).unwrap_or_default())
}

/// `rip` as an offset into the file it was mapped from.
fn in_module(rip: u64) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        let file = fields.nth(2)?.rsplit('/').next()?;
        (start..end)
            .contains(&rip)
            .then(|| format!("{file}+{:#x}", rip - start + offset))
    })
}
