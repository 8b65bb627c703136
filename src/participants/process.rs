//! This process's record in each pool, and what becomes of it at a fork.
//!
//! A child gets a record of its own before it exists: the parent makes one in phase FORKING, copies
//! its own holds into it, and forks; then the child turns it LIVE. So the objects that the child
//! inherits are held at every moment, whichever of the two is killed, and when.
//!
//! | killed | leaves | repaired by |
//! |--------|--------|-------------|
//! | parent before the fork | a FORKING record without a child | recovery of the parent aborts it |
//! | parent after the fork  | a FORKING record, a child on its way | recovery aborts it or the child turns it LIVE: one exchange decides; an aborted child exits |
//! | child before LIVE | a FORKING record without a child | the parent aborts it when it reaps the child, or looks (`pool/fork.rs`); or recovery of the parent does |
//! | (a fork that fails) | a FORKING record without a child | the parent aborts it at once |
//! | either later | its LIVE record | recovery |

use crate::layout::arena::{Arena, HOLDS, PROCESSES};
use crate::layout::local;
use crate::participants::lock::TICK;
use crate::participants::recovery;
use crate::participants::table::{HOLD_WORDS, Process, ProcessPhase, ProcessState};
use crate::participants::tag::Tag;
use crate::primitive::Ordering;
use crate::sys;
use crate::sys::futex;
use crate::sys::memory::CommitError;
use crate::sys::robust::{OWNER_DIED, RobustWord, TID};
use crate::sys::thread_lock::ThreadLock;

/// This process's record, made now if need be.
pub(crate) fn current(arena: Arena) -> Option<Tag> {
    keep_life(arena);
    known(arena).or_else(|| make(arena))
}

/// Takes this process's life word if it is marked because the thread that had it has ended:
/// otherwise all others would have to ask the system, again and again, whether the process lives.
///
/// Killed anywhere: the word is marked.
pub(crate) fn keep_life(arena: Arena) {
    let Some(tag) = known(arena) else { return };
    let record = arena.process(tag.slot());
    let word = record.life.word.load(Ordering::Acquire);
    // Nobody else takes it for good: this process is not dead.
    if word & OWNER_DIED != 0 && record.life.acquire(word).unwrap_or(false) {
        record
            .holder
            .store(sys::process::tid().into(), Ordering::Release);
    }
}

/// One thread of the process at a time: a process must not have two records.
#[cold]
fn make(arena: Arena) -> Option<Tag> {
    static ONE: ThreadLock = ThreadLock::new();
    ONE.lock();
    let tag = known(arena).or_else(|| {
        let tag = claim(arena)?;
        local::of(arena).set_process(tag.word());
        Some(tag)
    });
    ONE.unlock();
    tag
}

/// This process's record, if it has one.
fn known(arena: Arena) -> Option<Tag> {
    let known = Tag::of_word(local::of(arena).process());
    // If the pid differs, we are a child of a fork that no handler saw, and the record is our
    // parent's.
    let ours = |tag: &Tag| arena.process(tag.slot()).pid.get() == sys::process::pid();
    (!known.is_nobody()).then_some(known).filter(ours)
}

/// The index of this process's record; 0 if it has none.
pub(crate) fn current_index(arena: Arena) -> usize {
    Tag::of_word(local::of(arena).process()).slot()
}

/// Also `None` where process numbers, or start times, mean something else than in the pool: nobody
/// there could tell whether this process lives, and it could not tell whether they do.
fn claim(arena: Arena) -> Option<Tag> {
    let numbers = arena.header().pid_namespace.load(Ordering::Relaxed);
    if sys::process::pid_namespace().ok() != Some(numbers) || are_other_times_here(arena.times()) {
        return None;
    }
    find(arena, true, |record, free| {
        let live = ProcessState {
            phase: ProcessPhase::Live,
            parent: 0,
            generation: free.generation + 1,
        };
        describe(record, live.generation, sys::process::own_start());
        record.turn(free, live)
    })
}

/// `start` is the calling process's.
#[unsafe(link_section = ".shmkit.child")]
fn describe(record: &Process, generation: u64, start: u64) {
    record.start.store(0, Ordering::Relaxed);
    record.asked.forget();
    record
        .holder
        .store(sys::process::tid().into(), Ordering::Relaxed);
    record.pid.set(generation, sys::process::pid());
    record.start.store(start, Ordering::Release);
}

