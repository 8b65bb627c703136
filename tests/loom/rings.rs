//! An unbounded queue, of several rings: nothing is lost, doubled or popped out of order while one ring is left for the
//! next.
//!
//! Taking an element from one of several rings is written out here, as in `containers::queue::take`, and so is pushing,
//! as in `containers::queue::push`; the steps in a ring are the product's code.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering, fence};
use shmkit::protocol::cells::{Cell, CellPhase, Shape, behind_the_claim};
use shmkit::protocol::foremost::Foremost;
use shmkit::protocol::ring::{self, Claim, Refused, Take, Walk};

use super::{Death, Deaths, Explorer};

/// From the positions of a ring to those of the next one.
const GAP: u64 = 64;

/// A ring, or the memory of one.
struct Ring {
    shape: Shape,
    next: AtomicU64,
    head: AtomicU64,
    tail: AtomicU64,
    /// Each a word and the element.
    cells: Vec<[AtomicU64; 2]>,
}

impl Ring {
    /// With nothing that makes sense in it.
    fn new(cells: u64) -> Self {
        Ring {
            shape: Shape::new(cells),
            next: AtomicU64::new(u64::MAX),
            head: AtomicU64::new(u64::MAX),
            tail: AtomicU64::new(u64::MAX),
            cells: (0..cells)
                .map(|_| [u64::MAX; 2].map(AtomicU64::new))
                .collect(),
        }
    }

    fn fill(&self, base: u64) {
        self.next.store(0, Ordering::Relaxed);
        self.head.store(base, Ordering::Relaxed);
        self.tail.store(base, Ordering::Relaxed);
        for (at, cell) in (base..).zip(&self.cells) {
            cell[0].store(Cell::new(CellPhase::Free, 0, at).pack(), Ordering::Relaxed);
        }
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        &self.cells[index][0]
    }

    fn successor(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }
}

/// The first ring, and what each of two slots makes of its own memory: a second one, and a third. A ring's number is its
/// address.
struct Queue {
    rings: [Ring; 5],
    /// Hints.
    front: AtomicU64,
    back: AtomicU64,
    closed: AtomicU64,
    foremost: Foremost,
    /// Of each slot: whether PUSH is open, and the ring and the cell, plus 1, of the place.
    intents: [[AtomicU64; 3]; 4],
    /// The ledger: how many pushes have ended, as everybody knows.
    pushed: AtomicU64,
}

/// A ring that was gone past.
struct Passed<'a> {
    ring: &'a Ring,
    walk: Walk,
    before: Option<&'a Passed<'a>>,
}

impl Passed<'_> {
    fn still(&self) -> bool {
        fence(Ordering::SeqCst);
        self.walk
            .still(self.ring.shape, &|index| self.ring.cell(index))
            && self.before.is_none_or(Passed::still)
    }
}

/// Why there is no element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nothing {
    Empty,
    Closed,
}

const FIRST: u64 = 1;

impl Queue {
    /// The first ring has one place.
    fn new() -> Self {
        let queue = Queue {
            rings: [1, 2, 2, 4, 4].map(Ring::new),
            front: AtomicU64::new(FIRST),
            back: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            foremost: Foremost(AtomicU64::new(0)),
            intents: [(); 4].map(|()| [0; 3].map(AtomicU64::new)),
            pushed: AtomicU64::new(0),
        };
        queue.rings[0].fill(GAP);
        queue
    }

    /// With that element in the only place.
    fn full(element: u64) -> Arc<Self> {
        let queue = Queue::new();
        queue.push(3, element).unwrap();
        Arc::new(queue)
    }

