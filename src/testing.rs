//! What the tests of this package ask for and do that no user may: the feature `testing`.

use crate::Pool;
use crate::layout::local;
use crate::primitive::Ordering;
use crate::sys::robust::{OWNER_DIED, RobustWord, TID, WAITERS};

/// Lets free memory age, as time does: what was dirty becomes aged, what was aged goes back to
/// the kernel.
pub fn age(pool: Pool) {
    let slot = crate::participants::thread::slot(pool.0).expect("a slot");
    crate::allocator::slice::age(pool.0, slot.tag(), false);
}
pub use crate::process::testing::Jobs;

/// Leaves the pool as a thread that ends does. The thread may come back.
pub fn leave(pool: Pool) {
    crate::participants::thread::leave(pool.0);
}

/// What this library does around a fork, step by step, for a fork that it does not notice by
/// itself.
pub mod forking {
    use crate::pool::fork;

    /// Before the fork: makes the child's records. Until [`in_parent`], the process's handles
    /// are locked.
    ///
    /// # Safety
    ///
    /// The thread forks now, and says so by [`in_parent`] and [`in_child`]; or it dies, or there is no child.
    pub unsafe fn before() {
        let made = fork::before_fork(false, false);
        assert!(made.is_ok(), "no record for a child");
    }

    /// After the fork, in the parent.
    pub fn in_parent() {
        fork::in_parent();
    }

    /// The parent has learned the pid of the child.
    ///
    /// # Safety
    ///
    /// It is the pid of the child, or of nobody.
    pub unsafe fn forked(pid: u32) {
        fork::forked(pid);
    }

    /// The parent has reaped the child.
    ///
    /// # Safety
    ///
    /// As for [`forked`], and the parent has.
    pub unsafe fn reaped(pid: u32) {
        fork::child_reaped(pid);
    }

    /// The number of records that are not free: those of processes and of children that are
    /// being forked.
    pub fn records(pool: crate::Pool) -> usize {
        let free = crate::participants::table::ProcessPhase::Free;
        let taken = pool.0.processes().filter(|(_, p)| p.state().phase != free);
        taken.count()
    }

    /// The child comes to life.
    ///
    /// # Safety
    ///
    /// The process is the one child that was forked after [`before`], by the thread that called it.
    pub unsafe fn in_child() {
        fork::in_child();
    }

    /// The child ends in order.
    ///
    /// # Safety
    ///
    /// The child uses nothing of its pools any more.
    pub unsafe fn ending() {
        fork::child_ending();
    }
}

/// Settles the dead, which is all that others wait for, and leaves their memory as it is, as a
/// thread that waits does.
pub fn settle(pool: Pool) {
    crate::participants::recovery::settle_all(pool.0);
}

/// A letter per slice: `.` for a free one, `s` and `r` for the first of a span and of a run,
/// `t` for their other slices, `k` for the first of a run that is kept, and `A` to `Z` for one
/// that is claimed by slot 1 to 26.
pub fn slices(pool: Pool) -> String {
    use crate::allocator::slice::{self, State};
    let tags = (0..pool.0.slices()).map(|slice| pool.0.tag(slice).load(Ordering::Relaxed));
    let letter = |tag| match slice::state(tag) {
        State::Free { .. } => '.',
        State::Span { .. } => 's',
        State::Run { .. } => 'r',
        State::Kept { .. } => 'k',
        State::Tail { .. } => 't',
        State::Claimed { owner, .. } => ('A'..='Z').nth(owner.slot() - 1).unwrap_or('?'),
        State::Garbage => '?',
    };
    tags.map(letter).collect()
}

/// Refuses every block of a guarded pool after that many have been granted; with `None`,
/// refuses none.
pub fn refuse_blocks(granted: Option<usize>) {
    crate::sys::refusal::BLOCKS.after(granted);
}

/// Refuses all memory that pools of this process commit after that many commits; with `None`,
/// refuses none.
pub fn refuse_commits(granted: Option<usize>) {
    crate::sys::refusal::COMMITS.after(granted);
}

/// What the number of the pool's descriptor stands for by now is the pool's file from here on.
pub fn has_another_file(pool: Pool) {
    let noted = local::of(pool.0).file().note(pool.fd());
    noted.expect("an open descriptor");
}

/// The bytes of address space that the pool has.
pub fn mapped_len(pool: Pool) -> usize {
    local::of(pool.0).len()
}

/// How many links lead to each live object.
pub fn link_counts(pool: Pool) -> Vec<u32> {
    (0..pool.0.object_count())
        .filter_map(|i| pool.0.object(i))
        .filter(|entry| entry.state().phase == crate::pool::objects::ObjectPhase::Live)
        .map(|entry| crate::participants::detect::value(entry.links.load(Ordering::SeqCst)))
        .collect()
}

/// The bytes that the chunks of a buffer take. Nobody else uses the buffer meanwhile.
pub fn buffer_memory(buffer: &crate::Buffer) -> usize {
    buffer.memory()
}

