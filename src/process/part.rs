//! A process's own part in a run: which job it runs, and how it wakes the master.
//!
//! It is private memory, one entry for each granule in which a control pool may lie, and the same in a forked child,
//! which then says which job it has.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::layout::arena::GRANULES;
use crate::layout::local;
use crate::participants::tag::Tag;
use crate::participants::thread::{self, NoSlot};
use crate::pool::Pool;
use crate::sys::descriptor::Kept;

/// What is known of the control pool at a granule, but for the job, which is in its [`Local`](local::Local).
struct Part {
    /// What wakes the master: the master's own descriptor, or a peer's.
    wake: Kept,
    /// Held by who is about to become a peer.
    joining: Mutex<()>,
}

static PARTS: [Part; GRANULES] = [const {
    Part {
        wake: Kept::none(),
        joining: Mutex::new(()),
    }
}; GRANULES];

/// What `me` returns for a peer that has been dropped, in place of a job's id.
pub(super) const LEFT: u64 = u64::MAX - 1;

/// The master's descriptor is open for as long as its control pool is mapped: even after the
/// master's end, if the pool stays for those that are left
/// ([`Watch::keep_counter`](crate::sys::watch::Watch::keep_counter)).
pub(super) fn set_wake(pool: Pool, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    set_me(pool, 0);
    PARTS[pool.0.granule()].wake.note(fd)
}

/// There is no master any more.
pub(super) fn forget_wake(pool: Pool) {
    set_me(pool, 0);
    PARTS[pool.0.granule()].wake.forget();
}

/// Keeps a peer's descriptor. It stays open for good, as the pool stays mapped: what the peer has
/// started or managed may be in other threads, which wake the master after the peer is dropped. The
/// next peer of the pool uses it, too, as it would open the same pipe.
pub(super) fn set_doorbell(pool: Pool, doorbell: OwnedFd) -> rustix::io::Result<()> {
    let Part { wake, joining } = &PARTS[pool.0.granule()];
    let _joining = joining.lock().unwrap_or_else(PoisonError::into_inner);
    let doorbell = Kept::new(doorbell)?;
    if wake.get().is_err() || wake.file() != doorbell.file() {
        wake.put(doorbell);
    }
    Ok(())
}

/// Whether this process takes part in the run of the pool: it can wake the master, and is not a
/// peer that was dropped.
pub(super) fn takes_part(pool: Pool) -> bool {
    !PARTS[pool.0.granule()].wake.is_none() && me(pool) != LEFT
}

pub(super) fn set_me(pool: Pool, id: u64) {
    local::of(pool.0).set_job(id);
}

/// The job that this process runs, or the worker from which it descends; 0 for the master.
pub(super) fn me(pool: Pool) -> u64 {
    local::of(pool.0).job()
}

/// Whether this process cannot wake the master, because the program has closed the descriptor.
pub(super) fn is_cut_off(pool: Pool) -> bool {
    let wake = &PARTS[pool.0.granule()].wake;
    !wake.is_none() && wake.get().is_err()
}

/// Wakes the master.
pub(super) fn wake_master(pool: Pool) {
    // Open for as long as the pool is mapped, which the caller's handle says it is: the master's by
    // `set_wake`, a peer's by `set_doorbell`.
    if let Ok(fd) = PARTS[pool.0.granule()].wake.get() {
        // If the counter is full, the master is awake anyway.
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

/// The tag of the calling thread in the control pool.
pub(super) fn tag(pool: Pool) -> Result<Tag, NoSlot> {
    thread::slot(pool.0).map(|slot| slot.tag())
}
