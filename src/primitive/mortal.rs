//! Atomics for the fuzzer: std's, with death added.
//!
//! A thread that has called [`kill_after`] stops short of its n-th write from then on, by unwinding
//! with [`Killed`]: what it has written by then is what a process leaves that is killed there. To
//! all others, a death before a read is the same as one after the write before it.

use std::cell::Cell;
use std::ops::Deref;

use std::sync::atomic::{self, Ordering};

/// What a killed thread unwinds with.
pub struct Killed;

thread_local! {
    /// How many writes the thread has left, plus 1; 0 if it lives for ever; or [`DEAD`].
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// The value of [`LEFT`] from a thread's death until the thread is declared alive again.
const DEAD: usize = usize::MAX;

/// Whether this thread has been killed and is unwinding: it must change nothing on its way.
pub fn is_killed() -> bool {
    LEFT.get() == DEAD
}

/// For `Some`, lets this thread make `writes` more writes; otherwise it lives for ever.
pub fn kill_after(writes: Option<usize>) {
    LEFT.set(writes.map_or(0, |n| n + 1));
}

/// Does something during which the thread does not die: what the kernel takes care of when a thread
/// dies.
pub fn spared<R>(does: impl FnOnce() -> R) -> R {
    let left = LEFT.replace(0);
    let done = does();
    LEFT.set(left);
    done
}

#[inline]
fn before_write() {
    match LEFT.get() {
        0 => {}
        1 | DEAD => {
            LEFT.set(DEAD);
            // Not a panic: no message.
            std::panic::resume_unwind(Box::new(Killed))
        }
        n => LEFT.set(n - 1),
    }
}

macro_rules! writes {
    ($of:ty: $($method:ident)*) => {
        $(
            #[inline]
            pub(crate) fn $method(&self, value: $of, ordering: Ordering) -> $of {
                before_write();
                self.0.$method(value, ordering)
            }
        )*
    };
}

macro_rules! atomic {
    ($name:ident, $of:ty) => {
        /// An atomic word whose writer may die.
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub struct $name(atomic::$name);

        // Operations that only read.
        impl Deref for $name {
            type Target = atomic::$name;

            fn deref(&self) -> &atomic::$name {
                &self.0
            }
        }

        #[allow(dead_code, reason = "one macro for both widths")]
        impl $name {
            pub(crate) const fn new(value: $of) -> Self {
                $name(atomic::$name::new(value))
            }

            #[inline]
            pub(crate) fn store(&self, value: $of, ordering: Ordering) {
                before_write();
                self.0.store(value, ordering);
            }

            #[inline]
            pub(crate) fn compare_exchange(
                &self,
                old: $of,
                new: $of,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$of, $of> {
                before_write();
                self.0.compare_exchange(old, new, success, failure)
            }

            #[inline]
            pub(crate) fn compare_exchange_weak(
                &self,
                old: $of,
                new: $of,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$of, $of> {
                before_write();
                self.0.compare_exchange_weak(old, new, success, failure)
            }

            writes!($of: swap fetch_or fetch_and fetch_xor fetch_add fetch_sub fetch_max fetch_min);
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
