//! What happens to pools when the process forks, whoever forks it.
//!
//! `pthread_atfork` handlers, installed with the first pool. Before: the child's record is made
//! in every pool (unless `spawn` has made it already, which can say why it cannot). In the child:
//! the records come to life, and whatever this process's copy of the parent's memory says about
//! slots is forgotten. A child for which there is no record exits at once: the handles that it
//! inherited would be nobody's.

use std::cell::RefCell;
use std::sync::MutexGuard;
use std::sync::Once;
use std::sync::atomic::AtomicU64;

use super::{dispose, handles, intents};
use crate::allocator;
use crate::engines::limbo;
use crate::layout::arena::Arena;
use crate::layout::{fingerprint, local};
use crate::participants::recovery::{self, Hooks};
use crate::participants::table::ProcessPhase;
use crate::participants::tag::Tag;
use crate::participants::{process, thread};
use crate::primitive::Ordering;
use crate::process::SpawnError;
use crate::process::hooks as process_hooks;
use crate::sys;

thread_local! {
    /// Keeps other threads from opening and dropping handles while this one forks.
    static HELD: RefCell<Option<MutexGuard<'static, Holds>>> = const { RefCell::new(None) };
}
type Holds = Option<std::collections::HashMap<(usize, usize), std::sync::Weak<handles::Hold>>>;

/// Teaches the layers below what this one does, and hooks into forks. Once a process.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Children must not draw different nonces.
        fingerprint::image_nonce();
        teach_recovery();
        process_hooks::install(process_hooks::Hooks {
            guards_held: thread::guards_held,
            before_fork,
            fork_failed,
            forked,
            child_ending,
            child_reaped,
        });
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

fn before_fork() -> Result<(), SpawnError> {
    keep_handles();
    for arena in attached() {
        let Some(child) = process::reserve_child(arena) else {
            take_back(pending);
            release_handles();
            return Err(SpawnError::NoProcessRecord);
        };
        pending(arena).store(child.word(), Ordering::Relaxed);
    }
    Ok(())
}

fn pending(arena: Arena) -> &'static AtomicU64 {
    &local::of(arena).pending_child
}

fn forked_last(arena: Arena) -> &'static AtomicU64 {
    &local::of(arena).forked_child
}

fn take_back(record: fn(Arena) -> &'static AtomicU64) {
    for arena in attached() {
        let child = Tag::of_word(record(arena).swap(0, Ordering::Relaxed));
        if !child.is_nobody() {
            process::abort_child(arena, child);
        }
    }
}

fn fork_failed() {
    take_back(pending);
    take_back(forked_last);
}

/// The last fork made this process: now its records can be told from others on their way.
fn forked(pid: u32) {
    for arena in attached() {
        let child = Tag::of_word(forked_last(arena).swap(0, Ordering::Relaxed));
        if !child.is_nobody() {
            let record = arena.process(child.slot());
            // The child stores the same once it lives.
            if record.state().generation == child.generation() {
                record.pid.store(pid.into(), Ordering::Relaxed);
            }
        }
    }
}

extern "C" fn prepare() {
    keep_handles();
    for arena in attached() {
        let pending = pending(arena);
        if pending.load(Ordering::Relaxed) == 0
            && let Some(child) = process::reserve_child(arena)
        {
            pending.store(child.word(), Ordering::Relaxed);
        }
    }
}

/// Keeps the process's other threads from opening and dropping handles, and from forking, until
/// this one has forked.
fn keep_handles() {
    // A fork during the destruction of thread-locals goes without.
    let _ = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        if held.is_none() {
            *held = Some(handles::lock());
        }
    });
}

fn release_handles() {
    let _ = HELD.try_with(|held| held.borrow_mut().take());
}

extern "C" fn in_parent() {
    for arena in attached() {
        let record = pending(arena).swap(0, Ordering::Relaxed);
        forked_last(arena).store(record, Ordering::Relaxed);
    }
    release_handles();
}

extern "C" fn in_child() {
    // The thread's table of slots is empty: the kernel has wiped it.
    for arena in attached() {
        local::of(arena).forget_leaked_guards();
        let mine = Tag::of_word(pending(arena).swap(0, Ordering::Relaxed));
        if mine.is_nobody() || !process::become_child(arena, mine) {
            const WHY: &[u8] = b"shmkit: a forked child has no record in a pool; it exits\n";
            // SAFETY: writes a constant to standard error; the outcome does not matter.
            unsafe { libc::write(2, WHY.as_ptr().cast(), WHY.len()) };
            sys::process::exit_now(70);
        }
    }
    release_handles();
}

/// A child ends in order.
fn child_ending() {
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

/// A child has ended, in whatever way.
fn child_reaped(pid: u32) {
    for arena in attached() {
        for (index, record) in arena.processes() {
            let state = record.state();
            if state.phase == ProcessPhase::Forking
                && state.parent as usize == process::current_index(arena)
                && record.pid.load(Ordering::Relaxed) == u64::from(pid)
            {
                process::abort_child(arena, Tag::new(index, state.generation));
            }
        }
        recovery::poll(arena);
        dispose::reap_some(arena);
    }
}
