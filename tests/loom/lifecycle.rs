//! Objects: never destroyed while held or viewed, destroyed in the end, whoever dies.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lifecycle::{self, ObjectPhase, ObjectState};
use shmkit::protocol::pins;

use super::Explorer;

const GENERATION: u32 = 7;

struct Object {
    state: AtomicU64,
    /// A bit a process.
    holds: AtomicU64,
    /// How many links lead here; the link there is.
    links: AtomicU64,
    link: AtomicU64,
    epoch: AtomicU64,
    pin: AtomicU64,
    /// Whether a process's thread has the intent to destroy open.
    intents: [AtomicU64; 4],
    value: UnsafeCell<bool>,
    /// The ledger.
    holders: AtomicUsize,
    destroyed: AtomicBool,
    pauses: bool,
}

impl Object {
    fn new(holds: u64, links: u64) -> Arc<Self> {
        Object::pausing(holds, links, false)
    }

    fn pausing(holds: u64, links: u64, pauses: bool) -> Arc<Self> {
        let live = ObjectState {
            phase: ObjectPhase::Live,
            version: 0,
            generation: GENERATION,
        };
        Arc::new(Object {
            state: AtomicU64::new(live.pack()),
            holds: AtomicU64::new(holds),
            links: AtomicU64::new(links),
            link: AtomicU64::new(links),
            epoch: AtomicU64::new(1),
            pin: AtomicU64::new(0),
            intents: std::array::from_fn(|_| AtomicU64::new(0)),
            value: UnsafeCell::new(true),
            holders: AtomicUsize::new(holds.count_ones() as usize),
            destroyed: AtomicBool::new(false),
            pauses,
        })
    }

    fn is_unused(&self) -> bool {
        let is_linked = || self.links.load(Ordering::SeqCst) != 0;
        let is_held = || {
            self.pause();
            let held = self.holds.load(Ordering::SeqCst) != 0;
            self.pause();
            held
        };
        lifecycle::is_unused(is_linked, is_held)
    }

    /// Lets others run, where the model asks for it: no preemption is spent on that.
    fn pause(&self) {
        if self.pauses {
            thread::yield_now();
        }
    }

    fn look(&self) {
        // SAFETY: nobody destroys it, or loom reports it.
        assert!(self.value.with(|there| unsafe { *there }));
    }

    /// As `pool::handles::open`.
    fn open(&self, process: usize, generation: u32) -> bool {
        self.holds.fetch_or(1 << process, Ordering::SeqCst);
        if lifecycle::hold(&self.state, generation) {
            self.holders.fetch_add(1, Relaxed);
            self.look();
            return true;
        }
        self.holds.fetch_and(!(1 << process), Ordering::SeqCst);
        // The bit may have been what kept somebody from disposing of it.
        self.dispose(process);
        false
    }

    fn let_go(&self, process: usize) {
        self.end_hold(process);
        self.dispose(process);
    }

    fn end_hold(&self, process: usize) {
        self.look();
        self.holders.fetch_sub(1, Relaxed);
        self.holds.fetch_and(!(1 << process), Ordering::SeqCst);
    }

    /// Looks at what the link leads to, if it does.
    fn view(&self) {
        pins::show(&self.pin, &self.epoch);
        if self.link.load(Ordering::SeqCst) != 0 {
            self.pause();
            self.look();
        }
        pins::hide(&self.pin);
    }

    /// As `Link::set`, of a link that leads here.
    fn unlink(&self, process: usize) {
        if self.link.swap(0, Ordering::AcqRel) != 0 {
            self.links.store(0, Ordering::Release);
            self.dispose(process);
        }
    }

    /// As `Link::set`, to here, by a holder.
    fn link(&self) {
        self.links.store(1, Ordering::SeqCst);
        self.link.store(1, Ordering::Release);
    }

    /// As `pool::dispose::dispose`.
    fn dispose(&self, process: usize) {
        let state = &self.state;
        let now = || {
            let stamp = pins::stamp(&self.epoch);
            self.pause();
            stamp
        };
        let Some((found, stamp)) = lifecycle::retire(state, || self.is_unused(), now) else {
            return;
        };
        if !pins::is_past([&self.pin].into_iter(), stamp) {
            return;
        }
        self.intents[process].store(1, Ordering::Release);
        if let Some(mine) = lifecycle::seize(state, found, process) {
            assert_eq!(self.holders.load(Relaxed), 0, "destroyed while held");
            // SAFETY: nobody else is at it, or loom reports it.
            self.value.with_mut(|there| unsafe { *there = false });
            let twice = self.destroyed.swap(true, Relaxed);
            assert!(
                !twice || found.phase == ObjectPhase::Condemned,
                "destroyed twice"
            );
            state.store(mine.with(ObjectPhase::Free).pack(), Ordering::SeqCst);
        }
        self.intents[process].store(0, Ordering::Release);
    }

