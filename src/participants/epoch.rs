//! Pins: what a thread may still be looking at is not freed.
//!
//! A thread that follows a pointer into the pool which others may unlink shows the epoch of its
//! start in its slot. Whoever unlinks something stamps it with the epoch and advances the epoch;
//! the thing may be freed once every pin shown is later than the stamp.
//!
//! Why that is enough: a pin later than the stamp was read from the epoch after the unlinking, so
//! its owner cannot find the thing any more. A pin that is not shown yet when the pins are read
//! will be followed by a look at a link that is already gone (both sides put a full fence
//! between). A dead owner's pin counts until its intent is resolved; a stopped one's holds memory
//! up, and nothing else.
//!
//! The reader's fence is half of what a look costs that finds its data at hand, and no look's wait for memory overlaps
//! with the next one's behind it. So there are *light* looks, for what is seldom unlinked: the tables of flat maps.
//! They have no fence. Who has unlinked such a thing calls [`seen_by_light_looks`] before it is retired: the kernel
//! runs a fence on every thread that takes part. A pool whose creator has no such call ([`FENCED`]) has no light looks,
//! and a process without it does not attach to any other.
//!
//! | thread | its pin | seen by |
//! |--------|---------|---------|
//! | looks | shown, fenced | all |
//! | looks lightly | shown | who has unlinked a table, as it runs a fence on all |
//! | looks within a light look | fenced now | all |
//!
//! Source of the idea: Dice, Huang, Yang, *Asymmetric Dekker synchronization*, 2001.

use crate::layout::arena::Arena;
use crate::layout::header::FENCED;
use crate::participants::table::Slot;
use crate::primitive::Ordering;
use crate::protocol::pins;
use crate::sys::barrier;

/// A light look, as counted in a slot's `pin_depth`.
const LIGHT: u64 = 1 << 32;

/// Starts looking. Looks nest.
#[inline]
pub(crate) fn pin(arena: Arena, slot: &Slot) {
    let depth = slot.pin_depth.load(Ordering::Relaxed);
    slot.pin_depth.store(depth + 1, Ordering::Relaxed);
    if depth == 0 {
        pins::show(&slot.watched.pin, &arena.header().epoch);
    } else if depth.is_multiple_of(LIGHT) {
        pins::show_to_all(&slot.watched.pin);
    }
}

/// Ends a look.
#[inline]
pub(crate) fn unpin(slot: &Slot) {
    let depth = slot.pin_depth.load(Ordering::Relaxed);
    slot.pin_depth.store(depth - 1, Ordering::Relaxed);
    if depth == 1 {
        pins::hide(&slot.watched.pin);
    }
}

/// Starts a light look.
#[inline]
pub(crate) fn pin_lightly(arena: Arena, slot: &Slot) {
    let header = arena.header();
    let depth = slot.pin_depth.load(Ordering::Relaxed);
    slot.pin_depth.store(depth + LIGHT, Ordering::Relaxed);
    if depth != 0 {
        return;
    }
    if header.options.load(Ordering::Relaxed) & FENCED == 0 {
        pins::show_lightly(&slot.watched.pin, &header.epoch);
    } else {
        pins::show(&slot.watched.pin, &header.epoch);
    }
}

/// Ends a light look.
#[inline]
pub(crate) fn unpin_lightly(slot: &Slot) {
    let depth = slot.pin_depth.load(Ordering::Relaxed);
    slot.pin_depth.store(depth - LIGHT, Ordering::Relaxed);
    if depth == LIGHT {
        pins::hide(&slot.watched.pin);
    }
}

/// Has all light looks that may find what the caller has just unlinked be seen. False if the system refuses that
/// now: then it may never be freed.
#[cold]
pub(crate) fn seen_by_light_looks(arena: Arena) -> bool {
    arena.header().options.load(Ordering::Relaxed) & FENCED != 0 || barrier::on_all()
}

/// The stamp for something that was unlinked just now.
pub(crate) fn stamp(arena: Arena) -> u64 {
    pins::stamp(&arena.header().epoch)
}

/// The oldest epoch that somebody has been looking since; the largest number if nobody is. What
/// was stamped before it is past.
pub(crate) fn oldest(arena: Arena) -> u64 {
    pins::oldest(arena.slots().map(|(_, slot)| &slot.watched.pin))
}

/// True if nobody can still be looking at what was stamped so.
pub(crate) fn is_past(arena: Arena, stamp: u64) -> bool {
    pins::is_past(arena.slots().map(|(_, slot)| &slot.watched.pin), stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitive::AtomicU64;
    use std::sync::Mutex;

    /// A word with a line of its own.
    #[derive(Default)]
    #[repr(align(128))]
    struct Alone(AtomicU64);

    /// A link that always leads to the next number, and up to which numbers those before are freed.
    #[derive(Default)]
    struct Linked {
        epoch: Alone,
        pin: Alone,
        link: Alone,
        freed_before: Alone,
    }

    /// Has this thread stay on the first or the last processor that it may have. Who shares one with the other races
    /// with nobody.
    fn stay_on(last: bool) {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(all) = sched_getaffinity(None) else {
            return;
        };
        let mut processors = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
        let mine = if last {
            processors.next_back()
        } else {
            processors.next()
        };
        let mut only = CpuSet::new();
        mine.into_iter().for_each(|cpu| only.set(cpu));
        let _ = sched_setaffinity(None, &only);
    }

    /// One thread looks again and again, with `show`; another unlinks, runs `fence`, and frees if no pin is shown.
    /// What is looked at must not be freed.
    fn race(show: fn(&AtomicU64, &AtomicU64), fence: impl Fn()) {
        const LOOKS: u64 = 2_000_000;
        // The two of one race need both processors of a small machine.
        static ONE_RACE: Mutex<()> = Mutex::new(());
        let _one_race = ONE_RACE.lock();
        let linked = Linked::default();
        linked.epoch.0.store(1, Ordering::Relaxed);
        // Stores to lines that are far away: the pin waits behind them before others see it.
        let far: Vec<AtomicU64> = (0..1 << 22).map(AtomicU64::new).collect();
        std::thread::scope(|s| {
            let looks = s.spawn(|| {
                stay_on(true);
                let mut place = 1_usize;
                for look in 0..LOOKS {
                    for _ in 0..4 {
                        place = place.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        far[(place >> 40) % far.len()].store(look, Ordering::Relaxed);
                    }
                    show(&linked.pin.0, &linked.epoch.0);
                    let seen = linked.link.0.load(Ordering::Acquire);
                    for _ in 0..4 {
                        let freed = linked.freed_before.0.load(Ordering::Acquire);
                        assert!(freed <= seen, "{seen} is freed in look {look}");
                    }
                    pins::hide(&linked.pin.0);
                }
            });
            stay_on(false);
            let mut next = 0;
            while !looks.is_finished() {
                next += 1;
                linked.link.0.store(next, Ordering::Release);
                fence();
                if linked.pin.0.load(Ordering::Acquire) == 0 {
                    linked.freed_before.0.store(next, Ordering::Release);
                }
            }
        });
    }

    /// A kernel that has no such fence has no light looks, and nothing to show.
    #[test]
    fn light_looks_are_seen_behind_a_fence_on_all() {
        if barrier::register() {
            race(pins::show_lightly, || assert!(barrier::on_all()));
        }
    }

    #[test]
    fn a_look_within_a_light_one_is_seen_without() {
        let show = |pin: &AtomicU64, epoch: &AtomicU64| {
            pins::show_lightly(pin, epoch);
            pins::show_to_all(pin);
        };
        race(show, || crate::primitive::fence(Ordering::SeqCst));
    }
}