    fn ring(&self, number: u64) -> Option<&Ring> {
        (number != 0).then(|| &self.rings[number as usize - 1])
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) != 0
    }

    fn push(&self, slot: usize, element: u64) -> Result<(), ()> {
        let mut number = self.back.load(Ordering::Acquire);
        if number == 0 {
            number = FIRST;
            self.back.store(number, Ordering::Release);
        }
        loop {
            let ring = self.ring(number).unwrap();
            let Err(refused) = self.push_to(slot, number, element) else {
                self.pushed.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            };
            if self.is_closed() {
                return Err(());
            }
            let next = match refused {
                _ if ring.successor() != 0 => ring.successor(),
                Refused::Full(_) => self.make_next(slot, ring),
                Refused::Sealed => return Err(()),
            };
            self.back.store(next, Ordering::Release);
            number = next;
        }
    }

    fn push_to(&self, slot: usize, number: u64, element: u64) -> Result<(), Refused> {
        let ring = self.ring(number).unwrap();
        if self.is_closed() || ring.successor() != 0 {
            return Err(Refused::Sealed);
        }
        let [op, of, at] = &self.intents[slot];
        of.store(number, Ordering::Relaxed);
        at.store(0, Ordering::Relaxed);
        op.store(1, Ordering::Release);
        let record = |index| at.store(index as u64 + 1, Ordering::Release);
        let claimed = ring::claim(ring.shape, &ring.tail, |i| ring.cell(i), slot, record);
        let done = claimed.map(|claim| {
            behind_the_claim();
            ring.cells[claim.index][1].store(element, Ordering::Relaxed);
            ring::publish(ring.cell(claim.index), claim.position);
        });
        op.store(0, Ordering::Release);
        done
    }

    fn make_next(&self, slot: usize, ring: &Ring) -> u64 {
        if ring.successor() == 0 {
            let mine = slot as u64 + if ring.shape.cells() == 1 { 1 } else { 3 };
            let seen = Cell::unpack(ring.cell(0).load(Ordering::Relaxed)).position;
            let base = (seen + GAP).next_multiple_of(4);
            self.ring(mine).unwrap().fill(base);
            let _ = ring
                .next
                .compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed);
        }
        ring.successor()
    }

    /// What recovery does for a dead slot.
    fn recover(&self, slot: usize) {
        let [op, of, at] = [0, 1, 2].map(|n| self.intents[slot][n].load(Ordering::Acquire));
        if op != 0 && at != 0 {
            let ring = self.ring(of).unwrap();
            ring::vacate(ring.cell(at as usize - 1), slot, ring.shape.lap());
        }
        self.intents[slot][0].store(0, Ordering::Release);
    }

    fn pop(&self) -> Result<u64, Nothing> {
        self.take(Take::Pop)
    }

    fn take(&self, how: Take) -> Result<u64, Nothing> {
        loop {
            let first = self.ring(self.front.load(Ordering::Acquire)).unwrap();
            let mut copied = 0;
            let taken = match self.foremost.position() {
                Some(at) => Ok(self.take_foremost(first, at, how, &mut copied)),
                None => self.take_behind(first, None, how, &mut copied),
            };
            if taken? {
                return Ok(copied);
            }
            // Others go on.
            thread::yield_now();
        }
    }

    fn take_foremost(&self, first: &Ring, at: u64, how: Take, copied: &mut u64) -> bool {
        let rings = std::iter::successors(Some(first), |ring| self.ring(ring.successor()));
        let take = || {
            { rings }.find_map(|ring| {
                let index = ring.shape.index(at);
                let copy = || *copied = ring.cells[index][1].load(Ordering::Relaxed);
                ring::take_at(ring.shape, ring.cell(index), at, how, || true, copy)
            })
        };
        self.foremost.take_told(at, how, take) == Some(true)
    }

    fn is_first(&self, how: Take, ring: &Ring, walk: &Walk, passed: Option<&Passed<'_>>) -> bool {
        let before = || passed.is_none_or(Passed::still);
        let still = || {
            fence(Ordering::SeqCst);
            walk.still(ring.shape, &|index| ring.cell(index)) && before()
        };
        let to_stay = how == Take::Look && (walk.pending.is_some() || passed.is_some());
        // Loads that are sequentially consistent are no more than acquire ones here.
        fence(Ordering::SeqCst);
        walk.full
            .is_some_and(|at| self.foremost.is_first(at, to_stay, still))
            && before()
    }

    /// True if the element was taken that was copied.
    fn take_behind<'a>(
        &'a self,
        mut ring: &'a Ring,
        passed: Option<&Passed<'_>>,
        how: Take,
        copied: &mut u64,
    ) -> Result<bool, Nothing> {
        loop {
            let cell = |index| ring.cell(index);
            let valid = |walk: &Walk| self.is_first(how, ring, walk, passed);
            let mut copy = |index: usize, _| *copied = ring.cells[index][1].load(Ordering::Relaxed);
            let walk = match ring::take_if(ring.shape, &ring.head, &cell, how, &mut copy, &valid) {
                Ok(at) => {
                    if how != Take::Look {
                        self.foremost.taken(at);
                    }
                    return Ok(true);
                }
                Err(walk) if walk.full.is_some() => return Ok(false),
                Err(walk) => walk,
            };
            assert!(!walk.lost);
            let number = ring.successor();
            if !passed.is_none_or(Passed::still) {
                return Ok(false);
            }
            let Some(next) = self.ring(number) else {
                return self.nothing(ring, &walk, passed.is_some()).map(|()| false);
            };
            let closed = walk.sealed || walk.around;
            if !closed && !ring::seal(cell(ring.shape.index(walk.end)), walk.end) {
                return Ok(false);
            }
            if walk.pending.is_some() || walk.around {
                let passed = Passed {
                    ring,
                    walk,
                    before: passed,
                };
                return self.take_behind(next, Some(&passed), how, copied);
            }
            if passed.is_none() {
                self.front.store(number, Ordering::Release);
            }
            ring = next;
        }
    }

    /// Nothing is leased here.
    fn nothing(&self, last: &Ring, walk: &Walk, others_pending: bool) -> Result<(), Nothing> {
        if !self.is_closed() || walk.pending.is_some() || walk.around || others_pending {
            return Err(Nothing::Empty);
        }
        if !walk.sealed {
            ring::seal(last.cell(last.shape.index(walk.end)), walk.end);
            return Ok(());
        }
        Err(Nothing::Closed)
    }

    fn rest(&self) -> Vec<u64> {
        std::iter::from_fn(|| self.pop().ok()).collect()
    }

    /// So many pops, each of which finds something if more pushes have ended than elements were had before it.
    fn pops(&self, times: usize) -> Vec<u64> {
        let mut had = Vec::new();
        for _ in 0..times {
            let ended = self.pushed.load(Ordering::SeqCst);
            match self.pop() {
                Ok(element) => had.push(element),
                Err(_) => assert!(had.len() as u64 >= ended, "{had:?} of {ended}"),
            }
        }
        had
    }

    /// With the only place of the first ring claimed by a push that is on its way, and another ring.
    fn behind_a_push() -> (Arc<Self>, Claim) {
        let queue = Queue::new();
        let [first, ..] = &queue.rings;
        let claim = ring::claim(first.shape, &first.tail, |i| first.cell(i), 3, |_| ()).unwrap();
        first.cells[claim.index][1].store(3, Ordering::Relaxed);
        queue.make_next(1, first);
        (Arc::new(queue), claim)
    }

    /// The end of that push.
    fn publish(&self, claim: Claim) {
        ring::publish(self.rings[0].cell(claim.index), claim.position);
    }
}

