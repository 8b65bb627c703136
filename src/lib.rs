//! Shared-memory data structures whose users may be killed at any instruction.
//!
//! A [`Pool`] is memory that several processes have mapped at the same address. It hosts an
//! allocator, locks ([`sync`]), containers and objects of your own types (`#[derive(ShmSafe)]`),
//! used from every process through ordinary references: [`Array`], [`Matrix`], [`SharedCell`],
//! [`HashMap`], [`MultiMap`], [`Queue`], [`Mailbox`], [`Buffer`], [`Heap`]. [`process::scope`] starts
//! worker processes; [`process::run`] is a master whose workers start one another. A worker that is
//! killed, at whatever instruction, leaves nothing locked, torn or leaked; whoever meets what it
//! held takes it over. The feature `cli` builds the command `shmkit`, which lists, inspects and
//! removes pools.
//!
//! ```
//! use shmkit::process::scope;
//! use shmkit::sync::Mutex;
//! use shmkit::Pool;
//!
//! let pool = Pool::builder().create()?;
//! let total = pool.create(Mutex::new(0_u64))?;
//! scope(|s| {
//!     for worker in 1..=4 {
//!         let total = &total;
//!         s.spawn(move || *total.lock().unwrap() += worker).unwrap();
//!     }
//! });
//! assert_eq!(*total.lock().unwrap(), 10);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layers
//!
//! Imports point downward only. [`guide::design`] says why things are as they are,
//! [`guide::recovery`] what a kill leaves, operation by operation, and [`guide::tutorial`] how to
//! begin.
//!
//! ```text
//! inspect        reports: who has how much, what lies where, what leaks
//! numbers        matrices and arrays as other programs know them: offset, shape, strides, dtype
//! process        scope, spawn, join; run, a master, its workers, peers
//! containers     Shared, Handle, Link, Array, Matrix, SharedCell, HashMap, MultiMap, Queue,
//!                Mailbox, Buffer, Heap, Foreign
//! sync           Mutex, ReentrantMutex, RecoverableMutex, RwLock, Condvar, Semaphore, Barrier, Event
//! private        the allocator over private memory, for a whole program
//! pool           create, attach, objects, names
//! engines        what every process knows of containers: recovery, destruction, check
//! allocator      slices, spans, runs, growth
//! participants   who is attached, who lives, recovery of the dead
//! layout         where things lie, what types look like
//! protocol       the steps on shared words that the models check
//! sys            the only code that talks to the kernel
//! primitive      atomics: std's, or loom's for the models
//! ```

#[cfg(not(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
)))]
compile_error!("shmkit is for 64-bit little-endian Linux");

// The derive macros' output says `::shmkit`, also in this crate.
extern crate self as shmkit;

#[cfg(not(shmkit_loom))]
mod allocator;
#[cfg(not(shmkit_loom))]
mod containers;
#[cfg(not(shmkit_loom))]
mod engines;
#[cfg(not(shmkit_loom))]
pub mod inspect;
#[cfg(not(shmkit_loom))]
pub mod layout;
#[cfg(not(shmkit_loom))]
pub mod numbers;
#[cfg(not(shmkit_loom))]
mod participants;
#[cfg(not(shmkit_loom))]
mod pool;
#[cfg(not(shmkit_loom))]
mod private;
#[cfg(not(shmkit_loom))]
pub mod process;
#[cfg(not(shmkit_loom))]
pub mod sync;
#[cfg(not(shmkit_loom))]
mod sys;

// All that there is for the models of `tests/loom`.
#[cfg(not(shmkit_loom))]
mod primitive;
#[cfg(shmkit_loom)]
#[doc(hidden)]
pub mod primitive;
#[cfg(not(shmkit_loom))]
mod protocol;
#[cfg(shmkit_loom)]
#[doc(hidden)]
pub mod protocol;

#[cfg(not(shmkit_loom))]
pub use exports::*;

/// The README's example compiles and runs.
#[cfg(all(doctest, not(shmkit_loom)))]
#[doc = include_str!("../README.md")]
mod readme {}

/// So do those of the document on NumPy.
#[cfg(all(doctest, not(shmkit_loom)))]
#[doc = include_str!("../docs/numpy.md")]
mod numpy {}

/// Documents that lie beside the code. The examples of the tutorial are run as tests.
#[cfg(all(any(doc, doctest), not(shmkit_loom)))]
pub mod guide {
    #[doc = include_str!("../docs/tutorial.md")]
    pub mod tutorial {}

    #[doc = include_str!("../docs/design.md")]
    pub mod design {}

    #[doc = include_str!("../docs/recovery.md")]
    pub mod recovery {}
}

