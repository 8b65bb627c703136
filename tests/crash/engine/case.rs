//! What the author of a case provides: the arena, the operation, and what must be true after a crash.

use std::os::fd::RawFd;
use std::time::Duration;

use super::child::Fork;

/// The shared memory under test: a file mapped `MAP_SHARED` from its offset 0, at one address in every process.
///
/// The mapping may be far longer than the file, and the file may be sparse and may grow.
pub trait Arena {
    /// Where it is mapped.
    fn base(&self) -> usize;
    /// How long the mapping is.
    fn mapped_len(&self) -> usize;
    /// The descriptor of the file, open for reading and writing.
    fn fd(&self) -> RawFd;
    /// The number of that descriptor stands for a copy of the file by now, in this process alone.
    fn has_another_file(&self) {}
}

/// A process that died, or is taken to have died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim {
    /// Its pid, and the tid of its one thread.
    pub pid: i32,
    /// It died in the recovery from an earlier death.
    pub recovered: bool,
}

/// Where the crash happened, for `verify`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crash {
    /// The number of the crash point in the operation; 0 is before its first change.
    pub point: usize,
    /// The crash point in what followed, if that was crashed: the recovery, or the rest of an overtaken operation.
    pub later: Option<usize>,
    /// The last mark that the operation gave to [`progress`](super::progress) before it died; 0 if none.
    pub progress: u64,
    /// The operation had returned.
    pub finished: bool,
    /// A real SIGKILL, on the arena itself.
    pub real: bool,
    /// How it was overtaken before this crash, if it was.
    pub overtaken: Option<Overtaken>,
    /// Who died in the operation.
    pub victim: Victim,
}

/// How an operation was overtaken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overtaken {
    /// The last mark that the overtaker gave to [`progress`](super::progress).
    pub mark: u64,
    /// The victim's, where it was stopped.
    pub at: u64,
    /// The victim went on before the overtaker had ended.
    pub at_once: bool,
}

impl Crash {
    /// The operation has happened: it had returned, or given a mark at its end.
    pub fn done(&self) -> bool {
        self.finished || self.progress > 0
    }
}

/// A step of a case, of the process's state alone or also of what has happened (`A`).
type Act<S> = Box<dyn Fn(&mut S)>;
type ActOn<S, A> = Box<dyn Fn(&mut S, &A)>;
type Check<S> = Box<dyn Fn(&mut S) -> Result<(), String>>;
type CheckOn<S, A> = Box<CheckFn<S, A>>;
type CheckFn<S, A> = dyn Fn(&mut S, &A) -> Result<(), String>;

/// A case has so many points, unless it says otherwise: one whose operation is done by somebody who is not stepped,
/// another thread or a child, has fewer.
const LEAST_POINTS: u64 = 5;

/// One operation, and how to crash it. `S` is the state of a process that uses the arena; it is copied by fork.
pub struct Case<S> {
    pub(super) name: String,
    pub(super) setup: Box<dyn Fn() -> S>,
    pub(super) attach: Act<S>,
    pub(super) operation: Act<S>,
    pub(super) bury: ActOn<S, Victim>,
    pub(super) survivor: Act<S>,
    pub(super) recover: Check<S>,
    pub(super) verify: CheckOn<S, Crash>,
    pub(super) overtaker: Option<Act<S>>,
    pub(super) may_wait: bool,
    pub(super) only_goes_on: bool,
    pub(super) soon: bool,
    pub(super) fork: Fork,
    pub(super) limit: Duration,
    pub(super) cross_check: bool,
    pub(super) second_order: bool,
    pub(super) real_kills: bool,
    pub(super) hurried: bool,
    pub(super) least: u64,
    pub(super) expects: Option<Vec<&'static str>>,
}

impl<S: Arena> Case<S> {
    /// A case whose `setup`, run in a new process, makes a fresh arena and the state to use it with.
    pub fn new(name: impl Into<String>, setup: impl Fn() -> S + 'static) -> Case<S> {
        Case {
            name: name.into(),
            setup: Box::new(setup),
            attach: Box::new(|_| ()),
            operation: Box::new(|_| ()),
            bury: Box::new(|_, _| ()),
            survivor: Box::new(|_| ()),
            recover: Box::new(|_| Ok(())),
            verify: Box::new(|_, _| Ok(())),
            overtaker: None,
            may_wait: false,
            only_goes_on: false,
            soon: false,
            fork: Fork::Library,
            limit: Duration::from_secs(5),
            cross_check: false,
            second_order: true,
            real_kills: true,
            hurried: true,
            least: LEAST_POINTS,
            expects: None,
        }
    }

