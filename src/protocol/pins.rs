//! Pins and stamps. Why they are enough: `participants::epoch`.

use crate::primitive::{AtomicU64, Ordering, fence};

/// Shows the epoch of now: what is unlinked from here on is not freed before [`hide`].
#[inline]
pub fn show(pin: &AtomicU64, epoch: &AtomicU64) {
    let now = epoch.load(Ordering::SeqCst);
    pin.store(now, Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// Ends what [`show`] began.
#[inline]
pub fn hide(pin: &AtomicU64) {
    pin.store(0, Ordering::Release);
}

/// The stamp for something that was unlinked just now.
#[inline]
pub fn stamp(epoch: &AtomicU64) -> u64 {
    fence(Ordering::SeqCst);
    epoch.fetch_add(1, Ordering::SeqCst)
}

/// True if nobody can still be looking at what was stamped so.
#[inline]
pub fn is_past<'a>(mut pins: impl Iterator<Item = &'a AtomicU64>, stamp: u64) -> bool {
    fence(Ordering::SeqCst);
    pins.all(|pin| {
        let pin = pin.load(Ordering::SeqCst);
        pin == 0 || pin > stamp
    })
}