/// Finds a free record that `take` turns to another state: among those that exist, among the dead
/// once they are recovered, and among new ones. The record's life word is held meanwhile, so that
/// nobody else claims it, and also afterwards if `stays_held` is true.
fn find(
    arena: Arena,
    stays_held: bool,
    take: impl Fn(&Process, ProcessState) -> bool,
) -> Option<Tag> {
    let take = |index: usize| {
        let record = arena.process(index);
        if record.state().phase != ProcessPhase::Free || !record.life.acquire(0).unwrap_or(false) {
            return None;
        }
        let free = record.state();
        let taken = free.phase == ProcessPhase::Free && take(record, free);
        if !taken || !stays_held {
            // SAFETY: acquired above.
            unsafe { record.life.release() };
        }
        taken.then(|| Tag::new(index, free.generation + 1))
    };
    let max = arena.header().max_processes();
    let mut attempt = 0;
    while attempt < 3 {
        let count = arena.process_count();
        let found = (1..count).find_map(take);
        if found.is_some() {
            return found;
        }
        let watermark = &arena.header().watermarks.processes;
        if count < max && arena.raise(PROCESSES, watermark, count.max(1) + 1).is_ok() {
            // This is not an attempt: others may take what is added, until there are `max`.
            continue;
        }
        if attempt > 0 {
            recovery::confirm_all(arena);
        }
        recovery::poll(arena);
        attempt += 1;
    }
    None
}

/// Commits the record's row of holds for `objects` objects.
pub(crate) fn commit_holds(arena: Arena, index: usize, objects: usize) -> Result<(), CommitError> {
    const BITS: usize = 4096 * 8;
    if objects <= HOLD_WORDS * 64 {
        return Ok(());
    }
    let record = arena.process(index);
    let wanted = objects.next_multiple_of(BITS).min(HOLDS.entry * 8);
    let held = arena.held(index);
    if wanted > held {
        arena.commit(
            HOLDS.offset + index * HOLDS.entry + held / 8,
            (wanted - held) / 8,
        )?;
        record.held.fetch_max(wanted as u64, Ordering::AcqRel);
    }
    Ok(())
}

/// Makes a record for a child that is about to be forked, which holds all that this process holds.
/// The caller keeps other threads from changing the holds until the fork is done.
pub(crate) fn reserve_child(arena: Arena) -> Option<Tag> {
    let me = current(arena)?.slot();
    let child = find(arena, false, |record, free| {
        let forking = ProcessState {
            phase: ProcessPhase::Forking,
            parent: me as u16,
            generation: free.generation + 1,
        };
        record.pid.set(forking.generation, 0);
        record.turn(free, forking)
    })?;
    if copy_holds(arena, me, child.slot()).is_err() {
        abort_child(arena, child);
        return None;
    }
    Some(child)
}

