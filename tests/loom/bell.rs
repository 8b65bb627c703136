//! The bell: a thread that waits for an element, or for room, gets it, without any time limit on its sleep.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::bell;
use shmkit::protocol::cells::{Cell, CellPhase, Shape};
use shmkit::protocol::leased::{self, FREE, HELD, TAKING};
use shmkit::protocol::ring::{self, Take};
use shmkit::protocol::tag::Tag;

use super::Explorer;

/// As `engines::bell`, on a kernel's list of sleepers.
struct Bell {
    word: AtomicU64,
    sleepers: Mutex<usize>,
    woken: Condvar,
}

impl Bell {
    fn new(word: u64) -> Self {
        Bell {
            word: AtomicU64::new(word),
            sleepers: Mutex::new(0),
            woken: Condvar::new(),
        }
    }

    fn kernel_wakes(&self, most: u32) -> usize {
        let mut sleepers = self.sleepers.lock().unwrap();
        let woken = (*sleepers).min(most as usize);
        *sleepers -= woken;
        (0..woken).for_each(|_| self.woken.notify_one());
        woken
    }

    fn sleep(&self, announced: u64) {
        let mut sleepers = self.sleepers.lock().unwrap();
        if self.word.load(Ordering::SeqCst) == announced {
            *sleepers += 1;
            drop(self.woken.wait(sleepers).unwrap());
        }
    }

    fn ring(&self) {
        if bell::has_sleepers(&self.word) {
            self.ring_out();
        }
    }

    fn ring_out(&self) {
        self.wake(bell::count(&self.word));
    }

    fn wake(&self, rung: u64) {
        bell::wake(&self.word, rung, 1, |most| self.kernel_wakes(most));
    }
}

/// So many of what is waited for.
struct Count(AtomicU64);

impl Count {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn take(&self) -> bool {
        let mut found = self.0.load(Ordering::SeqCst);
        while found > 0 {
            let (order, less) = (Ordering::SeqCst, found - 1);
            match self.0.compare_exchange(found, less, order, order) {
                Ok(_) => return true,
                Err(now) => found = now,
            }
        }
        false
    }
}

struct Elements {
    count: Count,
    bell: Bell,
}

impl Elements {
    fn none(bell: u64) -> Arc<Self> {
        Arc::new(Elements {
            count: Count(AtomicU64::new(0)),
            bell: Bell::new(bell),
        })
    }

    fn push(&self) {
        self.count.add();
        self.bell.ring();
    }

    /// As `containers::queue::wait`.
    fn pop(&self) {
        loop {
            let announced = bell::announce(&self.bell.word);
            if self.count.take() {
                return;
            }
            self.bell.sleep(announced);
        }
    }

    fn popper(elements: &Arc<Self>) -> JoinHandle<()> {
        let elements = Arc::clone(elements);
        thread::spawn(move || elements.pop())
    }
}

