//! Locks, semaphores, events.

use std::fmt::{self, Debug, Formatter};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shmkit::sync::Permit;
use shmkit::{Condvar, Event, LockError, Mutex, RwLock, Semaphore, ShmSafe};

use super::super::engine::progress;
use super::super::engine::{Crash, Overtaken, Suite, Victim};
use super::super::in_pool::{self, ensure};
use super::super::sync::{World, nothing, slot};
use super::{Operation, Order, told};

/// A lock of a number, which those who wait for it add to.
trait Lock: ShmSafe + Debug + 'static {
    const NAME: &str;
    fn new() -> Self;
    /// What it is then. Also if somebody has died with the lock.
    fn add(&self, n: u64) -> u64;
    fn look(&self) -> u64;
}

fn add_to(number: &mut u64, n: u64) -> u64 {
    *number += n;
    *number
}

impl Lock for Mutex<u64> {
    const NAME: &str = "mutex";

    fn new() -> Self {
        Mutex::new(0)
    }

    fn add(&self, n: u64) -> u64 {
        match self.lock() {
            Ok(mut guard) => add_to(&mut guard, n),
            Err(LockError::OwnerDied(orphan)) => add_to(&mut orphan.into_guard(), n),
            Err(other) => panic!("{other}"),
        }
    }

    fn look(&self) -> u64 {
        self.add(0)
    }
}

impl Lock for RwLock<u64> {
    const NAME: &str = "rwlock";

    fn new() -> Self {
        RwLock::new(0)
    }

    fn add(&self, n: u64) -> u64 {
        match self.write() {
            Ok(mut guard) => add_to(&mut guard, n),
            Err(LockError::OwnerDied(orphan)) => add_to(&mut orphan.into_guard(), n),
            Err(other) => panic!("{other}"),
        }
    }

