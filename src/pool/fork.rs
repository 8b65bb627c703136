//! What happens to pools when the process forks, whoever forks it.
//!
//! `pthread_atfork` handlers, installed with the first pool. Before: the child's record is made
//! in every pool (unless `spawn` has made it already, which can say why it cannot). In the child:
//! the records come to life, and whatever this process's copy of the parent's memory says about
//! slots is forgotten. A child for which there is no record, and which has inherited handles, exits at
//! once: they would be nobody's. Without handles it makes its record when it needs one, as in a pool that
//! its parent used for the first time between `prepare` and the fork.
//!
//! # A fork that fails
//!
//! `spawn` sees that, and reaps its child. Of a fork that somebody else makes, the handlers hear nothing
//! but that they are called in the parent. So the child gets the end of a pipe, which it closes once its
//! records live: when nobody has it, and a record is still FORKING, there is no child for that. The parent
//! looks at once, for a fork that has failed, and for children that were killed on their way when it forks
//! again, reaps one of its own, or is asked to recover the pool.

use std::cell::{Cell, RefCell};
use std::io::{PipeReader, PipeWriter};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, Once, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{dispose, handles, intents};
use crate::allocator;
use crate::engines::limbo;
use crate::layout::arena::{Arena, GRANULES};
use crate::layout::{fingerprint, local};
use crate::participants::recovery::{self, Hooks};
use crate::participants::table::ProcessPhase;
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::participants::{life, process, thread};
use crate::primitive::Ordering;
use crate::sys;

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
    /// The records made for the child of the thread's last fork, as tags, by the pools' granules. Other
    /// threads may fork as soon as the handles are released, before this one hears how its fork went.
    static FORKED: Cell<[u64; GRANULES]> = const { Cell::new([0; GRANULES]) };
}

/// What a thread has while it forks.
struct Held {
    /// Keeps other threads from opening and dropping handles.
    holds: handles::Locked,
    /// Tells whether there is a child, if this is not a fork of ours.
    pipe: Option<(PipeReader, PipeWriter)>,
}

/// A child of somebody else's fork whose records do not live yet.
struct OnItsWay {
    /// Nobody has the other end once they do, or once there is no child.
    pipe: PipeReader,
    /// Its records, as tags, by the pools' granules.
    records: [u64; GRANULES],
}

/// So many are remembered. The records of one more stay until this process ends, if it is killed.
const MANY: usize = 16;

/// Used by who keeps the [handles](handles::lock), so that nobody has it while another forks.
static ON_THEIR_WAY: Mutex<Vec<OnItsWay>> = Mutex::new(Vec::new());

/// Teaches the layers below what this one does, and hooks into forks. Once a process.
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

/// Teaches recovery what the layers above it do for the dead.
pub(crate) fn teach_recovery() {
    recovery::install(Hooks {
        resolve: intents::resolve,
        leave: |arena, slot| {
            limbo::collect(arena, slot);
            limbo::leave(arena, slot);
        },
        release_memory: allocator::recover::release_all,
        release_own: allocator::recover::release_own,
        reap: dispose::reap,
    });
}

fn attached() -> impl Iterator<Item = Arena> {
    local::mapped().filter(|&a| local::of(a).process() != 0)
}

/// Makes the records of the child that this thread is about to fork. An error cancels the fork; else it
/// follows, and [`forked`] or [`fork_failed`].
pub(crate) fn before_fork() -> Result<(), NoSlot> {
    if attached().next().is_none() {
        return Ok(());
    }
    keep_handles();
    for arena in attached() {
        let Some(child) = process::reserve_child(arena) else {
            take_back(|arena| pending(arena).swap(0, Ordering::Relaxed));
            release_handles();
            return Err(NoSlot);
        };
        pending(arena).store(child.word(), Ordering::Relaxed);
    }
    Ok(())
}

fn pending(arena: Arena) -> &'static AtomicU64 {
    &local::of(arena).pending_child
}

/// Takes records back for which there is no child.
fn take_back(record_of: impl Fn(Arena) -> u64) {
    for arena in attached() {
        let child = Tag::of_word(record_of(arena));
        if !child.is_nobody() {
            process::abort_child(arena, child);
        }
    }
}

/// The fork that [`before_fork`] prepared made no process.
pub(crate) fn fork_failed() {
    let records = FORKED.replace([0; GRANULES]);
    take_back(|arena| records[arena.granule()]);
}

/// The last fork made this process: now its records can be told from others on their way.
pub(crate) fn forked(pid: u32) {
    let records = FORKED.replace([0; GRANULES]);
    for arena in attached() {
        let child = Tag::of_word(records[arena.granule()]);
        if !child.is_nobody() {
            // The child stores the same once it lives.
            arena
                .process(child.slot())
                .pid
                .note(child.generation(), pid);
        }
    }
}