/// What the crate's root offers.
#[cfg(not(shmkit_loom))]
mod exports {
    pub use crate::allocator::check::CheckReport;
    pub use crate::allocator::stats::{ClassStats, RetiredStats, Stats};
    pub use crate::allocator::{AllocError, FreeError, ReallocError};
    pub use crate::containers::NamedError;
    pub use crate::containers::{
        AppendError, Array, Bindings, Buffer, ByteChunks, BytesView, ChangeError, Claim,
        ClaimError, ClaimMut, CompareError, ElementError, Foreign, Handle, HandleError, HashMap,
        Iter, Key, Link, LinkError, Matrix, MultiMap, PoolAlloc, Position, RangeError, Reader,
        ResizeError, RowBand, RowBandMut, Rows, RowsMut, ShapeError, Shared, SharedCell,
        StoreError, View, Writer,
    };
    pub use crate::containers::{
        Collected, Gc, Heap, HeapError, HeapStats, HeapView, Managed, Trace, Tracer, Tx,
    };
    pub use crate::containers::{FoldHash, KeyHasher, MapEntry, ModifyEntry, SipHash13};
    pub use crate::containers::{Lease, PopError, PushError, PushRefusal, Queue, Snapshot};
    pub use crate::containers::{Mailbox, Receiver, ReceiverError, RecvError};
    pub use crate::layout::{KillSafe, Movable, ShmSafe, TypeInfo};
    pub use crate::participants::thread::NoSlot;
    pub use crate::pool::{
        AttachError, CreateError, GrowError, ObjectError, OutOfMemory, Pool, PoolBuilder,
        RecoverySummary, TypeError, UnlinkError,
    };
    pub use crate::private::PrivateAlloc;
    pub use crate::sync::{
        Barrier, Condvar, Event, LockError, Mutex, MutexGuard, Orphan, Permit, Recover,
        RecoverableMutex, ReentrantMutex, RwLock, Semaphore,
    };
    pub use crate::sys::memory::CommitError;
    /// ```
    /// use shmkit::{HashMap, Key, Pool, ShmSafe};
    ///
    /// #[derive(Clone, Copy, ShmSafe, Key)]
    /// struct Square {
    ///     row: u8,
    ///     column: u8,
    /// }
    ///
    /// let pool = Pool::builder().create()?;
    /// let pieces = pool.create(HashMap::<Square, char>::new())?;
    /// pieces.insert(&Square { row: 0, column: 4 }, 'K')?;
    /// assert_eq!(pieces.get_copied(&Square { row: 0, column: 4 }), Some('K'));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub use shmkit_derive::Key;
    /// ```
    /// use shmkit::{Array, KillSafe, Pool, ShmSafe};
    ///
    /// #[derive(Clone, Copy, ShmSafe, KillSafe)]
    /// struct Point {
    ///     x: f64,
    ///     y: f64,
    /// }
    ///
    /// let pool = Pool::builder().create()?;
    /// let points = Array::filled_in(pool, 10, Point { x: 0.0, y: 0.0 })?;
    /// points.set(3, Point { x: 1.0, y: 2.0 })?;
    /// assert_eq!(points.get(3)?.y, 2.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub use shmkit_derive::KillSafe;
    /// ```
    /// use shmkit::{Pool, ShmSafe};
    ///
    /// #[derive(ShmSafe)]
    /// #[repr(u8)]
    /// enum Shape {
    ///     Point,
    ///     Circle { radius: f64 },
    /// }
    ///
    /// #[derive(ShmSafe)]
    /// struct Item<T> {
    ///     shape: Shape,
    ///     more: Option<T>,
    /// }
    ///
    /// let pool = Pool::builder().create()?;
    /// let item = pool.create(Item { shape: Shape::Circle { radius: 0.5 }, more: Some(7_u32) })?;
    /// assert_eq!(item.more, Some(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub use shmkit_derive::ShmSafe;
    /// ```
    /// use shmkit::{Gc, Heap, HeapError, Pool, ShmSafe, Trace};
    ///
    /// #[derive(ShmSafe, Trace)]
    /// struct Node {
    ///     value: u32,
    ///     next: Option<Gc<Node>>,
    /// }
    ///
    /// let pool = Pool::builder().create()?;
    /// let list = pool.create(Heap::new(None::<Gc<Node>>))?;
    /// list.try_modify(|tx| {
    ///     let next = Some(tx.alloc(Node { value: 2, next: None })?);
    ///     *tx.root_mut()? = Some(tx.alloc(Node { value: 1, next })?);
    ///     Ok::<_, HeapError>(())
    /// })?;
    /// assert_eq!(list.collect()?.live, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub use shmkit_derive::Trace;
}

#[cfg(not(shmkit_loom))]
/// What the derive macros' output calls; no part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::containers::is_key;
    pub use crate::layout::derive_support::*;
}