/// Two wait, on a bit that somebody has left, so a ring finds nobody asleep; for an element that another has taken. Then
/// there are two.
#[test]
fn who_is_about_to_sleep_looks_again() {
    let explorer = Explorer::new("bell: who is about to sleep looks again");
    explorer.run(3, || {
        let elements = Elements::none(1);
        let waiters = [(), ()].map(|()| Elements::popper(&elements));
        elements.bell.ring();
        elements.push();
        elements.push();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// The same, while the ring goes on.
#[test]
fn all_are_woken_who_sleep_without_the_bit() {
    let explorer = Explorer::new("bell: all are woken who sleep without the bit");
    explorer.run(2, || {
        let elements = Elements::none(1);
        let waiters = [(), ()].map(|()| Elements::popper(&elements));
        let other = Arc::clone(&elements);
        let other = thread::spawn(move || {
            other.push();
            other.push();
        });
        elements.bell.ring();
        other.join().unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// Room, and whose turn it is to have it, as in `containers::queue::wait`; nobody is passed too often.
struct Room {
    count: Count,
    bell: Bell,
    called: Bell,
    turn: AtomicU64,
}

impl Room {
    fn none(bell: u64, called: u64) -> Arc<Self> {
        Arc::new(Room {
            count: Count(AtomicU64::new(0)),
            bell: Bell::new(bell),
            called: Bell::new(called),
            turn: AtomicU64::new(0),
        })
    }

    fn ring(&self) {
        if !bell::has_sleepers(&self.bell.word) {
            return;
        }
        let rung = bell::count(&self.bell.word);
        match self.turn.load(Ordering::SeqCst) {
            0 => self.bell.wake(rung),
            _ => self.called.ring_out(),
        }
    }

    fn add(&self) {
        self.count.add();
        self.ring();
    }

    fn take_turn(&self, me: u64) -> bool {
        let order = Ordering::SeqCst;
        let taken = self.turn.compare_exchange(0, me, order, order);
        taken.is_ok() || taken == Err(me)
    }

    fn take(&self, me: u64) {
        loop {
            let mine = self.take_turn(me);
            let called = bell::announce(&self.called.word);
            if mine {
                bell::count(&self.bell.word);
            }
            let announced = bell::announce(&self.bell.word);
            if self.count.take() {
                break;
            }
            match mine {
                true => self.called.sleep(called),
                false => self.bell.sleep(announced),
            }
        }
        let order = Ordering::SeqCst;
        if self.turn.compare_exchange(me, 0, order, order).is_ok() {
            self.ring();
        }
    }

    fn taker(room: &Arc<Self>, me: u64) -> JoinHandle<()> {
        let room = Arc::clone(room);
        thread::spawn(move || room.take(me))
    }
}

/// Two wait for room, which comes for each.
#[test]
fn who_waits_for_room_has_it() {
    let explorer = Explorer::new("bell: who waits for room has it");
    explorer.run(3, || {
        let room = Room::none(1, 1);
        let waiters = [1, 2].map(|me| Room::taker(&room, me));
        room.add();
        room.add();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// One of three has not waited, and may have the turn when another is woken.
#[test]
fn who_comes_late_wakes_the_next() {
    let explorer = Explorer::new("bell: who comes late wakes the next");
    explorer.run(2, || {
        let room = Room::none(1, 1);
        let waiters = [1, 2].map(|me| Room::taker(&room, me));
        let last = {
            let room = Arc::clone(&room);
            thread::spawn(move || {
                room.add();
                room.take(3);
            })
        };
        room.add();
        room.add();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        last.join().unwrap();
    });
}

/// The words of a queue on which there is one waiter, who looks for what another is about to make: an element that
/// comes back, an entry that becomes free, or a cell.
struct Words {
    /// An entry's state and position.
    entry: [AtomicU64; 2],
    changes: AtomicU64,
    cell: AtomicU64,
    ends: [AtomicU64; 2],
    bell: Bell,
}

impl Words {
    const SHAPE: Shape = Shape::new(1);

    fn entry(&self) -> leased::Entry<'_> {
        let [state, position] = &self.entry;
        leased::Entry { state, position }
    }

    fn other() -> Tag {
        Tag::new(1, 1)
    }

    /// One waits until it finds something, and another makes that.
    fn explore(name: &'static str, state: u64, found: fn(&Self) -> bool, made: fn(&Self)) {
        Explorer::new(name).run(3, move || {
            let words = Arc::new(Words {
                entry: [Self::other().word() | state, 0].map(AtomicU64::new),
                changes: AtomicU64::new(0),
                cell: AtomicU64::new(Cell::new(CellPhase::Full, 0, 0).pack()),
                ends: [0, 0].map(AtomicU64::new),
                bell: Bell::new(0),
            });
            let waiter = {
                let words = Arc::clone(&words);
                thread::spawn(move || {
                    loop {
                        let announced = bell::announce(&words.bell.word);
                        if found(&words) {
                            return;
                        }
                        words.bell.sleep(announced);
                    }
                })
            };
            made(&words);
            words.bell.ring();
            waiter.join().unwrap();
        });
    }
}

#[test]
fn who_waits_for_what_comes_back_has_it() {
    let found = |words: &Words| {
        let survey = leased::survey([words.entry()].into_iter(), Tag::NOBODY, |_| ());
        survey.1.is_some()
    };
    let made = |words: &Words| words.entry().give_back(&words.changes);
    Words::explore("bell: what comes back", HELD, found, made);
}

#[test]
fn who_waits_for_an_entry_has_it() {
    let found = |words: &Words| words.entry().is_free();
    let made = |words: &Words| words.entry().consume();
    Words::explore("bell: an entry of a lease", HELD, found, made);
    let made = |words: &Words| words.entry().abandon();
    Words::explore("bell: an entry without an element", TAKING, found, made);
}

#[test]
fn who_waits_for_a_cell_has_it() {
    let found = |words: &Words| {
        ring::claim(Words::SHAPE, &words.ends[0], |_| &words.cell, 2, |_| ()).is_ok()
    };
    let made = |words: &Words| {
        let head = &words.ends[1];
        let taken = ring::take(
            Words::SHAPE,
            head,
            |_| &words.cell,
            Take::Pop,
            |_| true,
            |_, _| (),
        );
        assert_eq!(taken.ok(), Some(0));
    };
    Words::explore("bell: a cell", FREE, found, made);
}
