//! Entries of leases: a thread that copies an element that has come back gets it whole, with its position, and what a
//! dead holder had last comes back. And for all entries together: no element is lost, doubled, or popped out of order.

use std::collections::BTreeSet;
use std::sync::Mutex as Ledger;

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::cells::{Cell, CellPhase, Shape, behind_the_claim};
use shmkit::protocol::leased::{self, FREE, HELD, Seen};
use shmkit::protocol::ring::{self, Take, Walk};
use shmkit::protocol::tag::Tag;

use super::{Death, Deaths, Explorer};

/// An entry, and who may die.
struct Entry {
    word: AtomicU64,
    position: AtomicU64,
    element: [AtomicU64; 2],
    gone: AtomicU64,
}

fn holder() -> Tag {
    Tag::new(1, 1)
}

impl Entry {
    /// With the element of that position in it, which is its number, too.
    fn new(word: u64, position: u64) -> Arc<Self> {
        Arc::new(Entry {
            word: AtomicU64::new(word),
            position: AtomicU64::new(position),
            element: [position, !position].map(AtomicU64::new),
            gone: AtomicU64::new(0),
        })
    }

    fn words(&self) -> leased::Entry<'_> {
        leased::Entry {
            state: &self.word,
            position: &self.position,
        }
    }

    /// Leases the element of that position into the entry, which is free: as `containers::queue` does.
    fn lease(&self, position: u64) {
        assert!(self.words().claim(holder()));
        behind_the_claim();
        self.element[0].store(position, Ordering::Relaxed);
        self.element[1].store(!position, Ordering::Relaxed);
        self.words().prepare(position);
        self.word.store(holder().word() | HELD, Ordering::Release);
    }

    fn is_back(&self) -> Option<Seen> {
        self.words().is_back()
    }

    fn element(&self) -> [u64; 2] {
        [0, 1].map(|n| self.element[n].load(Ordering::Relaxed))
    }

    fn bury(&self, changes: &AtomicU64) {
        let is_over = |_| self.gone.load(Ordering::Acquire) != 0;
        self.words().bury(changes, is_over);
    }
}

/// An element that has come back is had by another, and the next one comes into the entry, while somebody copies it.
#[test]
fn a_copy_against_the_next() {
    // A fence before the second exchange would say what the position and the element are to say.
    let explorer = Explorer::without_fences("leased: a copy against the next");
    explorer.run(3, || {
        let entry = Entry::new(leased::back(1), 1);
        let other = {
            let entry = Arc::clone(&entry);
            thread::spawn(move || {
                let seen = entry.is_back().unwrap();
                assert!(entry.words().retake(seen, None));
                entry.lease(2);
                entry.word.store(leased::back(2), Ordering::SeqCst);
            })
        };
        if let Some(seen) = entry.is_back() {
            let copied = entry.element();
            if entry.is_back() == Some(seen) {
                let (word, position) = (seen.word, seen.position);
                assert_eq!((word, position), (leased::back(position), copied[0]));
                assert_eq!(copied, [position, !position], "torn");
            }
        }
        other.join().unwrap();
    });
}

/// A holder has another element in the same entry, under the same word, and dies, while somebody looks after it.
#[test]
fn a_death_with_the_next() {
    let explorer = Explorer::new("leased: a death with the next");
    explorer.run(3, || {
        let entry = Entry::new(holder().word() | HELD, 1);
        let other = {
            let entry = Arc::clone(&entry);
            thread::spawn(move || {
                entry.word.store(FREE, Ordering::SeqCst);
                entry.lease(2);
                entry.gone.store(1, Ordering::Release);
            })
        };
        let changes = AtomicU64::new(0);
        entry.bury(&changes);
        other.join().unwrap();
        entry.bury(&changes);
        let word = entry.word.load(Ordering::SeqCst);
        assert_eq!(word, leased::back(changes.load(Ordering::SeqCst)));
        assert_eq!(entry.is_back().map(|seen| seen.position), Some(2));
        assert_eq!(entry.element(), [2, !2]);
    });
}

