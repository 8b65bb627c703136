//! The cells of a queue: nothing is lost, doubled or torn, everything comes in order, and no thread blocks
//! another.

use std::sync::Mutex as Ledger;

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering, fence};
use shmkit::protocol::cells::{Cell, CellPhase, Shape, behind_the_claim};
use shmkit::protocol::foremost::Foremost;
use shmkit::protocol::ring::{self, Claim, Refused, Take, Walk};

use super::{Death, Deaths, Explorer};

/// A queue of elements of two words each, the second of which is the first's complement.
struct Queue {
    shape: Shape,
    head: AtomicU64,
    tail: AtomicU64,
    cells: Vec<[AtomicU64; 3]>,
    /// The cell that the intent of each slot names, plus 1.
    intents: [AtomicU64; 3],
    foremost: Foremost,
    /// The ledger: elements whose push has ended, as everybody knows.
    pushed: AtomicU64,
}

impl Queue {
    fn new(cells: usize) -> Arc<Self> {
        let cell = |i| {
            let free = Cell::new(CellPhase::Free, 0, i).pack();
            [free, 0, 0].map(AtomicU64::new)
        };
        Arc::new(Queue {
            shape: Shape::new(cells as u64),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            cells: (0..cells as u64).map(cell).collect(),
            intents: [0, 0, 0].map(AtomicU64::new),
            foremost: Foremost(AtomicU64::new(0)),
            pushed: AtomicU64::new(0),
        })
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        &self.cells[index][0]
    }

    fn store(&self, index: usize, element: u64) {
        behind_the_claim();
        self.cells[index][1].store(element, Ordering::Relaxed);
        self.cells[index][2].store(!element, Ordering::Relaxed);
    }

    /// A push up to its end.
    fn claims(&self, slot: usize, element: u64) -> Claim {
        let cell = |i| self.cell(i);
        let claim = ring::claim(self.shape, &self.tail, cell, slot, |_| ()).unwrap();
        self.store(claim.index, element);
        claim
    }

    fn push(&self, slot: usize, element: u64) -> Result<(), Refused> {
        let record = |index| self.intents[slot].store(index as u64 + 1, Ordering::Release);
        let claim = ring::claim(self.shape, &self.tail, |i| self.cell(i), slot, record)?;
        self.store(claim.index, element);
        ring::publish(self.cell(claim.index), claim.position);
        self.pushed.fetch_add(1, Ordering::SeqCst);
        self.intents[slot].store(0, Ordering::Release);
        Ok(())
    }

    fn pop(&self) -> Result<u64, Walk> {
        self.take(Take::Pop, |_| true).map(|(_, element)| element)
    }

    /// The first element, and its position.
    fn take(&self, how: Take, valid: impl Fn(Option<&Walk>) -> bool) -> Result<(u64, u64), Walk> {
        let mut copied = (0, 0);
        let at = ring::take(
            self.shape,
            &self.head,
            |i| self.cell(i),
            how,
            valid,
            |index, _| copied = self.element(index),
        )?;
        assert_eq!(copied.0, !copied.1, "torn");
        Ok((at, copied.0))
    }

    fn element(&self, index: usize) -> (u64, u64) {
        let word = |n: usize| self.cells[index][n].load(Ordering::Relaxed);
        (word(1), word(2))
    }

    /// Takes the first element, or looks at it, where others look at it, too: as `containers::queue` does.
    fn take_first(&self, how: Take) -> Option<u64> {
        let cell = |i| self.cell(i);
        // Loads that are sequentially consistent are no more than acquire ones here.
        let valid = |walk: Option<&Walk>| {
            fence(Ordering::SeqCst);
            let Some(walk) = walk else {
                return self.foremost.is_none();
            };
            let to_stay = walk.pending.is_some() && how == Take::Look;
            walk.full.is_some_and(|at| {
                self.foremost.is_first(at, to_stay, || {
                    fence(Ordering::SeqCst);
                    walk.still(self.shape, &cell)
                })
            })
        };
        loop {
            let Some(at) = self.foremost.position() else {
                match self.take(how, valid) {
                    Ok((at, element)) => {
                        if how != Take::Look {
                            self.foremost.taken(at);
                        }
                        return Some(element);
                    }
                    Err(walk) if walk.full.is_none() => return None,
                    Err(_) => {}
                }
                continue;
            };
            let index = self.shape.index(at);
            let mut copied = (0, 0);
            let copy = || copied = self.element(index);
            let taken = self.foremost.take_told(at, how, || {
                ring::take_at(self.shape, cell(index), at, how, || true, copy)
            });
            if taken == Some(true) {
                return Some(copied.0);
            }
        }
    }

