//! Shared-memory data structures whose users may be killed at any instruction.
//!
//! A [`Pool`] is memory that several processes have mapped at the same address. It hosts an
//! allocator, locks ([`sync`]), containers and objects of your own types (`#[derive(ShmSafe)]`),
//! used from every process through ordinary references: [`Array`], [`Matrix`], [`SharedCell`],
//! [`HashMap`], [`MultiMap`], [`Queue`], [`Mailbox`], [`Buffer`], [`Heap`]. [`process::scope`]
//! starts worker processes; [`process::run`] is a master whose workers start one another. A worker
//! that is killed, at whatever instruction, leaves nothing locked, torn or leaked; any process that
//! comes to what it held takes that over. The feature `cli` builds the command `shmkit`, which
//! lists, inspects and removes pools.
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
//! Imports point downward only. [`guide::design`] explains the design decisions,
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

// Everything that is compiled for the models of `tests/loom`.
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

/// So do the examples of the document on NumPy.
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
        StoreError, Value, View, Writer,
    };
    pub use crate::containers::{
        Collected, Gc, GcTarget, Heap, HeapError, HeapStats, HeapView, Trace, Tracer, Tx,
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

/// What the derive macros' output calls; no part of the API.
#[cfg(not(shmkit_loom))]
#[doc(hidden)]
pub mod __private {
    pub use crate::containers::is_key;
    pub use crate::layout::derive_support::*;
}

/// For this package's own tests; no part of the API.
#[cfg(all(feature = "testing", not(shmkit_loom)))]
#[doc(hidden)]
pub mod testing;