/// A queue of one ring, of which elements are leased. An element is its position.
struct Queue {
    shape: Shape,
    head: AtomicU64,
    cells: Vec<[AtomicU64; 2]>,
    /// Each a state, the position, and the element.
    entries: Vec<[AtomicU64; 3]>,
    used: AtomicU64,
    changes: AtomicU64,
    slots: [Slot; 3],
    /// What the dead one was about to consume, as everybody knows.
    consuming: Ledger<Option<u64>>,
}

/// What recovery reads of a thread.
struct Slot {
    /// Whether LEASE is open; its cell and its entry, each plus 1.
    intent: [AtomicU64; 3],
    /// Whether it is dead, and settled.
    state: AtomicU64,
}

const DEAD: u64 = 1;
const SETTLED: u64 = 2;

impl Slot {
    fn new() -> Self {
        Slot {
            intent: [0; 3].map(AtomicU64::new),
            state: AtomicU64::new(0),
        }
    }

    fn is_open(&self) -> bool {
        self.intent[0].load(Ordering::Acquire) != 0
    }

    fn close(&self) {
        self.intent[0].store(0, Ordering::Release);
    }
}

fn tag(slot: usize) -> Tag {
    Tag::new(slot, 7)
}

/// An entry as a model begins with it.
enum At {
    Free,
    /// With an element that the slot has.
    Held(usize, u64),
    Back(u64),
}

impl Queue {
    /// With the elements from that one on in the ring, so many; and these entries.
    fn new(first: u64, count: u64, entries: &[At]) -> Arc<Self> {
        let shape = Shape::new(4);
        let cells = (first / 4 * 4..)
            .take(4)
            .map(|at| {
                let (phase, at) = match at {
                    _ if at < first => (CellPhase::Free, at + shape.lap()),
                    _ if at < first + count => (CellPhase::Full, at),
                    _ => (CellPhase::Free, at),
                };
                [Cell::new(phase, 0, at).pack(), at].map(AtomicU64::new)
            })
            .collect();
        let mut turns = 0;
        let mut entry = |at: &At| {
            let (state, element) = match *at {
                At::Free => (FREE, 0),
                At::Held(slot, element) => (tag(slot).word() | HELD, element),
                At::Back(element) => {
                    turns += 1;
                    (leased::back(turns), element)
                }
            };
            [state, element, element].map(AtomicU64::new)
        };
        Arc::new(Queue {
            shape,
            head: AtomicU64::new(first),
            cells,
            entries: entries.iter().map(&mut entry).collect(),
            used: AtomicU64::new(entries.iter().filter(|at| !matches!(at, At::Free)).count() as u64),
            changes: AtomicU64::new(turns),
            slots: [0; 3].map(|_| Slot::new()),
            consuming: Ledger::new(None),
        })
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        &self.cells[index][0]
    }

