//! The job table of a master: every step of a worker, killed after every change.
//!
//! The survivor does what a master does when it reaps. After that, a job is either there completely or not at all, and
//! when everything is joined, nothing is left allocated.

use serde::{Deserialize, Deserializer, Serialize};
use shmkit::Pool;
use shmkit::process::{JoinError, JoinHandle, Resource, ResourceId, Wire};
use shmkit::testing::{self, Jobs};

use super::engine::{Case, Crash, Doomed, Suite, Victim, progress};
use super::in_pool::{InPool, ensure};

struct World {
    pool: Pool,
    jobs: Jobs,
    handle: Option<JoinHandle<Vec<u8>>>,
    resource: Option<ResourceId>,
    /// Bytes allocated when there is no job.
    before: usize,
}

impl InPool for World {
    fn pool(&self) -> Pool {
        self.pool
    }
}

/// An argument with a block of its own.
fn argument() -> Vec<u8> {
    (0..200).collect()
}

fn case(
    name: &'static str,
    setup: impl Fn(&mut World) + 'static,
    operation: impl Fn(&mut World) + 'static,
    check: impl Fn(&mut World, &Crash) -> Result<(), String> + 'static,
) -> Case<World> {
    Case::new(format!("process/{name}"), move || {
        let pool = Pool::builder().max_size(64 << 20).create().expect("a pool");
        // SAFETY: the steps below are those of a master and of its jobs, in one thread.
        let jobs = unsafe { Jobs::create(pool) };
        // Types are described once.
        let first = jobs.start(&argument());
        jobs.work();
        jobs.end();
        first.join().expect("a result");
        let before = pool.stats().allocated;
        let mut world = World {
            pool,
            jobs,
            handle: None,
            resource: None,
            before,
        };
        setup(&mut world);
        world
    })
    .attach(|world| enter(world))
    .operation(operation)
    .bury(|world: &mut World, victim: &Victim| {
        // SAFETY: its image is looked at from now on, and it does nothing any more.
        unsafe { testing::mark_dead(world.pool, victim.pid as u32) };
    })
    .recover(|world| {
        world.pool.recover();
        world.jobs.tidy();
        Ok(())
    })
    .verify(move |world, crash| {
        world.pool.recover();
        world.jobs.tidy();
        intact(world)?;
        check(world, crash)?;
        at_rest(world)
    })
}

/// The caller has its slot.
fn enter(world: &World) {
    let block = world.pool.allocate(std::alloc::Layout::new::<u8>());
    // SAFETY: allocated just now.
    unsafe { world.pool.deallocate(block.expect("a slot").cast()) }.expect("a free");
}

/// Nothing is left of any job.
fn at_rest(world: &World) -> Result<(), String> {
    intact(world)?;
    let now = world.pool.stats().allocated;
    ensure(now == world.before, || {
        format!("{now} bytes allocated, not {}", world.before)
    })?;
    ensure(world.jobs.is_empty(), || "a job is left".into())
}

fn intact(world: &World) -> Result<(), String> {
    let report = world.pool.check_quiescent();
    report
        .is_ok()
        .then_some(())
        .ok_or_else(|| report.to_string())
}

/// A result. Who joins marks that it has been read.
#[derive(Serialize)]
struct Marked(Vec<u8>);

impl<'de> Deserialize<'de> for Marked {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = Vec::deserialize(from)?;
        progress(1);
        Ok(Marked(bytes))
    }
}

fn copy<R: Wire>(handle: &JoinHandle<Vec<u8>>) -> JoinHandle<R> {
    postcard::from_bytes(&postcard::to_stdvec(handle).expect("bytes")).expect("a handle")
}