    /// What recovery does for a dead slot.
    fn recover(&self, slot: usize) {
        let index = self.intents[slot].load(Ordering::Acquire) as usize;
        if index != 0 {
            ring::vacate(self.cell(index - 1), slot, self.shape.lap());
        }
        self.intents[slot].store(0, Ordering::Release);
    }

    fn rest(&self) -> Vec<u64> {
        std::iter::from_fn(|| self.pop().ok()).collect()
    }
}

/// Two producers and a consumer on a queue that goes round: all elements come, whole, each
/// producer's in order, and "empty" is not answered while a push has ended and nothing was taken.
/// (All who matter are threads of their own: of what the first thread does less is explored.)
#[test]
fn producers_and_a_consumer() {
    let explorer = Explorer::new("ring: producers and a consumer");
    explorer.run(2, || {
        let queue = Queue::new(2);
        let producers: Vec<_> = [1_usize, 2]
            .map(|slot| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let first = slot as u64 * 10;
                    (first..first + 2)
                        .take_while(|&n| queue.push(slot, n).is_ok())
                        .count()
                })
            })
            .into();
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut popped = Vec::new();
                for _ in 0..2 {
                    let ended = queue.pushed.load(Ordering::SeqCst);
                    match queue.pop() {
                        Ok(element) => popped.push(element),
                        Err(_) => assert!(popped.len() as u64 >= ended, "{popped:?} of {ended}"),
                    }
                }
                popped
            })
        };
        let pushed: Vec<_> = producers.into_iter().map(|p| p.join().unwrap()).collect();
        let mut popped = consumer.join().unwrap();
        popped.extend(queue.rest());
        for (slot, count) in pushed.into_iter().enumerate() {
            let first = (slot as u64 + 1) * 10;
            let of: Vec<_> = popped.iter().filter(|&&n| n / 10 == first / 10).collect();
            assert_eq!(
                of,
                (first..first + count as u64)
                    .collect::<Vec<_>>()
                    .iter()
                    .collect::<Vec<_>>()
            );
        }
    });
}

/// What was looked at stays the first: one looks at it while two push, and then it is popped.
#[test]
fn looks() {
    let explorer = Explorer::new("ring: looks");
    explorer.run(2, || {
        let queue = Queue::new(4);
        let producers = [1_usize, 2].map(|slot| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(slot, slot as u64).unwrap())
        });
        let looker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.take_first(Take::Look))
        };
        let seen = looker.join().unwrap();
        let next = queue.take_first(Take::Pop);
        producers.into_iter().for_each(|p| p.join().unwrap());
        let popped: Vec<_> = next
            .into_iter()
            .chain(std::iter::from_fn(|| queue.take_first(Take::Pop)))
            .collect();
        assert!(
            seen.is_none_or(|first| popped[0] == first),
            "{seen:?}: {popped:?}"
        );
        assert!(popped == [1, 2] || popped == [2, 1], "{popped:?}");
    });
}

/// An element is looked at, while one pops it and another pushes into its cell: it is whole.
#[test]
fn a_copy_against_the_next() {
    // Fences before the exchanges would say what the element is to say.
    let explorer = Explorer::without_fences("ring: a copy against the next");
    explorer.run(2, || {
        let queue = Queue::new(1);
        queue.push(1, 1).unwrap();
        let popper = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || _ = queue.pop())
        };
        let pusher = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || _ = queue.push(2, 2))
        };
        let looker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || _ = queue.take(Take::Look, |_| true))
        };
        for thread in [popper, pusher, looker] {
            thread.join().unwrap();
        }
    });
}

/// Two who look tell the same, while a push that both may go past is on its way.
#[test]
fn two_looks() {
    let explorer = Explorer::new("ring: two looks");
    explorer.run(3, || {
        let queue = Queue::new(2);
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(1, 1).unwrap())
        };
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                queue.push(2, 2).unwrap();
                queue.take_first(Take::Look)
            })
        };
        let looker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.take_first(Take::Look))
        };
        let theirs = other.join().unwrap();
        let mine = looker.join().unwrap();
        producer.join().unwrap();
        let first = queue.take_first(Take::Pop);
        assert!(mine.is_none() || mine == first, "{mine:?} {first:?}");
        assert_eq!(theirs, first);
    });
}