    fn entry(&self, index: usize) -> leased::Entry<'_> {
        let [state, position, _] = &self.entries[index];
        leased::Entry { state, position }
    }

    fn is_over(&self, owner: Tag) -> bool {
        let slot = &self.slots[owner.slot()];
        match slot.state.load(Ordering::Acquire) {
            0 => false,
            DEAD => !slot.is_open(),
            _ => true,
        }
    }

    fn survey(&self, me: Tag) -> (leased::Survey, Option<leased::Entry<'_>>) {
        let used = self.used.load(Ordering::Acquire) as usize;
        let bury =
            |entry: &leased::Entry<'_>| entry.bury(&self.changes, |owner| self.is_over(owner));
        leased::survey((0..used).map(|index| self.entry(index)), me, bury)
    }

    /// The element that has come back and is to be had next, as it was copied; and how many changes there were.
    fn first_back(&self) -> Option<(leased::Entry<'_>, Seen, u64, u64)> {
        loop {
            let changes = self.changes.load(Ordering::SeqCst);
            let entry = self.survey(Tag::NOBODY).1?;
            if let Some(seen) = entry.is_back() {
                let place = self
                    .entries
                    .iter()
                    .find(|[state, ..]| std::ptr::eq(state, entry.state));
                let element = place.unwrap()[2].load(Ordering::Relaxed);
                return Some((entry, seen, element, changes));
            }
        }
    }

    fn none_was_back(&self, changes: u64) -> bool {
        self.survey(Tag::NOBODY).0.back == 0 && self.changes.load(Ordering::SeqCst) == changes
    }

    /// The first element of the ring, as long as none was back. `Ok(None)` if another attempt may find one.
    fn take(
        &self,
        how: Take,
        changes: u64,
        mut copy: impl FnMut(usize, u64),
    ) -> Result<Option<u64>, ()> {
        let valid = |_: &Walk| self.none_was_back(changes);
        let cell = |index| self.cell(index);
        match ring::take_if(self.shape, &self.head, &cell, how, &mut copy, &valid) {
            Ok(at) => Ok(Some(at)),
            Err(walk) if walk.full.is_some() => Ok(None),
            Err(_) => Err(()),
        }
    }

    /// As `pop_slow` of a queue that is closed, and sealed: whether it said so.
    fn pop_of_closed(&self) -> Result<u64, bool> {
        loop {
            let changes = self.changes.load(Ordering::SeqCst);
            if let Some((entry, seen, element, changes)) = self.first_back() {
                if leased::announce_after(&self.changes, changes) && entry.retake(seen, None) {
                    return Ok(element);
                }
                continue;
            }
            let is_over = self.survey(Tag::NOBODY).0.held == 0;
            if self.none_was_back(changes) {
                return Err(is_over);
            }
        }
    }

    /// As `pop_slow`, or for a lease as `try_lease`, of `containers::queue`; but whoever leases wants an entry at once.
    fn pop(&self) -> Option<u64> {
        loop {
            let changes = self.changes.load(Ordering::SeqCst);
            if let Some((entry, seen, element, changes)) = self.first_back() {
                if leased::announce_after(&self.changes, changes) && entry.retake(seen, None) {
                    return Some(element);
                }
                continue;
            }
            let mut copied = 0;
            let copy = |index: usize, _| copied = self.cells[index][1].load(Ordering::Relaxed);
            match self.take(Take::Pop, changes, copy) {
                Ok(Some(at)) => {
                    assert_eq!(copied, at);
                    return Some(copied);
                }
                Err(()) if self.none_was_back(changes) => return None,
                Ok(None) | Err(()) => {}
            }
        }
    }

    fn lease(&self, slot: usize) -> Option<(leased::Entry<'_>, u64)> {
        let me = tag(slot);
        loop {
            let changes = self.changes.load(Ordering::SeqCst);
            if let Some((entry, seen, element, changes)) = self.first_back() {
                if leased::announce_after(&self.changes, changes) && entry.retake(seen, Some(me)) {
                    return Some((entry, element));
                }
                continue;
            }
            let intent = &self.slots[slot].intent;
            let index = self.claim(slot);
            let (entry, mut copied) = (self.entry(index), 0);
            let copy = |cell: usize, at| {
                copied = self.cells[cell][1].load(Ordering::Relaxed);
                behind_the_claim();
                self.entries[index][2].store(copied, Ordering::Relaxed);
                entry.prepare(at);
                intent[1].store(cell as u64 + 1, Ordering::Release);
            };
            let taken = self.take(Take::Lease(slot), changes, copy);
            if let Ok(Some(at)) = taken {
                entry.hold(me, self.cell(self.shape.index(at)), self.shape.lap());
                self.slots[slot].close();
                return Some((entry, copied));
            }
            entry.abandon();
            self.slots[slot].close();
            if taken.is_err() && self.none_was_back(changes) {
                return None;
            }
        }
    }

    /// As `Table::take` of `engines::leases`. There is a free entry.
    fn claim(&self, slot: usize) -> usize {
        let is_claimed = |&index: &usize| {
            let entry = self.entry(index);
            if entry.state.load(Ordering::Relaxed) != FREE {
                return false;
            }
            let intent = &self.slots[slot].intent;
            intent[1].store(0, Ordering::Relaxed);
            intent[2].store(index as u64 + 1, Ordering::Relaxed);
            intent[0].store(1, Ordering::Release);
            self.used.fetch_max(index as u64 + 1, Ordering::SeqCst);
            let claimed = entry.claim(tag(slot));
            if !claimed {
                self.slots[slot].close();
            }
            claimed
        };
        (0..self.entries.len()).find(is_claimed).unwrap()
    }

    /// What recovery does for a dead slot, again and again if need be.
    fn recover(&self, slot: usize) {
        let of = &self.slots[slot];
        if of.is_open() {
            let [_, cell, entry] = [0, 1, 2].map(|n| of.intent[n].load(Ordering::Acquire) as usize);
            let cell = cell.checked_sub(1).map(|index| self.cell(index));
            leased::resolve(
                self.entry(entry - 1).state,
                cell,
                tag(slot),
                self.shape.lap(),
            );
            of.close();
        }
        of.state.store(SETTLED, Ordering::Release);
    }

    fn rest(&self) -> Vec<u64> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    /// Nobody is in the middle of anything.
    fn is_at_rest(&self) -> bool {
        let states = self
            .entries
            .iter()
            .map(|[state, ..]| state.load(Ordering::SeqCst));
        let phases =
            (0..4).map(|index| Cell::unpack(self.cell(index).load(Ordering::SeqCst)).phase);
        states.into_iter().all(|state| state == FREE) && { phases }
            .all(|phase| phase == CellPhase::Free)
    }
}