    /// What recovery does for a dead process.
    fn recover(&self, process: usize) {
        if self.intents[process].load(Ordering::Acquire) != 0 {
            lifecycle::condemn(&self.state, process);
            self.intents[process].store(0, Ordering::Release);
        }
        self.holds.fetch_and(!(1 << process), Ordering::SeqCst);
    }

    /// At rest and unused, so it is gone.
    fn check(&self) {
        assert!(self.destroyed.load(Relaxed), "lost");
        assert_eq!(lifecycle::read(&self.state).phase, ObjectPhase::Free);
    }
}

fn spawn(object: &Arc<Object>, work: impl FnOnce(&Object) + 'static) -> thread::JoinHandle<()> {
    let object = Arc::clone(object);
    thread::spawn(move || work(&object))
}

/// Two processes that hold the object drop it, while a third opens and drops it and a fourth has a
/// handle of what was there before.
#[test]
fn opening_against_dropping() {
    let explorer = Explorer::new("lifecycle: opening against dropping");
    explorer.run(4, || {
        let object = Object::new(0b1, 0);
        let opener = spawn(&object, |object| {
            if object.open(1, GENERATION) {
                object.let_go(1);
            }
        });
        let stale = spawn(&object, |object| assert!(!object.open(2, GENERATION - 1)));
        object.let_go(0);
        opener.join().unwrap();
        stale.join().unwrap();
        object.check();
    });
}

/// A link is cleared while one opens what it leads to and another views it.
#[test]
fn links_against_unlinking() {
    let explorer = Explorer::new("lifecycle: opening and viewing against unlinking");
    explorer.run(2, || {
        let object = Object::new(0, 1);
        let opener = spawn(&object, |object| {
            if object.link.load(Ordering::SeqCst) != 0 && object.open(1, GENERATION) {
                object.let_go(1);
            }
        });
        let viewer = spawn(&object, Object::view);
        object.unlink(0);
        opener.join().unwrap();
        viewer.join().unwrap();
        // A view may have held it up: the next one who looks for such things finds it.
        object.dispose(3);
        object.check();
    });
}

/// A holder links the object and lets go of it, while another lets go and a third views what the
/// link leads to and clears it.
#[test]
fn linking_against_dropping() {
    let explorer = Explorer::new("lifecycle: linking and unlinking against dropping");
    explorer.run(4, || {
        let object = Object::new(0b11, 0);
        let linker = spawn(&object, |object| {
            object.link();
            object.let_go(1);
        });
        let unlinker = spawn(&object, |object| {
            pins::show(&object.pin, &object.epoch);
            if object.link.load(Ordering::SeqCst) != 0 {
                object.look();
                object.unlink(2);
                object.look();
            }
            pins::hide(&object.pin);
        });
        object.let_go(0);
        linker.join().unwrap();
        unlinker.join().unwrap();
        object.unlink(3);
        object.dispose(3);
        object.check();
    });
}

/// Who drops a hold looks twice whether the object is unused, and each time another links it, and lets
/// go of it, between the looks at links and at holds. It is linked then, and a third views it, before
/// the other has looked whether he had the last hold: both are one thread here, since a third one would
/// run whenever the two pause.
#[test]
fn linking_twice_against_dropping() {
    let explorer = Explorer::new("lifecycle: linking twice against dropping");
    explorer.run(2, || {
        let object = Object::pausing(0b11, 0, true);
        let linker = spawn(&object, |object| {
            object.link();
            object.let_go(1);
            object.pause();
            if object.link.load(Ordering::SeqCst) != 0 && object.open(1, GENERATION) {
                object.unlink(1);
                object.pause();
                object.link();
                object.end_hold(1);
                object.pause();
                object.pause();
                object.view();
                object.dispose(1);
            }
        });
        object.let_go(0);
        linker.join().unwrap();
        object.unlink(3);
        object.dispose(3);
        object.check();
    });
}

/// Who drops the last hold dies at every write, while another opens and drops.
#[test]
fn death_of_a_destroyer() {
    let explorer = Explorer::new("lifecycle: death of a destroyer");
    explorer.each_death(3, |deaths, at| {
        move || {
            let object = Object::new(0b1, 0);
            let opener = spawn(&object, |object| {
                if object.open(1, GENERATION) {
                    object.let_go(1);
                }
            });
            if deaths.kill(at, || object.let_go(0)) {
                // The ledger's part of the drop is done before the first write.
                object.recover(0);
            }
            opener.join().unwrap();
            object.dispose(3);
            object.check();
        }
    });
}