/// Who has seen an element, and comes to name it when it is gone, has no other one taken for the first: the
/// word is not as it was.
#[test]
fn a_late_look() {
    let explorer = Explorer::new("ring: a late look");
    explorer.run(2, || {
        let queue = Queue::new(4);
        let cell = |i| queue.cell(i);
        // A push that does not end, and two that have.
        queue.claims(1, 0);
        (1..3).for_each(|n| queue.push(2, n).unwrap());
        let walk = queue.take(Take::Pop, |_| false).unwrap_err();
        let late = walk.full.unwrap();
        assert_eq!(queue.take_first(Take::Look), Some(1));
        assert_eq!(queue.take_first(Take::Pop), Some(1));
        // Another one is about to name the second. The late one does not name the first meanwhile.
        let named = queue.foremost.is_first(late + 1, true, || {
            let still = || walk.still(queue.shape, &cell);
            assert!(!queue.foremost.is_first(late, true, still));
            true
        });
        assert!(named);
        assert_eq!(queue.take_first(Take::Pop), Some(2));
    });
}

/// Who looks past a push dies at every write: the others tell and take what they would.
#[test]
fn death_of_a_look() {
    let explorer = Explorer::new("ring: death of a look");
    explorer.each_death(2, |deaths: Deaths, at: Death| {
        move || {
            let queue = Queue::new(4);
            let first = queue.claims(1, 1);
            (2..4).for_each(|n| queue.push(2, n).unwrap());
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || [Take::Look, Take::Pop].map(|how| queue.take_first(how)))
            };
            let producer = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || ring::publish(queue.cell(first.index), first.position))
            };
            let mut seen = None;
            deaths.kill(at, || seen = queue.take_first(Take::Look));
            let [told, taken] = other.join().unwrap();
            producer.join().unwrap();
            assert_eq!(told, taken);
            let mut all = vec![taken.unwrap()];
            all.extend(std::iter::from_fn(|| queue.take_first(Take::Pop)));
            assert!(seen.is_none_or(|seen| all[..2].contains(&seen)));
            all.retain(|&n| n != 1);
            assert_eq!(all, [2, 3]);
        }
    });
}

/// Who takes what was told dies at every write: nobody takes another one before that is gone.
#[test]
fn death_of_who_takes_what_was_told() {
    let explorer = Explorer::new("ring: death of who takes what was told");
    explorer.each_death(2, |deaths: Deaths, at: Death| {
        move || {
            let queue = Queue::new(4);
            let first = queue.claims(1, 1);
            queue.push(2, 2).unwrap();
            assert_eq!(queue.take_first(Take::Look), Some(2));
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    ring::publish(queue.cell(first.index), first.position);
                    queue.take_first(Take::Pop)
                })
            };
            deaths.kill(at, || _ = queue.take_first(Take::Pop));
            let mut all: Vec<_> = other.join().unwrap().into_iter().collect();
            all.extend(std::iter::from_fn(|| queue.take_first(Take::Pop)));
            // Who died had one of them or none, and the other one is told no element that is behind it.
            assert!([&[2, 1][..], &[1], &[2]].contains(&&all[..]), "{all:?}");
        }
    });
}

/// A consumer goes past a push that is on its way only as long as it is: what the same producer pushes
/// after that is not had before it.
#[test]
fn order() {
    let explorer = Explorer::new("ring: order");
    explorer.run(4, || {
        let queue = Queue::new(3);
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || (0..2).for_each(|n| queue.push(1, n).unwrap()))
        };
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let popped = (0..2).filter_map(|_| queue.pop().ok());
                popped.collect::<Vec<_>>()
            })
        };
        producer.join().unwrap();
        let mut popped = consumer.join().unwrap();
        popped.extend(queue.rest());
        assert_eq!(popped, [0, 1]);
    });
}

/// "Empty" is the answer of a moment: while one consumer has had nothing, and two pushes have ended
/// one after the other, another one finds something.
#[test]
fn emptiness() {
    let explorer = Explorer::new("ring: emptiness");
    explorer.run(2, || {
        let queue = Queue::new(3);
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || (0..2).for_each(|n| queue.push(1, n).unwrap()))
        };
        let consumers = [0, 1].map(|_| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let ended = queue.pushed.load(Ordering::SeqCst);
                let had = queue.pop().ok();
                // One at most is the other's.
                assert!(had.is_some() || ended < 2);
                had
            })
        });
        producer.join().unwrap();
        let had = consumers.map(|consumer| consumer.join().unwrap());
        assert_eq!(had.into_iter().flatten().chain(queue.rest()).count(), 2);
    });
}

/// Two consumers on three elements, while one is pushed: each is had once, and each consumer's in
/// order.
#[test]
fn consumers() {
    let explorer = Explorer::new("ring: consumers");
    explorer.run(3, || {
        let queue = Queue::new(3);
        (0..3).for_each(|n| queue.push(1, n).unwrap());
        let had = Arc::new(Ledger::new(Vec::new()));
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, had) = (Arc::clone(&queue), Arc::clone(&had));
                thread::spawn(move || {
                    let mine = [queue.pop(), queue.pop()];
                    let mine: Vec<_> = mine.into_iter().flatten().collect();
                    assert!(mine.is_sorted(), "{mine:?}");
                    had.lock().unwrap().extend(mine);
                })
            })
            .collect();
        let pushed = queue.push(1, 3).is_ok();
        consumers.into_iter().for_each(|c| c.join().unwrap());
        let mut had = std::mem::take(&mut *had.lock().unwrap());
        had.extend(queue.rest());
        had.sort_unstable();
        let all: Vec<_> = (0..3 + u64::from(pushed)).collect();
        assert_eq!(had, all);
    });
}