/// Who leases dies at every write, and then who recovers it, while another pops: each element is had once, but for one
/// that the dead one may have consumed.
#[test]
fn death_of_who_leases() {
    let explorer = Explorer::new("leased: death of who leases");
    explorer.each_recovery(1, |victim: (Deaths, Death), recoverer: (Deaths, Death)| {
        move || {
            let queue = Queue::new(4, 2, &[At::Free, At::Free]);
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || [queue.pop(), queue.pop()])
            };
            let consume = || {
                if let Some((entry, element)) = queue.lease(1) {
                    *queue.consuming.lock().unwrap() = Some(element);
                    entry.consume();
                }
            };
            if victim.0.kill(victim.1, consume) {
                queue.slots[1].state.store(DEAD, Ordering::Release);
                if recoverer.0.kill(recoverer.1, || queue.recover(1)) {
                    queue.recover(1);
                }
            }
            let mut had: Vec<_> = other.join().unwrap().into_iter().flatten().collect();
            let rest = queue.rest();
            assert!(rest.is_sorted(), "{rest:?} after {had:?}");
            had.extend(rest);
            let consumed = *queue.consuming.lock().unwrap();
            let all: BTreeSet<_> = had.iter().copied().chain(consumed).collect();
            let once: BTreeSet<_> = had.iter().copied().collect();
            assert!(
                all == BTreeSet::from([4, 5]) && once.len() == had.len(),
                "{had:?}, {consumed:?}"
            );
            assert!(queue.is_at_rest());
        }
    });
}

/// Who leases what has come back dies at every write. Another one finds it, and what is in the ring, in order.
#[test]
fn death_of_who_leases_again() {
    let explorer = Explorer::new("leased: death of who leases again");
    explorer.each_death(2, |deaths: Deaths, at: Death| {
        move || {
            let queue = Queue::new(5, 1, &[At::Back(4), At::Free]);
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || [queue.pop(), queue.pop()])
            };
            let leases = || {
                if let Some((entry, _)) = queue.lease(1) {
                    entry.give_back(&queue.changes);
                }
            };
            if deaths.kill(at, leases) {
                queue.slots[1].state.store(DEAD, Ordering::Release);
                queue.recover(1);
            }
            let mut had: Vec<_> = other.join().unwrap().into_iter().flatten().collect();
            let rest = queue.rest();
            assert!(rest.is_sorted(), "{rest:?} after {had:?}");
            had.extend(rest);
            had.sort_unstable();
            assert_eq!(had, [4, 5]);
            assert!(queue.is_at_rest());
        }
    });
}