/// Two push where the ring is full, or has been until just now, and one pops.
#[test]
fn two_who_go_on() {
    let explorer = Explorer::new("rings: two who go on");
    explorer.run(2, || {
        let queue = Queue::full(0);
        let producers = [1, 2].map(|slot| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(slot, slot as u64).unwrap())
        });
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.pops(2))
        };
        producers
            .into_iter()
            .for_each(|producer| producer.join().unwrap());
        let mut had = consumer.join().unwrap();
        had.extend(queue.rest());
        assert!(had == [0, 1, 2] || had == [0, 2, 1], "{had:?}");
    });
}

/// What one pushes comes in its order, whichever ring it is in, while another is in the way.
#[test]
fn order() {
    let explorer = Explorer::new("rings: order");
    explorer.run(2, || {
        let queue = Queue::full(0);
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || (1..3).for_each(|n| queue.push(1, n).unwrap()))
        };
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let ended = queue.pushed.load(Ordering::SeqCst);
                queue.push(2, 9).unwrap();
                ended as usize
            })
        };
        let mut had = queue.pops(3);
        producer.join().unwrap();
        let ended = other.join().unwrap();
        had.extend(queue.rest());
        assert!(!had[..ended].contains(&9), "{had:?}, 9 behind {ended}");
        had.retain(|&n| n != 9);
        assert_eq!(had, [0, 1, 2]);
    });
}

/// Who comes late sets the hint back to a ring that was left, and there is room again: nobody pushes there.
#[test]
fn a_late_hint() {
    let explorer = Explorer::new("rings: a late hint");
    explorer.run(2, || {
        let queue = Queue::full(0);
        queue.push(1, 1).unwrap();
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.pops(2))
        };
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                queue.back.store(FIRST, Ordering::Release);
                queue.push(1, 2).unwrap();
            })
        };
        producer.join().unwrap();
        let mut had = consumer.join().unwrap();
        had.extend(queue.rest());
        assert_eq!(had, [0, 1, 2]);
    });
}

/// Two pop where a ring is drained and the next one has something, which one of them has pushed: each finds one.
#[test]
fn two_who_leave_a_ring() {
    let explorer = Explorer::new("rings: two who leave a ring");
    explorer.run(3, || {
        let queue = Queue::full(0);
        let pusher = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                queue.push(1, 1).unwrap();
                queue.pop().unwrap()
            })
        };
        let popper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.pop().unwrap())
        };
        let mut had = [pusher, popper].map(|thread| thread.join().unwrap());
        had.sort_unstable();
        assert_eq!((had, queue.rest()), ([0, 1], vec![]));
    });
}

