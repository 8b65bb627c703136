//! What happens to pools when the process forks, whoever forks it.
//!
//! `pthread_atfork` handlers, installed with the first pool. Before: the child's record is made in
//! every pool (unless `spawn`, which can report why it cannot be made, has made it already). In the
//! child: the records come to life, and whatever this process's copy of the parent's memory says
//! about slots is forgotten. A child for which there is no record, and which has inherited handles,
//! exits at once: they would be nobody's. Without handles it makes its record when it needs one, as
//! in a pool that its parent used for the first time between `prepare` and the fork.
//!
//! # A fork that fails
//!
//! `spawn` sees that, and reaps its child. For a fork that somebody else makes, all that the
//! handlers learn is that they are called in the parent. So the child gets an end of a pipe, which
//! it closes once its records live: when nobody has that end, and a record is still FORKING, there
//! is no child for that record. The parent waits for that, half a second at most, before the
//! fork returns: it may end at once, as a process does that turns its child into a daemon, and the
//! records that it has made go with its own. It looks again, for children that were killed on their
//! way later, when it forks again, reaps one of its own, or is asked to recover the pool. If it is
//! a child of ours, it waits once more when it comes to its end.

use std::cell::{Cell, RefCell};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;

use super::{dispose, handles, intents};
use crate::allocator;
use crate::engines::limbo;
use crate::layout::arena::{Arena, GRANULES};
use crate::layout::{fingerprint, local};
use crate::participants::recovery::{self, Hooks};
use crate::participants::table::ProcessPhase;
use crate::participants::tag::Tag;
use crate::participants::{life, process, thread};
use crate::sys::{self, descriptor, watch};

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
    static CHILD: Child = const { Child::none() };
}

/// The child of the fork that this thread is making, or of its last one: other threads may fork as
/// soon as the handles are released, before this one learns how its fork went. It lies beside the
/// other data that a fork writes to, because each page that is written to is copied.
struct Child {
    /// It belongs to a fork in progress.
    is_new: Cell<bool>,
    /// The process has no other threads that would have to be kept from what a fork must not meet.
    alone: Cell<bool>,
    /// When the fork began, by the [clock of starts](sys::process::start); 0 if the child is to ask
    /// for its start itself.
    since: Cell<u64>,
    /// The time namespace that the child will be in, if that is known.
    times: Cell<Option<u64>>,
    /// The records made for the child, as tags, by the pools' granules.
    records: [Cell<u64>; GRANULES],
}

impl Child {
    const fn none() -> Child {
        Child {
            is_new: Cell::new(false),
            alone: Cell::new(false),
            since: Cell::new(0),
            times: Cell::new(None),
            records: [const { Cell::new(0) }; GRANULES],
        }
    }

    /// Begins with a new child, unless that has been done for this fork.
    fn begin(&self) {
        if !self.is_new.replace(true) {
            self.since.set(sys::process::start::clock());
            self.records.iter().for_each(|record| record.set(0));
        }
    }

    fn record(&self, arena: Arena) -> Option<Tag> {
        let record = Tag::of_word(self.records[arena.granule()].get());
        (!record.is_nobody()).then_some(record)
    }

    /// The pools in which the child has no record.
    fn missing(&self) -> impl Iterator<Item = Arena> {
        attached().filter(|&arena| self.record(arena).is_none())
    }

    /// Makes the child's record in a pool; the child will be in time namespace `times`.
    fn reserve(&self, arena: Arena, times: Option<u64>) -> Result<(), Refused> {
        match process::are_other_times(arena.times(), times) {
            Some(true) => return Err(Refused::OtherTimes),
            Some(false) => {}
            None => self.since.set(0),
        }
        let record = process::reserve_child(arena).ok_or(Refused::NoRecord)?;
        self.records[arena.granule()].set(record.word());
        Ok(())
    }

    /// The fork is over for this side of it. Returns whether the process had no other threads.
    fn end(&self) -> bool {
        self.is_new.set(false);
        self.alone.replace(false)
    }