/// Several participants played by one thread, for the fuzzer, and their deaths.
#[cfg(fuzzing)]
pub mod participants {
    use crate::Pool;
    use crate::participants::table::{Slot, SlotPhase};
    use crate::participants::thread;
    use crate::primitive::{Killed, Ordering, kill_after};
    use crate::sys::robust::TID;

    /// A participant. It has a slot from the first time that it acts.
    #[allow(missing_debug_implementations, reason = "for the fuzzer alone")]
    pub struct Participant(Option<&'static Slot>);

    /// Does what the kernel does when a thread that has this slot dies: marks the life words
    /// that it holds, which are its own and that of a dead participant that it was recovering.
    fn mark_held(pool: Pool, slot: &Slot) {
        let tid = crate::sys::process::tid();
        for (_, other) in pool.0.slots() {
            let held = other.life.word.load(Ordering::Relaxed) & TID == tid;
            let lives = other.state().phase == SlotPhase::Live;
            if held && (!lives || std::ptr::eq(slot, other)) {
                // SAFETY: held by this thread, as the word says.
                unsafe { other.life.give_back_marked() };
            }
        }
    }

    impl Participant {
        /// Not in the pool yet.
        ///
        /// # Safety
        ///
        /// What it is doing when it is killed concerns the pool alone: whatever it has on the
        /// stack, a guard or `&mut`, is not used any more, although the thread goes on.
        pub const unsafe fn new() -> Participant {
            Participant(None)
        }

        /// Does something as this participant, which is killed before its write number `writes`
        /// from here, if that is given. Returns `None` if it was killed; it has no slot then.
        pub fn act<R>(
            &mut self,
            pool: Pool,
            writes: Option<usize>,
            does: impl FnOnce() -> R,
        ) -> Option<R> {
            thread::play(pool.0, self.0);
            let slot = thread::slot(pool.0).expect("the pool has room for its participants");
            let guards = thread::guards(pool.0);
            kill_after(writes);
            let does = std::panic::AssertUnwindSafe(does);
            let done = std::panic::catch_unwind(does);
            kill_after(None);
            thread::play(pool.0, None);
            self.0 = done.is_ok().then_some(slot);
            match done {
                Ok(result) => Some(result),
                Err(killed) if killed.is::<Killed>() => {
                    thread::set_guards(pool.0, guards);
                    let state = slot.state();
                    // A participant that was leaving may have left.
                    if state.phase == SlotPhase::Live {
                        slot.turn(state, state.with(SlotPhase::Dead));
                    }
                    mark_held(pool, slot);
                    None
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }

        /// Leaves the pool, as a thread that ends does, or is killed as in
        /// [`Participant::act`]. Returns `None` if it was killed.
        pub fn leave(&mut self, pool: Pool, writes: Option<usize>) -> Option<()> {
            let left = match self.0 {
                Some(_) => self.act(pool, writes, || thread::leave(pool.0)),
                None => Some(()),
            };
            self.0 = None;
            left
        }
    }
}

/// Slots and records without an owner that nobody can claim, because something is left to be
/// done for their last owners.
#[must_use]
pub fn stuck(pool: Pool) -> (usize, usize) {
    use crate::participants::table::{ProcessPhase, SlotPhase};
    let is_taken = |life: &RobustWord| life.word.load(Ordering::Relaxed) != 0;
    let slots = pool.0.slots().filter(|(_, slot)| match slot.state().phase {
        SlotPhase::Free => is_taken(&slot.life),
        SlotPhase::Dead | SlotPhase::Settled => true,
        SlotPhase::Live | SlotPhase::Parked => false,
    });
    let records = pool
        .0
        .processes()
        .filter(|(_, record)| match record.state().phase {
            ProcessPhase::Free => is_taken(&record.life),
            ProcessPhase::Forking | ProcessPhase::Dead | ProcessPhase::Aborted => true,
            ProcessPhase::Live => false,
        });
    (slots.count(), records.count())
}

/// Does to the pool what the kernel does when the thread with that tid dies.
///
/// # Safety
///
/// The thread is dead, or never again uses what it has of the pool: others take that over.
pub unsafe fn mark_dead(pool: Pool, tid: u32) {
    let mark = |life: &RobustWord| {
        let word = life.word.load(Ordering::Relaxed);
        if word & TID == tid && word & OWNER_DIED == 0 {
            life.word
                .store(word & WAITERS | OWNER_DIED, Ordering::SeqCst);
        }
    };
    pool.0.slots().for_each(|(_, slot)| mark(&slot.life));
    pool.0.processes().for_each(|(_, record)| {
        if record.life.word.load(Ordering::Relaxed) & TID == tid {
            // The process itself may only be stopped: let its pid seem to be another process's.
            record.start.store(1, Ordering::Relaxed);
        }
        mark(&record.life);
    });
}