/// One element comes back, and then a later one: they are had in that order, and before what is in the ring.
#[test]
fn order_of_what_comes_back() {
    let explorer = Explorer::new("leased: order of what comes back");
    explorer.run(3, || {
        let queue = Queue::new(6, 1, &[At::Held(1, 4), At::Held(1, 5)]);
        let holder = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || (0..2).for_each(|n| queue.entry(n).give_back(&queue.changes)))
        };
        let popper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || [queue.pop(), queue.pop()])
        };
        let mut had: Vec<_> = popper.join().unwrap().into_iter().flatten().collect();
        holder.join().unwrap();
        had.extend(queue.rest());
        let back: Vec<_> = had.iter().filter(|&&n| n != 6).collect();
        assert_eq!((had.len(), back), (3, vec![&4, &5]), "{had:?}");
    });
}

/// What has come back when a pop begins is had before what is in the ring.
#[test]
fn what_is_back_comes_before_the_ring() {
    let explorer = Explorer::new("leased: what is back comes before the ring");
    explorer.run(3, || {
        let queue = Queue::new(5, 2, &[At::Held(1, 4)]);
        let holder = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                queue.entry(0).give_back(&queue.changes);
                // Known to who reads what the ledger's place says.
                queue.slots[2].state.store(DEAD, Ordering::SeqCst);
            })
        };
        let popper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut had = Vec::new();
                for _ in 0..2 {
                    let is_back = queue.slots[2].state.load(Ordering::SeqCst) != 0;
                    had.extend(queue.pop());
                    assert!(!is_back || had.contains(&4), "{had:?}");
                }
                had
            })
        };
        let mut had = popper.join().unwrap();
        holder.join().unwrap();
        had.extend(queue.rest());
        had.sort_unstable();
        assert_eq!(had, [4, 5, 6]);
    });
}

/// Somebody is about to take what has come back, when another leases that and gives it back behind one that is to be had
/// before it: it is not what was looked at.
#[test]
fn what_has_come_back_anew() {
    let explorer = Explorer::new("leased: what has come back anew");
    explorer.run(3, || {
        let queue = Queue::new(6, 0, &[At::Held(1, 4), At::Back(5)]);
        let holder = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let leased = queue.lease(1);
                queue.entry(0).give_back(&queue.changes);
                if let Some((entry, _)) = leased {
                    entry.give_back(&queue.changes);
                }
                leased.is_some()
            })
        };
        let popper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || [queue.pop(), queue.pop()])
        };
        let mut had: Vec<_> = popper.join().unwrap().into_iter().flatten().collect();
        let leased = holder.join().unwrap();
        had.extend(queue.rest());
        assert!(had == [4, 5] || !leased && had == [5, 4], "{had:?}");
    });
}

/// Two pop what a dead one has leased, who was settled: each has one, and nobody is told that there is nothing.
#[test]
fn what_the_dead_had() {
    let explorer = Explorer::new("leased: what the dead had");
    explorer.run(3, || {
        let queue = Queue::new(6, 0, &[At::Held(1, 5), At::Held(1, 4)]);
        queue.slots[1].state.store(SETTLED, Ordering::SeqCst);
        let poppers = [(), ()].map(|()| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.pop().unwrap())
        });
        let mut had = poppers.map(|popper| popper.join().unwrap());
        had.sort_unstable();
        assert_eq!((had, queue.pop()), ([4, 5], None));
    });
}

/// As long as somebody has an element, or it is back, it is not said that none will come.
#[test]
fn the_end_behind_a_lease() {
    let explorer = Explorer::new("leased: the end behind a lease");
    explorer.run(3, || {
        let queue = Queue::new(6, 0, &[At::Held(1, 4)]);
        let holder = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.entry(0).give_back(&queue.changes))
        };
        let popper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.pop_of_closed())
        };
        let popped = popper.join().unwrap();
        holder.join().unwrap();
        assert!(popped == Ok(4) || popped == Err(false), "{popped:?}");
    });
}