/// For the crash tests; no part of the API.
#[cfg(not(shmkit_loom))]
#[doc(hidden)]
pub mod testing {
    use crate::Pool;
    use crate::layout::local;
    use crate::primitive::Ordering;
    use crate::sys::robust::{OWNER_DIED, RobustWord, TID, WAITERS};

    /// Lets free memory age, as time does: what was dirty is aged, what was aged goes back.
    pub fn age(pool: Pool) {
        let slot = crate::participants::thread::slot(pool.0).expect("a slot");
        crate::allocator::slice::age(pool.0, slot.tag(), false);
    }
    pub use crate::process::testing::Jobs;

    /// Leaves the pool as a thread does that ends. It may come back.
    pub fn leave(pool: Pool) {
        crate::participants::thread::leave(pool.0);
    }

    /// What this library does around a fork, step by step, for a fork of which it does not hear.
    pub mod forking {
        use crate::pool::fork;

        /// Before it: makes the child's records. Until [`in_parent`], the process's handles are locked.
        pub fn before() {
            let made = fork::before_fork(false, false);
            assert!(made.is_ok(), "no record for a child");
        }

        /// After it.
        pub fn in_parent() {
            fork::in_parent();
        }

        /// The parent has heard the number of the child.
        pub fn forked(pid: u32) {
            fork::forked(pid);
        }

        /// The parent has reaped the child.
        pub fn reaped(pid: u32) {
            fork::child_reaped(pid);
        }

        /// Records that are not free, of processes and of children on their way.
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
        /// It uses nothing of its pools any more.
        pub unsafe fn ending() {
            fork::child_ending();
        }
    }

    /// Does what others wait for of the dead, and leaves their memory as it is: as who waits does.
    pub fn settle(pool: Pool) {
        crate::participants::recovery::settle_all(pool.0);
    }

    /// A letter a slice: `.` for a free one, `s` and `r` for the first of a span and of a run, `t` for one
    /// of their others, `k` for the first of a run that is kept, and `A` to `Z` for one that is claimed by slot
    /// 1 to 26.
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

    /// Refuses, after so many, every block of a guarded pool, or none.
    pub fn refuse_blocks(granted: Option<usize>) {
        crate::sys::refusal::BLOCKS.after(granted);
    }

    /// Refuses, after so many, all memory that pools of this process commit, or none.
    pub fn refuse_commits(granted: Option<usize>) {
        crate::sys::refusal::COMMITS.after(granted);
    }

    /// Bytes of address space that the pool has.
    pub fn mapped_len(pool: Pool) -> usize {
        local::of(pool.0).len()
    }

    /// How many links lead to each object that there is.
    pub fn link_counts(pool: Pool) -> Vec<u32> {
        (0..pool.0.object_count())
            .filter_map(|i| pool.0.object(i))
            .filter(|entry| entry.state().phase == crate::pool::objects::Phase::Live)
            .map(|entry| crate::participants::detect::value(entry.links.load(Ordering::SeqCst)))
            .collect()
    }

    /// Bytes that the chunks of a buffer take, which nobody uses.
    pub fn buffer_memory(buffer: &crate::Buffer) -> usize {
        buffer.memory()
    }

    /// Participants of one thread, for the fuzzer: which of them it is, and their deaths.
    #[cfg(fuzzing)]
    pub mod participants {
        use crate::Pool;
        use crate::participants::table::{Slot, SlotPhase, SlotState};
        use crate::participants::thread;
        use crate::primitive::{Killed, Ordering, kill_after};
        use crate::sys::robust::TID;

        /// A participant. It has a slot from the first time that it acts.
        #[allow(missing_debug_implementations, reason = "for the fuzzer alone")]
        pub struct Participant(Option<&'static Slot>);

        /// Does what the kernel does when a thread dies that has this slot: it holds its own life
        /// word, and that of the dead one whom it was recovering.
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
            /// What it does when it is killed is in the pool alone: whatever it has on the stack, a
            /// guard or `&mut`, is not used any more, although the thread goes on.
            pub const unsafe fn new() -> Participant {
                Participant(None)
            }

            /// Does something as this participant, who is killed before its write number `writes`
            /// from here, if that is given. `None` if it was; it has no slot then.
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
                        // Who is leaving may have left.
                        if state.phase == SlotPhase::Live {
                            let phase = SlotPhase::Dead;
                            slot.turn(state, SlotState { phase, ..state });
                        }
                        mark_held(pool, slot);
                        None
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }

            /// Leaves the pool, as a thread that ends does; is killed as in [`Participant::act`]. `None` if it was.
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

    /// Slots and records without an owner that nobody can claim, as something is left to be done for who had them.
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
    /// It is dead, or never uses again what it has of the pool: others take that over.
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
                // The process itself may only be stopped: let its number be another's.
                record.start.store(1, Ordering::Relaxed);
            }
            mark(&record.life);
        });
    }
}