/// Joins the handle of the set-up; whether there was a result, which must be right.
fn joined(world: &mut World) -> Result<bool, String> {
    match copy::<Marked>(world.handle.as_ref().expect("a handle")).join() {
        Ok(Marked(result)) if result == argument() => Ok(true),
        Ok(_) => Err("the result is not what it was".into()),
        Err(JoinError::AlreadyJoined) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

pub fn cases(suite: &mut Suite) {
    let start = case(
        "start",
        |_| (),
        |world| world.handle = Some(world.jobs.start(&argument())),
        |world, crash| {
            let requested = world.jobs.work();
            world.jobs.end();
            if requested > 1 || crash.finished && requested == 0 {
                return Err(format!("{requested} jobs"));
            }
            // The victim has the handle: the job is joined by its twin, the next one of the table.
            if requested == 1 {
                let handle = world.handle.take().unwrap_or_else(|| world.jobs.forge(2));
                world.handle = Some(handle);
                if !joined(world)? {
                    return Err("no result".into());
                }
            }
            Ok(())
        },
    );
    suite.run(start);
    // A peer that is dead has no place, and what it has defined is free again.
    suite.run(case(
        "peer enters",
        |_| (),
        |world| world.jobs.enter_peer(&argument()),
        |world, _| match world.jobs.peers() {
            0 => Ok(()),
            peers => Err(format!("{peers} peers are left")),
        },
    ));
    let started = |world: &mut World| world.handle = Some(world.jobs.start(&argument()));
    let ended = move |world: &mut World| {
        started(world);
        world.jobs.work();
        world.jobs.end();
    };
    suite.run(case(
        "join",
        ended,
        |world| drop(joined(world)),
        |world, crash| {
            let again = joined(world)?;
            ensure(!(crash.finished && again), || "joined twice".into())?;
            // Also of a job that was taken already.
            ensure(again || crash.done(), || "the result is lost".into())
        },
    ));
    let detach = |world: &mut World| {
        copy::<Vec<u8>>(world.handle.as_ref().expect("a handle")).detach();
    };
    suite.run(case(
        "detach an ended one",
        ended,
        detach,
        |world, crash| {
            let again = joined(world)?;
            let wrong = crash.finished && again;
            (!wrong)
                .then_some(())
                .ok_or_else(|| "detached and joined".into())
        },
    ));
    suite.run(
        case("detach a requested one", started, detach, |world, crash| {
            world.jobs.work();
            world.jobs.end();
            let again = joined(world)?;
            let wrong = crash.finished && again;
            (!wrong)
                .then_some(())
                .ok_or_else(|| "detached and joined".into())
        })
        .at_least(3),
    );
    let running = move |world: &mut World| {
        started(world);
        world.jobs.run();
    };
    let leave = |world: &mut World| world.jobs.leave(&argument_encoded());
    suite.run(case("leave a result", running, leave, |world, crash| {
        world.jobs.end();
        let handle = copy::<Vec<u8>>(world.handle.as_ref().expect("a handle"));
        match handle.join() {
            Ok(result) if result == argument() => Ok(()),
            Err(JoinError::Exited(0)) if !crash.finished => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }));
    suite.run(ending("end by join", false));
    suite.run(ending("end of a detached one by join", true));
    half_joined(suite);
    resources(suite);
}

/// A job whose joiner was killed as soon as it had taken it, and the master has not heard of that.
fn half_joined(suite: &mut Suite) {
    let left = |world: &mut World| {
        world.handle = Some(world.jobs.start(&argument()));
        world.jobs.work();
        world.jobs.end();
        let mut joiner = Doomed::new(
            || enter(world),
            || drop(copy::<Vec<u8>>(world.handle.as_ref().expect("a handle")).join()),
        );
        joiner.go_on_until(|| world.jobs.is_taken());
        joiner.die();
        world.pool.recover();
    };
    let join = |world: &mut World| {
        let joined = joined(world);
        assert!(joined.expect("a result"), "it was there to be joined");
    };
    let unheard = case("join what a joiner has left", left, join, |_, _| Ok(()))
        .recover(|world| {
            world.pool.recover();
            Ok(())
        })
        .verify(move |world, crash| {
            world.pool.recover();
            let again = joined(world)?;
            ensure(!(crash.finished && again), || "joined twice".into())?;
            ensure(again || crash.done(), || "the result is lost".into())?;
            world.jobs.tidy();
            at_rest(world)
        });
    suite.run(unheard);
    // Who joins then has the place for another job, which the master leaves alone.
    let both = case(
        "tidy by join and start",
        left,
        |world| world.jobs.tidy(),
        |_, _| Ok(()),
    )
    .attach(|world| world.jobs.reign())
    .overtaken_by(|world| {
        let joined = copy::<Marked>(world.handle.as_ref().expect("a handle")).try_join();
        if matches!(joined, Ok(Ok(_))) {
            let _started = world.jobs.start(&argument());
            progress(HAD);
        }
    })
    .verify(|world, crash| {
        // With the master the run has ended.
        if !crash.finished {
            return Ok(());
        }
        world.pool.recover();
        let had = crash.overtaken.is_some_and(|how| how.mark == HAD);
        let again = joined(world)?;
        ensure(had != again, || {
            format!("joined meanwhile: {had}, later: {again}")
        })?;
        let started = world.jobs.work();
        ensure(started == usize::from(had), || format!("{started} started"))?;
        world.jobs.end();
        if had {
            world.handle = Some(world.jobs.forge(3));
            ensure(joined(world)?, || "no result".into())?;
        }
        world.jobs.tidy();
        at_rest(world)
    })
    .without_second_order()
    .without_real_kills()
    .at_least(3);
    suite.run(both);
}

/// The mark of who got what it asked for.
const HAD: u64 = 1;

/// The master hears that a job has ended, which left no result, and the job is joined meanwhile: the joiner hears how it
/// has ended, or that it has not; and nobody hears of a detached one.
fn ending(name: &'static str, is_detached: bool) -> Case<World> {
    let handle = |world: &World| copy::<Vec<u8>>(world.handle.as_ref().expect("a handle"));
    let running = move |world: &mut World| {
        world.handle = Some(world.jobs.start(&argument()));
        world.jobs.run();
        if is_detached {
            handle(world).detach();
        }
    };
    // Whether it was there to be joined.
    let heard = |joined: Result<Vec<u8>, JoinError>| match joined {
        Err(JoinError::Exited(0)) => Ok(true),
        Err(JoinError::AlreadyJoined) => Ok(false),
        other => Err(format!("{other:?}")),
    };
    case(name, running, |world| world.jobs.end(), |_, _| Ok(()))
        .attach(|world| world.jobs.reign())
        .overtaken_by(move |world| {
            let joined = handle(world).try_join();
            if joined.is_ok_and(|joined| heard(joined).expect("how it has ended")) {
                progress(HAD);
            }
        })
        .verify(move |world, crash| {
            // With the master the run has ended.
            if !crash.finished {
                return Ok(());
            }
            world.pool.recover();
            world.jobs.tidy();
            let had = crash.overtaken.is_some_and(|how| how.mark == HAD);
            let late = heard(handle(world).join())?;
            let times = u8::from(had) + u8::from(late);
            ensure(times == u8::from(!is_detached), || {
                format!("joined meanwhile: {had}, later: {late}")
            })?;
            ensure(world.jobs.is_empty(), || "a job is left".into())?;
            intact(world)
        })
        .without_second_order()
        .without_real_kills()
        .at_least(3)
}

fn argument_encoded() -> Vec<u8> {
    postcard::to_stdvec(&argument()).expect("bytes")
}

fn file() -> Resource {
    // Longer than what needs no block.
    Resource::File("/nowhere".repeat(10).into())
}

fn resources(suite: &mut Suite) {
    let managed = |world: &mut World| world.resource = Some(world.jobs.manage(1, file()));
    let get = |world: &mut World| {
        let id = world.resource.expect("an id");
        drop(world.jobs.resources(2).get(id).expect("it is there"));
    };
    suite.run(removal(move |world| {
        managed(world);
        world.jobs.clear_uses(1);
    }));
    suite.run(case("use a resource", managed, get, |world, _| {
        match (world.jobs.end_uses(2), world.jobs.end_uses(1)) {
            (0, 1) => Ok(()),
            removed => Err(format!("removed {removed:?}")),
        }
    }));
    // What the new one was to inherit is not left to the next that has its place.
    let start = |world: &mut World| world.handle = Some(world.jobs.start_as(1, &argument()));
    suite.run(case("start an heir", managed, start, |world, crash| {
        let requested = world.jobs.work();
        world.jobs.end();
        if requested == 1 {
            let handle = world.handle.take().unwrap_or_else(|| world.jobs.forge(2));
            world.handle = Some(handle);
            if !joined(world)? {
                return Err("no result".into());
            }
            world.jobs.end_uses(0);
        }
        match world.jobs.end_uses(1) {
            1 if requested == 1 || !crash.finished => Ok(()),
            removed => Err(format!("removed {removed}, with {requested} jobs")),
        }
    }));
    // Asked for by another before, and not answered: it is one resource, and goes with its last user.
    let asked = |world: &mut World| world.jobs.request(1, &file());
    let request = |world: &mut World| world.jobs.request(2, &file());
    suite.run(case(
        "request a resource",
        asked,
        request,
        |world, crash| {
            let early = world.jobs.tend();
            let removed = (early, world.jobs.end_uses(1), world.jobs.end_uses(2));
            match removed {
                (0, 0, 1) => Ok(()),
                (0, 1, 0) if !crash.finished => Ok(()),
                _ => Err(format!("removed {removed:?}")),
            }
        },
    ));
}

/// The master removes what nobody uses, and a worker gets it meanwhile. One sees the other.
fn removal(unused: impl Fn(&mut World) + 'static) -> Case<World> {
    // From then on it is gone: what is of interest is before.
    let tend = |world: &mut World| world.jobs.tend_with(|| progress(1));
    let case = case("remove a resource", unused, tend, |_, _| Ok(()));
    case.attach(|world| world.jobs.reign())
        .overtaken_by(|world| {
            let id = world.resource.expect("an id");
            // It uses it for good.
            let got = world.jobs.resources(2).get(id).map(std::mem::forget);
            if got.is_ok() {
                progress(HAD);
            }
        })
        .may_wait()
        .verify(|world, crash| {
            // With the master the run has ended.
            if !crash.finished {
                return Ok(());
            }
            world.pool.recover();
            let had = crash.overtaken.is_some_and(|how| how.mark == HAD);
            let (removed, later) = (crash.progress, world.jobs.end_uses(2));
            let is_right = (removed, later) == if had { (0, 1) } else { (1, 0) };
            ensure(is_right, || {
                format!("removed {removed}, {later} later; had: {had}")
            })?;
            intact(world)
        })
        .without_second_order()
        .without_real_kills()
}