/// Somebody keeps the only place of a ring, from a lap before, so nothing is pushed there; and lets it go. Another one has
/// come to that ring before there was a next.
#[test]
fn a_place_that_is_kept() {
    let explorer = Explorer::new("rings: a place that is kept");
    explorer.run(2, || {
        let queue = Queue::full(0);
        let [first, ..] = &queue.rings;
        let lease = Take::Lease(3);
        let leased = ring::take_at(first.shape, first.cell(0), GAP, lease, || true, || ());
        assert_eq!(leased, Some(true));
        queue.pushed.store(0, Ordering::SeqCst);
        let keeper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let [first, ..] = &queue.rings;
                ring::vacate(first.cell(0), 3, first.shape.lap());
                (1..3).for_each(|n| queue.push(1, n).unwrap());
            })
        };
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(2, 9).unwrap())
        };
        let mut had = queue.pops(2);
        keeper.join().unwrap();
        other.join().unwrap();
        had.extend(queue.rest());
        let of_one: Vec<_> = had.iter().copied().filter(|&n| n != 9).collect();
        assert_eq!((of_one, had.len()), (vec![1, 2], 3), "{had:?}");
    });
}

/// Who looks past a push of a ring that was left tells what is had next. Once that push has ended, nothing is told or had
/// before its element that is pushed then.
#[test]
fn past_a_push_of_a_ring() {
    let explorer = Explorer::new("rings: past a push of a ring");
    explorer.run(3, || {
        let (queue, claim) = Queue::behind_a_push();
        let pusher = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                queue.publish(claim);
                queue.push(1, 4).unwrap();
            })
        };
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || [Take::Look, Take::Pop].map(|how| queue.take(how).ok()))
        };
        let [told, had] = consumer.join().unwrap();
        pusher.join().unwrap();
        let mut all: Vec<_> = had.into_iter().collect();
        all.extend(queue.rest());
        assert_eq!((told.unwrap_or(3), all), (3, vec![3, 4]));
    });
}

/// The same where something is behind that push already.
#[test]
fn a_look_past_a_ring() {
    let explorer = Explorer::new("rings: a look past a ring");
    explorer.run(3, || {
        let (queue, claim) = Queue::behind_a_push();
        queue.push(1, 4).unwrap();
        let pusher = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.publish(claim))
        };
        let looker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let told = queue.take(Take::Look).unwrap();
                assert_eq!(queue.take(Take::Look), Ok(told));
                told
            })
        };
        let told = looker.join().unwrap();
        assert_eq!(queue.pop(), Ok(told));
        pusher.join().unwrap();
        assert_eq!(queue.rest().len(), 1);
    });
}

/// It is not said that nothing comes any more while somebody is in the middle of a push in a ring that was left.
#[test]
fn closing_behind_a_push() {
    let explorer = Explorer::new("rings: closing behind a push");
    explorer.run(3, || {
        let (queue, claim) = Queue::behind_a_push();
        // And a third ring, for which the second one is left.
        queue.make_next(1, queue.ring(2).unwrap());
        queue.closed.store(1, Ordering::SeqCst);
        let pusher = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.publish(claim))
        };
        let mut had = None;
        loop {
            match queue.pop() {
                Ok(element) => had = Some(element),
                Err(Nothing::Empty) => thread::yield_now(),
                Err(Nothing::Closed) => break,
            }
        }
        pusher.join().unwrap();
        assert_eq!(had, Some(3));
    });
}

/// Who pushes where the ring is full dies at every write: its element is there or not, and the others go on.
#[test]
fn death_of_who_goes_on() {
    let explorer = Explorer::new("rings: death of who goes on");
    explorer.each_death(2, |deaths: Deaths, at: Death| {
        move || {
            let queue = Queue::full(0);
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    queue.push(2, 2).unwrap();
                    queue.pop()
                })
            };
            let died = deaths.kill(at, || queue.push(1, 1).unwrap());
            assert_eq!(other.join().unwrap(), Ok(0));
            if died {
                queue.recover(1);
            }
            let mut had = queue.rest();
            had.sort_unstable();
            assert!(had == [1, 2] || died && had == [2], "{had:?}");
            (3..8).for_each(|n| queue.push(2, n).unwrap_or_else(|()| panic!("{n}")));
            assert_eq!(queue.rest(), [3, 4, 5, 6, 7]);
        }
    });
}

/// A push to a queue that is closed meanwhile is refused, or its element is had before it is said that none will come.
#[test]
fn closing() {
    let explorer = Explorer::new("rings: closing");
    explorer.run(3, || {
        let queue = Queue::full(0);
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(1, 1).is_ok())
        };
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut had = Vec::new();
                loop {
                    match queue.pop() {
                        Ok(element) => had.push(element),
                        Err(Nothing::Empty) => thread::yield_now(),
                        Err(Nothing::Closed) => return had,
                    }
                }
            })
        };
        queue.closed.store(1, Ordering::SeqCst);
        let pushed = producer.join().unwrap();
        let had = consumer.join().unwrap();
        assert_eq!(had, [0, 1][..1 + usize::from(pushed)]);
        assert_eq!(queue.pop(), Err(Nothing::Closed));
    });
}