    fn look(&self) -> u64 {
        match self.read() {
            Ok(guard) => *guard,
            Err(LockError::OwnerDied(orphan)) => *orphan.into_guard(),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A number that whoever has the permit adds to.
#[derive(Debug, ShmSafe)]
struct Permitted {
    permit: Semaphore,
    number: AtomicU64,
}

impl Lock for Permitted {
    const NAME: &str = "semaphore";

    fn new() -> Self {
        Permitted {
            permit: Semaphore::new(1),
            number: AtomicU64::new(0),
        }
    }

    fn add(&self, n: u64) -> u64 {
        let _permit = self.permit.acquire().expect("a permit");
        let sum = self.number.load(Ordering::Relaxed) + n;
        self.number.store(sum, Ordering::Relaxed);
        sum
    }

    fn look(&self) -> u64 {
        self.add(0)
    }
}

/// What is done to a lock's number.
#[derive(Clone, Copy, Debug)]
enum Do {
    Add(u64),
    Look,
}

/// The same, to a lock of that kind.
struct In<L>(Do, PhantomData<L>);

impl<L> Debug for In<L> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<L> Copy for In<L> {}
impl<L> Clone for In<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Lock> Operation for In<L> {
    type World = World<L>;
    type Model = u64;

    fn perform(self, world: &mut World<L>) -> u64 {
        match self.0 {
            Do::Add(n) => world.object.add(n),
            Do::Look => world.object.look(),
        }
    }

    fn model(self, model: &mut u64) -> u64 {
        match self.0 {
            Do::Add(n) => add_to(model, n),
            Do::Look => *model,
        }
    }

    fn reads(self) -> bool {
        false
    }

    fn waits(self, _: bool) -> bool {
        true
    }

    fn found(world: &mut World<L>, _: &Crash) -> Result<u64, String> {
        world.pool.recover();
        world.intact("after recovery")?;
        Ok(world.object.look())
    }

    fn ends(world: &mut World<L>) -> Result<(), String> {
        let now = world.object.look();
        let then = world.object.add(5);
        ensure(then == now + 5, || format!("{now} and 5 is {then}"))?;
        world.intact("after use")
    }
}

/// What is done to an event.
#[derive(Clone, Copy, Debug)]
enum OfEvent {
    Set,
    Clear,
    Look,
}

impl Operation for OfEvent {
    type World = World<Event>;
    type Model = bool;

    fn perform(self, world: &mut World<Event>) -> u64 {
        let event = &world.object;
        match self {
            OfEvent::Set => {
                event.set();
                0
            }
            OfEvent::Clear => event.clear().into(),
            OfEvent::Look => event.is_set().into(),
        }
    }

    fn model(self, model: &mut bool) -> u64 {
        match self {
            OfEvent::Set => {
                *model = true;
                0
            }
            OfEvent::Clear => std::mem::take(model).into(),
            OfEvent::Look => (*model).into(),
        }
    }

    fn reads(self) -> bool {
        matches!(self, OfEvent::Look)
    }

    fn found(world: &mut World<Event>, _: &Crash) -> Result<bool, String> {
        world.pool.recover();
        world.intact("after recovery")?;
        Ok(world.object.is_set())
    }

    fn ends(world: &mut World<Event>) -> Result<(), String> {
        world.object.set();
        let waited = world.object.wait();
        waited.map_err(|error| error.to_string())
    }
}

/// Whose list of permits has room for one more wants the last one of a semaphore, which another takes: there is room
/// for one of another semaphore then.
fn losers(suite: &mut Suite) {
    /// A thread can have one more.
    const HELD: u32 = 27;
    let take = |permits: &Semaphore| permits.try_acquire().map(Permit::forget).is_ok();
    let setup = || World::new((Semaphore::new(1), Semaphore::new(HELD + 1)), nothing);
    suite.run(
        in_pool::case("overtaken/semaphore/the last one by another", setup)
            .attach(|world| {
                let (_, others) = &*world.object;
                (0..HELD).for_each(|_| std::mem::forget(others.try_acquire().expect("a permit")));
            })
            .operation(move |world| {
                let (last, others) = &*world.object;
                take(last);
                progress(1 + u64::from(take(others)));
            })
            .overtaken_by(move |world| {
                progress(1 + u64::from(take(&world.object.0)));
            })
            .verify(|world, crash| {
                world.pool.recover();
                world.intact("after recovery")?;
                let (last, others) = &*world.object;
                ensure(crash.progress != 1, || "there was no room".into())?;
                let (last, others) = (last.available_permits(), others.available_permits());
                ensure(last == 0 || last == 1 && !crash.done(), || {
                    format!("{last} left")
                })?;
                let all = others == HELD + 1;
                ensure(all && !crash.done() || others == HELD, || {
                    format!("{others} others left")
                })
            })
            .without_second_order()
            .without_real_kills(),
    );
}

/// Who waits for a condition is told of what is notified once it waits: it has let go of the mutex, under which the
/// condition has come true.
fn notified(suite: &mut Suite) {
    /// It is told of what comes in time by that, however late it goes on.
    const LIMIT: Duration = Duration::from_millis(300);
    const IN_TIME: u64 = 1;
    const TOO_LATE: u64 = 2;
    type Gate = (Mutex<u64>, Condvar, [AtomicU64; 2]);
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_millis() as u64)
    };
    let setup = || {
        World::new(
            (Mutex::new(0), Condvar::new(), Default::default()),
            nothing::<Gate>,
        )
    };
    suite.run(
        in_pool::case("overtaken/condvar/wait by notify", setup)
            .attach(|world| slot(world.pool))
            .operation(move |world| {
                let (mutex, condvar, [start, _]) = &*world.object;
                let guard = mutex.lock().expect("the lock");
                start.store(now(), Ordering::Relaxed);
                let late = *guard == 0 && {
                    let waited = condvar.wait_timeout(guard, LIMIT);
                    waited.expect("the lock").1.timed_out()
                };
                progress(if late { TOO_LATE } else { IN_TIME });
            })
            .overtaken_by(move |world| {
                let (mutex, condvar, [_, end]) = &*world.object;
                match mutex.lock() {
                    Ok(mut guard) => *guard = 1,
                    Err(LockError::OwnerDied(orphan)) => *orphan.into_guard() = 1,
                    Err(refused) => panic!("{refused:?}"),
                }
                condvar.notify_one();
                end.store(now(), Ordering::Relaxed);
                progress(1);
            })
            .verify(|world, crash| {
                world.pool.recover();
                world.intact("after recovery")?;
                let [start, end] = world
                    .object
                    .2
                    .each_ref()
                    .map(|time| time.load(Ordering::Relaxed));
                // To the millisecond, and that of the end is not the notification's.
                let in_time = end != 0 && end < start + LIMIT.as_millis() as u64 - 10;
                ensure(!in_time || crash.progress != TOO_LATE, || "not told".into())
            })
            .may_wait()
            .only_goes_on()
            .soon()
            .without_second_order()
            .without_real_kills(),
    );
}

pub fn cases(suite: &mut Suite) {
    losers(suite);
    notified(suite);
    locks::<Mutex<u64>>(suite);
    locks::<RwLock<u64>>(suite);
    locks::<Permitted>(suite);
    use OfEvent::*;
    let mut event = |name: &str, victim: &[OfEvent], overtaker: &[OfEvent]| {
        let setup = || World::new(Event::new(), nothing);
        let case = super::case(
            format!("event/{name}"),
            setup,
            |_: &_| false,
            [victim, overtaker],
        );
        suite.run(case.attach(|world| slot(world.pool)).at_least(3))
    };
    event("set by clear", &[Set, Look], &[Clear]);
    event("set by set and clear", &[Set], &[Set, Clear]);
    let last = event("clear by set", &[Set, Clear], &[Set, Look]);
    let right = last.map(|_| is_right_about_orders());
    suite.check(
        "overtaken/what was told is put in the order in which it happened",
        right,
    );
}

/// Whether a victim that sets the event twice, and then looks, is believed only what it may have been told.
fn is_right_about_orders() -> bool {
    use OfEvent::*;
    let set = told(0, 0);
    let explains = |at: u64, at_once, cleared: u64, looked: u64| {
        let how = Overtaken {
            mark: told(0, cleared),
            at,
            at_once,
        };
        let crash = Crash {
            progress: told(told(set, 0), looked),
            finished: true,
            overtaken: Some(how),
            point: 0,
            later: None,
            real: false,
            victim: Victim {
                pid: 0,
                recovered: false,
            },
        };
        Order::new(false, &[Set, Set, Look], &[Clear]).explains(&crash, &(looked == 1))
    };
    // Stopped before it has set the event the first time, it sets it the second time, and sees that, when the other has
    // ended; unless both were at once.
    let first = explains(0, false, 0, 1) && explains(0, false, 1, 1) && !explains(0, false, 1, 0);
    let at_once = explains(0, true, 0, 1) && explains(0, true, 1, 0);
    // Behind it the event is set.
    let second = !explains(set, false, 0, 1) && explains(set, false, 1, 1);
    first && at_once && second && explains(set, false, 1, 0)
}

fn locks<L: Lock>(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let of_kind =
            |side: &[Do]| -> Vec<_> { side.iter().map(|&it| In(it, PhantomData)).collect() };
        let sides = [victim, overtaker].map(of_kind);
        let setup = || World::new(L::new(), nothing);
        let case = super::case(
            format!("{}/{name}", L::NAME),
            setup,
            |_: &_| 0,
            sides.each_ref().map(Vec::as_slice),
        );
        suite.run(case.attach(|world| slot(world.pool)));
    };
    case("add by add", &[Add(1)], &[Add(10)]);
    case(
        "add twice by add and look",
        &[Add(1), Add(2)],
        &[Add(10), Look],
    );
    case("look by add", &[Look, Look], &[Add(10), Add(20)]);
    case("add by look", &[Add(1)], &[Look, Look]);
}