extern "C" fn prepare() {
    keep_handles();
    take_back_of_the_killed();
    let mut made = false;
    for arena in attached() {
        let pending = pending(arena);
        if pending.load(Ordering::Relaxed) == 0
            && let Some(child) = process::reserve_child(arena)
        {
            pending.store(child.word(), Ordering::Relaxed);
            made = true;
        }
    }
    if made {
        // For want of descriptors: the record of a child that is not made stays until this process ends.
        let pipe = std::io::pipe().ok();
        let _ = HELD.try_with(|held| {
            if let Some(held) = &mut *held.borrow_mut() {
                held.pipe = pipe;
            }
        });
    }
}

/// Keeps the process's other threads from opening and dropping handles, and from forking, until
/// this one has forked.
fn keep_handles() {
    // A fork during the destruction of thread-locals goes without.
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

/// Takes the records back of those that were killed on their way, and forgets those that have come to
/// life. The caller keeps the handles.
fn take_back_of_the_killed() {
    on_their_way().retain(|child| {
        let ended = nobody_has_the_other_end(&child.pipe);
        let records = attached().map(|arena| (arena, child.records[arena.granule()]));
        for (arena, record) in records.filter(|&(_, record)| ended && record != 0) {
            // Only of those that do not live.
            process::abort_child(arena, Tag::of_word(record));
        }
        !ended
    });
}

/// The same, for who does not keep the handles.
pub(super) fn recover_children() {
    let handles = handles::lock();
    take_back_of_the_killed();
    drop(handles);
}

/// The pool is about to be unmapped: the next one at its place has other records.
pub(super) fn forget(arena: Arena) {
    let handles = handles::lock();
    for child in on_their_way().iter_mut() {
        child.records[arena.granule()] = 0;
    }
    drop(handles);
}

fn nobody_has_the_other_end(pipe: &PipeReader) -> bool {
    let mut end = [PollFd::new(pipe, PollFlags::empty())];
    let polled = poll(&mut end, Some(&Timespec::default()));
    polled.is_ok() && end[0].revents().contains(PollFlags::HUP)
}

/// Whether this process has handles of objects in the pool; asked while it forks.
fn has_handles(arena: Arena) -> bool {
    // During the destruction of thread-locals nobody knows.
    HELD.try_with(|held| match &*held.borrow() {
        Some(held) => handles::any_in(arena, &held.holds),
        None => true,
    })
    .unwrap_or(true)
}

extern "C" fn in_parent() {
    let mut records = [0; GRANULES];
    for arena in attached() {
        records[arena.granule()] = pending(arena).swap(0, Ordering::Relaxed);
    }
    FORKED.set(records);
    let pipe = HELD.try_with(|held| held.borrow_mut().as_mut()?.pipe.take());
    if let Ok(Some((pipe, for_the_child))) = pipe {
        drop(for_the_child);
        let mut all = on_their_way();
        if all.len() < MANY {
            all.push(OnItsWay { pipe, records });
        }
        drop(all);
        take_back_of_the_killed();
    }
    release_handles();
}

extern "C" fn in_child() {
    // Held if somebody has it, as a fork during the destruction of thread-locals does not keep him away.
    if let Ok(mut siblings) = ON_THEIR_WAY.try_lock() {
        siblings.clear();
    }
    // The thread's table of slots is empty: the kernel has wiped it.
    let start = sys::process::own_start();
    for arena in attached() {
        local::of(arena).forget_leaked_guards();
        let mine = Tag::of_word(pending(arena).swap(0, Ordering::Relaxed));
        if mine.is_nobody() && !has_handles(arena) {
            local::of(arena).set_process(0);
        } else if process::is_in_another_namespace(arena) {
            give_up(b"shmkit: a forked child is in another PID or time namespace than a pool; it exits\n");
        } else if mine.is_nobody() || !process::become_child(arena, mine, start) {
            give_up(b"shmkit: a forked child has no record in a pool; it exits\n");
        }
    }
    release_handles();
}

/// Ends a child that must not live on with what it inherits.
fn give_up(why: &[u8]) -> ! {
    // SAFETY: writes readable bytes to standard error; the outcome does not matter.
    unsafe { libc::write(2, why.as_ptr().cast(), why.len()) };
    sys::process::exit_now(70);
}

/// Called by a child that ends in order, as the last thing before `_exit`: neither a panic nor an unwinding is
/// allowed any more.
pub(crate) fn child_ending() {
    // Other threads may be using what this process holds, until it has ended.
    if !sys::process::task_count().is_ok_and(|tasks| tasks == 1) {
        return;
    }
    for arena in attached() {
        dispose::let_go_of_all(arena);
        thread::leave(arena);
        process::leave(arena);
    }
}

/// The child that had this pid has ended, in whatever way, and been reaped: the number may already be another's.
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
                life::confirm_process(record);
            } else if state.parent as usize == process::current_index(arena) {
                process::abort_child(arena, Tag::new(index, state.generation));
            }
        }
        recovery::poll(arena);
        dispose::reap_some(arena);
    }
}
