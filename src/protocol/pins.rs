//! Pins and stamps. For why they are enough, see `participants::epoch`.

use crate::primitive::{AtomicU64, Ordering, fence};

/// Shows the present epoch: what is unlinked from here on is not freed before [`hide`].
///
/// The models check the store and the fence. On x86 one exchange is both, at half the cost: every
/// locked instruction is a full barrier there.
#[inline]
pub fn show(pin: &AtomicU64, epoch: &AtomicU64) {
    let now = epoch.load(Ordering::SeqCst);
    if cfg!(all(target_arch = "x86_64", not(shmkit_loom))) {
        pin.swap(now, Ordering::SeqCst);
    } else {
        pin.store(now, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

/// Ends what [`show`] began.
#[inline]
pub fn hide(pin: &AtomicU64) {
    pin.store(0, Ordering::Release);
}

/// The stamp for something that was just unlinked. As in [`show`], x86 needs no fence besides the locked
/// instruction.
#[inline]
pub fn stamp(epoch: &AtomicU64) -> u64 {
    if cfg!(any(not(target_arch = "x86_64"), shmkit_loom)) {
        fence(Ordering::SeqCst);
    }
    epoch.fetch_add(1, Ordering::SeqCst)
}

/// The oldest of the pins that are shown; the largest number if there are none.
///
/// There is no fence here: the caller already knows the stamp that it asks about, by an Acquire at least if
/// somebody else has taken it. So the fence of [`stamp`] happens before these loads, and orders them against
/// the fence of [`show`].
#[inline]
pub fn oldest<'a>(pins: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    pins.map(|pin| pin.load(Ordering::SeqCst))
        .filter(|&pin| pin != 0)
        .min()
        .unwrap_or(u64::MAX)
}

/// True if nobody can still be looking at what has this stamp.
#[inline]
pub fn is_past<'a>(pins: impl Iterator<Item = &'a AtomicU64>, stamp: u64) -> bool {
    oldest(pins) > stamp
}