    /// Takes the records back: there is no child for them.
    fn take_back(&self) {
        for arena in attached() {
            if let Some(record) = self.record(arena) {
                process::abort_child(arena, record);
            }
        }
        self.end();
    }
}

/// What a thread has while it forks.
struct Held {
    /// Keeps other threads from opening and dropping handles.
    holds: handles::Locked,
    /// Tells whether there is a child, if this is not a fork of ours.
    pipe: Option<(PipeReader, PipeWriter)>,
}

/// A child of somebody else's fork, whose records do not live yet.
struct OnItsWay {
    /// Nobody has the other end once the records live, or if there is no child.
    pipe: PipeReader,
    /// The child's records, as tags, by the pools' granules.
    records: [u64; GRANULES],
}

/// This many are remembered. The records of one more stay until this process ends, if that child is
/// killed.
const MANY: usize = 16;

/// Used only by a thread that keeps the [handles](handles::lock), so that nobody has it while
/// another thread forks.
static ON_THEIR_WAY: Mutex<Vec<OnItsWay>> = Mutex::new(Vec::new());
/// How many there are. If there are none, the list is not locked, since that would have a page
/// copied.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Tells the layers below what this one does, and hooks into forks. Once per process.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // What happens around a fork allocates nothing.
        on_their_way().reserve_exact(MANY);
        // Children must not draw different nonces.
        fingerprint::image_nonce();
        teach_recovery();
        // SAFETY: the handlers are functions of this program, which is never unloaded before the
        // process ends, and do nothing that is not allowed around a fork in a process whose other
        // threads hold no lock that they take (`prepare` takes the one there is).
        unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
    });
}

/// Tells recovery what the layers above it do for the dead.
pub(crate) fn teach_recovery() {
    recovery::install(Hooks {
        resolve: intents::resolve,
        leave: limbo::collect,
        release_memory: allocator::recover::release_all,
        release_own: allocator::recover::release_own,
        reap: dispose::reap,
    });
}

fn attached() -> impl Iterator<Item = Arena> {
    local::mapped().filter(|&a| local::of(a).process() != 0)
}

/// Why a child could not take part in a pool.
pub(crate) enum Refused {
    /// The pool has no record for it.
    NoRecord,
    /// It would be in another time namespace.
    OtherTimes,
}

/// Makes the records of the child that this thread is about to fork. On an error the fork is
/// cancelled; otherwise the fork follows, then [`forked`] or [`fork_failed`]. `as_before`: since
/// the last call, nothing has run in this thread that could have changed the namespaces of
/// children. `alone`: this is the only thread.
pub(crate) fn before_fork(as_before: bool, alone: bool) -> Result<(), Refused> {
    if attached().next().is_none() {
        return Ok(());
    }
    CHILD.with(|child| {
        child.alone.set(alone);
        keep_handles(child);
        child.begin();
        if !as_before {
            child.times.set(sys::process::time_namespace_of_children());
        }
        let times = child.times.get();
        let mut missing = child.missing();
        let reserved = missing.try_for_each(|arena| child.reserve(arena, times));
        reserved.inspect_err(|_| {
            child.take_back();
            release_handles();
        })
    })
}

/// The fork that [`before_fork`] prepared made no process.
pub(crate) fn fork_failed() {
    CHILD.with(Child::take_back);
}

/// The last fork made this process: its records can now be told from others on their way.
pub(crate) fn forked(pid: u32) {
    CHILD.with(|child| {
        for arena in attached() {
            if let Some(record) = child.record(arena) {
                // The child stores the same once it lives.
                let known = &arena.process(record.slot()).pid;
                known.note(record.generation(), pid);
            }
        }
        sys::process::start::compare(pid, child.since.get());
    });
}