    /// Run in the victim before it is stepped: attaching, allocating a block to free, taking a lock to release.
    pub fn attach(mut self, attach: impl Fn(&mut S) + 'static) -> Self {
        self.attach = Box::new(attach);
        self
    }

    /// What is stepped.
    pub fn operation(mut self, operation: impl Fn(&mut S) + 'static) -> Self {
        self.operation = Box::new(operation);
        self
    }

    /// Run in a survivor on an image: does to it what the kernel does at a death (marks the robust futexes of the
    /// victim). Not run after a real kill. In the first order the victim is stopped meanwhile and not dead, so this
    /// mark must be all that recovery wants to see.
    pub fn bury(mut self, bury: impl Fn(&mut S, &Victim) + 'static) -> Self {
        self.bury = Box::new(bury);
        self
    }

    /// Run in a survivor after `bury`, before `recover`, and never stepped: what a process needs before it can recover.
    pub fn survivor(mut self, survivor: impl Fn(&mut S) + 'static) -> Self {
        self.survivor = Box::new(survivor);
        self
    }

    /// The recovery. It is stepped too. An error is a failure of the case.
    pub fn recover(mut self, recover: impl Fn(&mut S) -> Result<(), String> + 'static) -> Self {
        self.recover = Box::new(recover);
        self
    }

    /// What must be true after recovery: the structure's check, and the invariant of this operation.
    pub fn verify(
        mut self,
        verify: impl Fn(&mut S, &Crash) -> Result<(), String> + 'static,
    ) -> Self {
        self.verify = Box::new(verify);
        self
    }

    /// What another process does while the victim is stopped, at each of its points and between them in turn. The victim
    /// goes on when that has ended, and each of its later points is a crash.
    pub fn overtaken_by(mut self, overtaker: impl Fn(&mut S) + 'static) -> Self {
        self.overtaker = Some(Box::new(overtaker));
        self
    }

    /// The overtaker may have to wait for the victim, which then goes on at once; and in another run is killed.
    pub fn may_wait(mut self) -> Self {
        self.may_wait = true;
        self
    }

    /// The victim, once it was overtaken, is killed where it is or at its end only: for one that reads, or whose overtaker
    /// does.
    pub fn only_goes_on(mut self) -> Self {
        self.only_goes_on = true;
        self
    }

    /// The victim is overtaken in its first points first, not in some of everywhere: for one in which what matters
    /// happens soon, long before its end.
    pub fn soon(mut self) -> Self {
        self.soon = true;
        self
    }

    /// How the victim is forked; [`Fork::Library`] unless told. Survivors are always forked [`Fork::Bare`].
    pub fn fork(mut self, how: Fork) -> Self {
        self.fork = how;
        self
    }

    /// How long a step or a survivor may take; 5 s unless told.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Compares the whole arena at every step, to test the engine itself.
    pub fn cross_checked(mut self) -> Self {
        self.cross_check = true;
        self
    }

    /// Second order from all images, however long that takes, also in a short run.
    pub fn unhurried(mut self) -> Self {
        self.hurried = false;
        self
    }

    /// First order only: for an operation with no recovery of its own.
    pub fn without_second_order(mut self) -> Self {
        self.second_order = false;
        self
    }

    /// Images only: for an operation that cannot be run twice alike.
    pub fn without_real_kills(mut self) -> Self {
        self.real_kills = false;
        self
    }

    /// How many points the operation has at the least, its start and its end among them; with fewer the case fails.
    pub fn at_least(mut self, points: u64) -> Self {
        self.least = points;
        self
    }

    /// The case is deliberately broken: it passes if a failure is found whose report has all of `texts` in it.
    pub fn expect_failure(mut self, texts: &[&'static str]) -> Self {
        self.expects = Some(texts.to_vec());
        self
    }
}
