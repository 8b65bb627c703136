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
//! `spawn` sees that. Of a fork that somebody else makes, the handlers hear nothing but that they are
//! called in the parent. So the child gets the end of a pipe, which it closes once its records live:
//! when nobody has it, and a record is still FORKING, there is no child for that.

use std::cell::RefCell;
use std::io::{PipeReader, PipeWriter};
use std::sync::Once;
use std::sync::atomic::AtomicU64;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{dispose, handles, intents};
use crate::allocator;
use crate::engines::limbo;
use crate::layout::arena::Arena;
use crate::layout::{fingerprint, local};
use crate::participants::recovery::{self, Hooks};
use crate::participants::table::ProcessPhase;
use crate::participants::tag::Tag;
use crate::participants::{life, process, thread};
use crate::primitive::Ordering;
use crate::process::SpawnError;
use crate::process::hooks as process_hooks;
use crate::sys;

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// What a thread has while it forks.
struct Held {
    /// Keeps other threads from opening and dropping handles.
    holds: handles::Locked,
    /// Tells whether there is a child, if this is not a fork of ours.
    pipe: Option<(PipeReader, PipeWriter)>,
}

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

/// Whether there is certainly no child whose records do not live. Asked in the parent, once.
fn no_child_is_coming() -> bool {
    let pipe = HELD.try_with(|held| held.borrow_mut().as_mut()?.pipe.take());
    let Ok(Some((read, write))) = pipe else {
        return false;
    };
    drop(write);
    let mut ends = [PollFd::new(&read, PollFlags::empty())];
    let polled = poll(&mut ends, Some(&Timespec::default()));
    polled.is_ok() && ends[0].revents().contains(PollFlags::HUP)
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
    for arena in attached() {
        let record = pending(arena).swap(0, Ordering::Relaxed);
        forked_last(arena).store(record, Ordering::Relaxed);
    }
    if no_child_is_coming() {
        take_back(forked_last);
    }
    release_handles();
}

extern "C" fn in_child() {
    // The thread's table of slots is empty: the kernel has wiped it.
    let start = sys::process::own_start();
    for arena in attached() {
        local::of(arena).forget_leaked_guards();
        let mine = Tag::of_word(pending(arena).swap(0, Ordering::Relaxed));
        if mine.is_nobody() && !has_handles(arena) {
            local::of(arena).set_process(0);
        } else if mine.is_nobody() || !process::become_child(arena, mine, start) {
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
            if record.pid.get() != pid {
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