fn copy_holds(arena: Arena, me: usize, child: usize) -> Result<(), CommitError> {
    let held = arena.held(me);
    commit_holds(arena, child, held)?;
    for (from, to) in arena.hold_row(me).zip(arena.hold_row(child)) {
        let bits = from.load(Ordering::Relaxed);
        if bits != 0 {
            to.store(bits, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Takes a child's record back: there is no child, or it died before it came to life.
pub(crate) fn abort_child(arena: Arena, child: Tag) {
    let state = arena.process(child.slot()).state();
    if state.generation == child.generation() && state.phase == ProcessPhase::Forking {
        recovery::abort(arena, child.slot(), state);
    }
}

/// Whether this process, a child of one that takes part, was forked into another PID namespace: the
/// question that [`claim`] asks, at less cost.
pub(crate) fn has_other_numbers(arena: Arena) -> bool {
    let numbers = arena.header().pid_namespace.load(Ordering::Relaxed);
    // A parent in an outer namespace is not visible.
    rustix::process::getppid().is_none() && sys::process::pid_namespace().ok() != Some(numbers)
}

/// Whether start times mean something else to this thread than in a pool of that time namespace. A
/// thread that cannot read its time namespace cannot read start times either, and draws no
/// conclusions from them.
pub(crate) fn are_other_times_here(times: u64) -> bool {
    times != 0 && are_other_times(times, sys::process::time_namespace()).unwrap_or(false)
}

/// Whether a time namespace differs from a pool's, if both are known.
pub(crate) fn are_other_times(times: u64, namespace: Option<u64>) -> Option<bool> {
    namespace.filter(|_| times != 0).map(|other| other != times)
}

/// In the child: turns its record LIVE. False if it was aborted: then nothing that the child
/// inherited is its own, and it must exit. `start` is this process's.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn become_child(arena: Arena, child: Tag, start: u64) -> bool {
    let record = arena.process(child.slot());
    loop {
        let state = record.state();
        if state.phase != ProcessPhase::Forking || state.generation != child.generation() {
            return false;
        }
        let Some(word) = word_of_nobody(&record.life) else {
            continue;
        };
        match record.life.acquire(word) {
            Ok(true) => break,
            Ok(false) => {}
            Err(_) => return false,
        }
    }
    describe(record, child.generation(), start);
    let state = record.state();
    let live = ProcessState {
        phase: ProcessPhase::Live,
        parent: 0,
        generation: child.generation(),
    };
    let mine = state.phase == ProcessPhase::Forking && state.generation == child.generation();
    if mine && record.turn(state, live) {
        local::of(arena).set_process(child.word());
        true
    } else {
        // SAFETY: acquired above.
        unsafe { record.life.release() };
        false
    }
}

/// The word, if nobody alive has it; otherwise sleeps. A thread that looks for a free record has
/// the word of another for a moment; or, if it is stopped then, until it goes on or dies.
fn word_of_nobody(life: &RobustWord) -> Option<u32> {
    let word = life.word.load(Ordering::Acquire);
    if word & TID == 0 {
        return Some(word);
    }
    let word = life.ask_for_wake();
    if word & TID != 0 {
        futex::wait(&life.word, word, TICK);
    }
    None
}

/// Called when the pool is about to be unmapped: this thread's robust list must not lead there. If
/// the process stays, slow checks find out about its end.
pub(crate) fn give_up_life(arena: Arena) {
    let index = current_index(arena);
    if index == 0 {
        return;
    }
    let life = &arena.process(index).life;
    if life.word.load(Ordering::Relaxed) & TID == sys::process::tid() {
        // SAFETY: the word holds this thread's tid.
        unsafe { life.release() };
    }
}

/// Leaves the pool, of which the process no longer uses or holds anything. A process that has
/// leaked guards stays: its record is recovered once it is dead.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn leave(arena: Arena) {
    let known = Tag::of_word(local::of(arena).process());
    if known.is_nobody() || local::of(arena).leaked_guards() != 0 {
        return;
    }
    local::of(arena).set_process(0);
    let record = arena.process(known.slot());
    recovery::abort_children(arena, known.slot());
    // Only if there are holds is a walk asked for, to find what nobody holds any more.
    if arena
        .hold_row(known.slot())
        .any(|word| word.load(Ordering::Relaxed) != 0)
    {
        recovery::drop_holds(arena, known.slot());
    }
    let state = record.state();
    let free = ProcessState {
        phase: ProcessPhase::Free,
        parent: 0,
        ..state
    };
    record.turn(state, free);
    if record.life.word.load(Ordering::Relaxed) & TID == sys::process::tid() {
        // SAFETY: the word holds this thread's tid.
        unsafe { record.life.release() };
    } else {
        // The thread that took it may have ended.
        recovery::recover_process(arena, known.slot());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::participants::life::tests::zeroed;

    #[test]
    fn who_waits_for_a_life_word_sleeps() {
        let life: &RobustWord = zeroed();
        assert!(life.acquire(0).unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            tell.send(sys::process::tid()).unwrap();
            while word_of_nobody(life).is_none() {}
        });
        let tid = told.recv().unwrap();
        let sleeps = format!("{} {:p} ", libc::SYS_futex, &raw const life.word);
        let path = format!("/proc/self/task/{tid}/syscall");
        let begun = std::time::Instant::now();
        while !std::fs::read_to_string(&path).unwrap().starts_with(&sleeps) {
            assert!(begun.elapsed().as_secs() < 10, "it never sleeps");
        }
        // SAFETY: acquired above.
        unsafe { life.release() };
        waiter.join().unwrap();
    }
}