extern "C" fn prepare() {
    CHILD.with(keep_handles);
    take_back_of_the_killed();
    let made = CHILD.with(|child| {
        child.begin();
        let mut times = None;
        let made = child.missing().filter(|&arena| {
            let times = times.get_or_insert_with(sys::process::time_namespace_of_children);
            child.reserve(arena, *times).is_ok()
        });
        made.count() > 0
    });
    if made {
        // If there are no descriptors, there is no pipe: the record of a child that is not made
        // then stays until this process ends.
        let pipe = pipe_to_keep().ok();
        let _ = HELD.try_with(|held| {
            if let Some(held) = &mut *held.borrow_mut() {
                held.pipe = pipe;
            }
        });
    }
}

/// The parent keeps its end for as long as the child is on its way.
fn pipe_to_keep() -> std::io::Result<(PipeReader, PipeWriter)> {
    let (read, write) = std::io::pipe()?;
    let read = descriptor::to_keep(read.into())?;
    let write = descriptor::to_keep(write.into())?;
    Ok((read.into(), write.into()))
}

/// Keeps the process's other threads from opening and dropping handles, and from forking, until
/// this one has forked. If there are no other threads, the lock is left alone: it would have a page
/// copied on either side of the fork.
fn keep_handles(child: &Child) {
    if child.alone.get() {
        return;
    }
    // A fork during the destruction of thread-locals goes without the lock.
    let _ = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        if held.is_none() {
            *held = Some(Held {
                holds: handles::lock(),
                pipe: None,
            });
        }
    });
}

fn release_handles() {
    let _ = HELD.try_with(|held| held.borrow_mut().take());
}

fn on_their_way() -> std::sync::MutexGuard<'static, Vec<OnItsWay>> {
    ON_THEIR_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes back the records of children that were killed on their way, and forgets those children
/// whose records have come to life. The caller keeps the handles.
fn take_back_of_the_killed() {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mut all = on_their_way();
    all.retain(|child| {
        let ended = nobody_has_the_other_end(&child.pipe, Duration::ZERO);
        let records = attached().map(|arena| (arena, child.records[arena.granule()]));
        for (arena, record) in records.filter(|&(_, record)| ended && record != 0) {
            // This changes only records that do not live.
            process::abort_child(arena, Tag::of_word(record));
        }
        !ended
    });
    COUNT.store(all.len(), Ordering::Relaxed);
}

/// The same, for a caller that does not keep the handles.
pub(super) fn recover_children() {
    // As above: the lock is not taken without need.
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    let handles = handles::lock();
    take_back_of_the_killed();
    drop(handles);
}

/// Called when the pool is about to be unmapped: the next one at its place has other records.
pub(super) fn forget(arena: Arena) {
    let handles = handles::lock();
    for child in on_their_way().iter_mut() {
        child.records[arena.granule()] = 0;
    }
    drop(handles);
}

/// How long a fork waits for its child to live: the child may be stopped, or wait for us in
/// somebody else's handler.
const AT_THE_FORK: Duration = Duration::from_millis(500);
/// How long a process that ends waits.
const AT_THE_END: Duration = Duration::from_secs(1);

/// Waits until nobody has the other end, at most `limit`; returns whether nobody has it.
fn nobody_has_the_other_end(pipe: &PipeReader, limit: Duration) -> bool {
    watch::wait_for(pipe.as_fd(), PollFlags::empty(), limit).contains(PollFlags::HUP)
}

/// Waits until the children that are on their way live.
#[cold]
fn await_children() {
    let handles = handles::lock();
    for child in on_their_way().iter() {
        nobody_has_the_other_end(&child.pipe, AT_THE_END);
    }
    drop(handles);
}

/// Whether this process has handles of objects in the pool; asked while it forks.
fn has_handles(arena: Arena) -> bool {
    // During the destruction of thread-locals, this is not known.
    HELD.try_with(|held| match &*held.borrow() {
        Some(held) => handles::any_in(arena, &held.holds),
        None => true,
    })
    .unwrap_or(true)
}