/// A producer dies at every write, with another one and a consumer at work: the element is there or
/// not, nobody is held up by the dead one, and once it is recovered all cells are of use.
#[test]
fn death_of_a_producer() {
    let explorer = Explorer::new("ring: death of a producer");
    explorer.each_death(2, |deaths: Deaths, at: Death| {
        move || {
            let queue = Queue::new(2);
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.push(2, 20).is_ok())
            };
            let consumer = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.pop().ok())
            };
            let died = deaths.kill(at, || _ = queue.push(1, 10));
            // Without recovery: what has been pushed can be had.
            let mut had: Vec<_> = consumer.join().unwrap().into_iter().collect();
            let pushed = other.join().unwrap();
            had.extend(queue.rest());
            assert!(had.contains(&20) == pushed && (died || had.contains(&10)));
            queue.recover(1);
            had.extend(queue.rest());
            had.sort_unstable();
            had.dedup();
            assert_eq!(
                had.len(),
                usize::from(had.contains(&10)) + usize::from(pushed)
            );
            assert!(queue.push(2, 30).is_ok() && queue.push(2, 31).is_ok());
            assert_eq!(queue.push(2, 32), Err(Refused::Full(None)));
            assert_eq!(queue.rest(), [30, 31]);
        }
    });
}

/// Where the slot of a dead producer is between DEAD and settled.
const DEAD: u64 = 1;
const SETTLING: u64 = 2;
const SETTLED: u64 = 3;

impl Queue {
    /// What `recovery::settle_slot` does and answers: true if the slot was seen dead and is settled now.
    fn settles(&self, slot: usize, state: &AtomicU64) -> bool {
        let mut was_dead = false;
        loop {
            match state.compare_exchange(DEAD, SETTLING, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    self.recover(slot);
                    state.store(SETTLED, Ordering::SeqCst);
                    return true;
                }
                Err(SETTLING) => was_dead = true,
                Err(_) => return was_dead,
            }
            thread::yield_now();
        }
    }
}

/// Who pushes and meets the place of a dead producer gets it, also if somebody else settles the dead one
/// just then.
#[test]
fn room_of_the_dead() {
    let explorer = Explorer::new("ring: room of the dead");
    explorer.each_death(3, |deaths: Deaths, at: Death| {
        move || {
            let queue = Queue::new(1);
            deaths.kill(at, || _ = queue.push(1, 10));
            let state = Arc::new(AtomicU64::new(DEAD));
            let other = {
                let (queue, state) = (Arc::clone(&queue), Arc::clone(&state));
                thread::spawn(move || _ = queue.settles(1, &state))
            };
            let pusher = {
                let (queue, state) = (Arc::clone(&queue), Arc::clone(&state));
                thread::spawn(move || {
                    loop {
                        match queue.push(2, 20) {
                            Err(Refused::Full(Some(busy)))
                                if busy
                                    .is_over(|i| queue.cell(i), |s| queue.settles(s, &state)) => {}
                            done => break done,
                        }
                    }
                })
            };
            other.join().unwrap();
            match pusher.join().unwrap() {
                Ok(()) => assert_eq!(queue.rest(), [20]),
                Err(refused) => {
                    assert_eq!(refused, Refused::Full(None));
                    assert_eq!(queue.rest(), [10]);
                }
            }
        }
    });
}

/// Sealing against a push that is on its way: it is refused, or its element is had.
#[test]
fn sealing() {
    let explorer = Explorer::new("ring: sealing");
    explorer.run(3, || {
        let queue = Queue::new(1);
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(1, 10))
        };
        let mut had = Vec::new();
        loop {
            match queue.pop() {
                Ok(element) => had.push(element),
                Err(walk) if walk.pending.is_some() => {
                    assert_eq!(walk.pending, Some(1));
                    thread::yield_now();
                }
                Err(walk) if walk.sealed => break,
                Err(walk) => {
                    ring::seal(queue.cell(queue.shape.index(walk.end)), walk.end);
                }
            }
        }
        match producer.join().unwrap() {
            Ok(()) => assert_eq!(had, [10]),
            Err(refused) => assert_eq!((refused, had), (Refused::Sealed, vec![])),
        }
    });
}
