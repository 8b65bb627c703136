//! Pins: what a thread views is not freed.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::pins;

use super::Explorer;

struct Shared {
    epoch: AtomicU64,
    pins: [AtomicU64; 2],
    /// Leads to object 0 or 1, as number + 1.
    link: AtomicU64,
    /// The stamp for object 0, as somebody else reads it.
    stamped: AtomicU64,
    objects: [UnsafeCell<bool>; 2],
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Shared {
            epoch: AtomicU64::new(1),
            pins: [AtomicU64::new(0), AtomicU64::new(0)],
            link: AtomicU64::new(1),
            stamped: AtomicU64::new(0),
            objects: [UnsafeCell::new(true), UnsafeCell::new(true)],
        })
    }

    fn view(&self, viewer: usize) {
        pins::show(&self.pins[viewer], &self.epoch);
        let found = self.link.load(Ordering::SeqCst);
        if found != 0 {
            let object = &self.objects[found as usize - 1];
            // SAFETY: pinned: nobody frees it, or loom reports it.
            assert!(object.with(|there| unsafe { *there }), "freed");
        }
        pins::hide(&self.pins[viewer]);
    }

    /// Makes the link lead elsewhere; what it led to, and the stamp for that.
    fn unlink(&self, new: u64) -> (u64, u64) {
        // As `detect::change` does it.
        let old = self.link.swap(new, Ordering::AcqRel);
        (old, pins::stamp(&self.epoch))
    }

    /// Frees what was unlinked, if that is possible.
    fn free(&self, (old, stamp): (u64, u64)) {
        if pins::is_past(self.pins.iter(), stamp) {
            // SAFETY: nobody views it, or loom reports it.
            self.objects[old as usize - 1].with_mut(|there| unsafe { *there = false });
        }
    }

    /// Makes the link lead elsewhere; frees what it led to, if that is possible.
    fn replace(&self, new: u64) {
        self.free(self.unlink(new));
    }
}

/// Two viewers, one of whom looks twice, while the link is changed twice.
#[test]
fn viewers_against_unlinking() {
    let explorer = Explorer::new("pins: viewers against unlinking");
    explorer.run(3, || {
        let shared = Shared::new();
        let viewers: Vec<_> = (0..2)
            .map(|viewer| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in viewer..2 {
                        shared.view(viewer);
                    }
                })
            })
            .collect();
        shared.replace(2);
        shared.replace(0);
        viewers
            .into_iter()
            .for_each(|viewer| viewer.join().unwrap());
    });
}

/// Who frees has not unlinked it, but reads what the stamp was.
#[test]
fn a_viewer_against_who_frees_for_another() {
    let explorer = Explorer::without_fences("pins: a viewer against who frees for another");
    explorer.run(3, || {
        let shared = Shared::new();
        let [viewer, unlinker] = [
            |shared: &Shared| shared.view(0),
            |shared: &Shared| {
                let (_, stamp) = shared.unlink(0);
                shared.stamped.store(stamp, Ordering::Release);
            },
        ]
        .map(|does: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || does(&shared))
        });
        match shared.stamped.load(Ordering::Acquire) {
            0 => {}
            stamp => shared.free((1, stamp)),
        }
        [viewer, unlinker]
            .into_iter()
            .for_each(|other| other.join().unwrap());
    });
}

/// A slot changes hands after a look, and its next owner hides the pin once more, whatever it is. Who frees what was looked
/// at may see the second time alone.
#[test]
fn a_slot_changes_hands() {
    let explorer = Explorer::without_fences("pins: a slot changes hands");
    explorer.run(3, || {
        let shared = Shared::new();
        let life = Arc::new(AtomicU64::new(1));
        let [former, next] = [
            |shared: &Shared, life: &AtomicU64| {
                shared.view(0);
                life.swap(0, Ordering::SeqCst);
            },
            |shared: &Shared, life: &AtomicU64| {
                let claimed = life.compare_exchange(0, 2, Ordering::SeqCst, Ordering::Relaxed);
                if claimed.is_ok() {
                    pins::hide(&shared.pins[0]);
                }
            },
        ]
        .map(|does: fn(&Shared, &AtomicU64)| {
            let (shared, life) = (Arc::clone(&shared), Arc::clone(&life));
            thread::spawn(move || does(&shared, &life))
        });
        shared.replace(0);
        former.join().unwrap();
        next.join().unwrap();
    });
}
