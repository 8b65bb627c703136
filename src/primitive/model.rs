//! Atomics for the models: loom's, with two things added.
//!
//! **Sequential consistency.** loom treats a SeqCst access as AcqRel, and models only SeqCst
//! fences. So a SeqCst access has a SeqCst fence before it, as compilers for POWER do it. That is a
//! little more than the language promises (the fence orders what else is before it), so a model
//! does not show that a SeqCst access next to a weaker one is enough. It does show that no access
//! is too weak by itself. A model that needs no such order shows the rest, with [`without_fences`].
//!
//! **Death.** A thread that has called [`kill_after`] ends by unwinding, with [`Killed`], instead
//! of performing its n-th write. To all others, a death before a read is the same as one after the
//! write before it, so these are all the deaths that are possible.

use std::cell::Cell;

pub use loom::sync::atomic::{Ordering, fence};

/// What a killed thread unwinds with.
pub struct Killed;

loom::thread_local! {
    /// How many writes the thread has left, plus 1; 0 if it lives for ever.
    static LEFT: Cell<usize> = Cell::new(0);
}

/// For `Some`, lets this thread make `writes` more writes; otherwise it lives for ever.
pub fn kill_after(writes: Option<usize>) {
    LEFT.with(|left| left.set(writes.map_or(0, |n| n + 1)));
}

thread_local! {
    /// Whether SeqCst is AcqRel, for all threads of a model: these run in one system thread.
    static BARE: Cell<bool> = const { Cell::new(false) };
}

/// Runs models without a fence before SeqCst accesses.
pub fn without_fences(models: impl FnOnce()) {
    BARE.set(true);
    models();
    BARE.set(false);
}

fn before_write(ordering: Ordering) {
    LEFT.with(|left| match left.get() {
        0 => {}
        // Not a panic: no message.
        1 => std::panic::resume_unwind(Box::new(Killed)),
        n => left.set(n - 1),
    });
    before(ordering);
}

fn before(ordering: Ordering) {
    if ordering == Ordering::SeqCst && !BARE.get() {
        fence(Ordering::SeqCst);
    }
}

macro_rules! atomic {
    ($name:ident, $of:ty) => {
        /// An atomic word of a model.
        #[derive(Debug)]
        pub struct $name(loom::sync::atomic::$name);

        impl $name {
            pub fn new(value: $of) -> Self {
                $name(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub fn load(&self, ordering: Ordering) -> $of {
                before(ordering);
                self.0.load(ordering)
            }

            #[track_caller]
            pub fn store(&self, value: $of, ordering: Ordering) {
                before_write(ordering);
                self.0.store(value, ordering);
            }

            #[track_caller]
            pub fn swap(&self, value: $of, ordering: Ordering) -> $of {
                before_write(ordering);
                self.0.swap(value, ordering)
            }

            #[track_caller]
            pub fn compare_exchange(
                &self,
                old: $of,
                new: $of,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$of, $of> {
                before_write(success);
                self.0.compare_exchange(old, new, success, failure)
            }

            #[track_caller]
            pub fn fetch_or(&self, bits: $of, ordering: Ordering) -> $of {
                before_write(ordering);
                self.0.fetch_or(bits, ordering)
            }

            #[track_caller]
            pub fn fetch_and(&self, bits: $of, ordering: Ordering) -> $of {
                before_write(ordering);
                self.0.fetch_and(bits, ordering)
            }

            #[track_caller]
            pub fn fetch_add(&self, step: $of, ordering: Ordering) -> $of {
                before_write(ordering);
                self.0.fetch_add(step, ordering)
            }

            #[track_caller]
            pub fn fetch_max(&self, least: $of, ordering: Ordering) -> $of {
                before_write(ordering);
                self.0.fetch_max(least, ordering)
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