pub(crate) extern "C" fn in_parent() {
    if CHILD.with(Child::end) {
        return;
    }
    let pipe = HELD.try_with(|held| held.borrow_mut().as_mut()?.pipe.take());
    if let Ok(Some((pipe, for_the_child))) = pipe {
        drop(for_the_child);
        // The caller may end at once, and the child's record would go with its own.
        nobody_has_the_other_end(&pipe, AT_THE_FORK);
        let mut all = on_their_way();
        if all.len() < MANY {
            let records = CHILD.with(|child| std::array::from_fn(|i| child.records[i].get()));
            all.push(OnItsWay { pipe, records });
            COUNT.store(all.len(), Ordering::Relaxed);
        }
        drop(all);
        take_back_of_the_killed();
    }
    release_handles();
}

#[unsafe(link_section = ".shmkit.child")]
pub(crate) extern "C" fn in_child() {
    // It is locked here if another thread had it, since a fork during the destruction of
    // thread-locals does not keep other threads from it.
    if COUNT.load(Ordering::Relaxed) != 0
        && let Ok(mut siblings) = ON_THEIR_WAY.try_lock()
    {
        siblings.clear();
        COUNT.store(0, Ordering::Relaxed);
    }
    // The kernel has wiped the thread's table of slots.
    thread::begin_child();
    let alone = CHILD.with(|child| {
        let alone = child.end();
        let mut start = None;
        attached().for_each(|arena| come_to_life(arena, child, &mut start));
        alone
    });
    if !alone {
        release_handles();
    }
}

/// In the child: its record in a pool comes to life. `start` is this process's, once it is known.
#[unsafe(link_section = ".shmkit.child")]
fn come_to_life(arena: Arena, child: &Child, start: &mut Option<u64>) {
    let local = local::of(arena);
    local.forget_leaked_guards();
    let record = child.record(arena);
    if record.is_none() && !has_handles(arena) {
        return local.set_process(0);
    }
    // If the clock is given, the parent has looked at the times before it made the record.
    let looked = record.is_some() && child.since.get() != 0;
    let other_times = || !looked && process::are_other_times_here(arena.times());
    if process::has_other_numbers(arena) || other_times() {
        give_up(
            b"shmkit: a forked child is in another PID or time namespace than a pool; it exits\n",
        );
    }
    let Some(record) = record else {
        give_up(b"shmkit: a forked child has no record in a pool; it exits\n");
    };
    let since = child.since.get();
    let start = *start.get_or_insert_with(|| sys::process::start::own_start_since(since));
    if !process::become_child(arena, record, start) {
        // Its parent has died on the way, and was recovered. Nobody waits for this child.
        sys::process::exit_now(UNRECORDED);
    }
}

/// How a child ends that has no part in a pool (`EX_SOFTWARE`).
const UNRECORDED: i32 = 70;

/// Ends a child that must not live on with what it inherits.
fn give_up(why: &[u8]) -> ! {
    // SAFETY: writes readable bytes to standard error; the outcome does not matter.
    unsafe { libc::write(2, why.as_ptr().cast(), why.len()) };
    sys::process::exit_now(UNRECORDED);
}

/// Called by a child that ends in an orderly way, as the last thing before `_exit`: neither a panic
/// nor unwinding is allowed any more.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn child_ending() {
    if COUNT.load(Ordering::Relaxed) != 0 {
        await_children();
    }
    // Other threads may use what this process holds until it has ended.
    if !sys::process::task_count().is_ok_and(|tasks| tasks == 1) {
        return;
    }
    for arena in attached() {
        dispose::let_go_of_all(arena);
        thread::leave(arena);
        process::leave(arena);
    }
}

/// The child that had this pid has ended, in whatever way, and been reaped: the number may already
/// belong to another process.
pub(crate) fn child_reaped(pid: u32) {
    recover_children();
    for arena in attached() {
        for (index, record) in arena.processes() {
            let state = record.state();
            if record.pid.of(state.generation) != Some(pid) {
                continue;
            }
            if state.phase != ProcessPhase::Forking {
                // Somebody may have asked about it a moment ago, when it still lived.
                life::confirm_process(record, arena.times());
            } else if state.parent as usize == process::current_index(arena) {
                process::abort_child(arena, Tag::new(index, state.generation));
            }
        }
        recovery::poll(arena);
        dispose::reap_some(arena);
    }
}
