//! The rounds of a barrier: nobody goes on before all have arrived, nobody waits for a party that is known to be
//! dead, and no round is broken without a death or a party that gives up.

use std::sync::atomic::{AtomicU64 as Ledger, Ordering::Relaxed};

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::rounds::{Entry, Over, Rounds, State};
use shmkit::protocol::tag::Tag;

use super::{Death, Deaths, Explorer};

/// Parties of a barrier, and of another group.
const MOST: usize = 6;

struct Barrier {
    parties: u64,
    state: AtomicU64,
    entries: Vec<Entry>,
    /// Whose life words are marked, a bit a slot.
    gone: AtomicU64,
    /// The kernel's list of sleepers. It has what was gone when that was last looked at.
    sleepers: (Mutex<u64>, Condvar),
    /// The ledger: how often each has begun to arrive.
    begun: [Ledger; MOST],
}

fn tag(slot: usize) -> Tag {
    Tag::new(slot, 1)
}

impl Barrier {
    fn new(parties: usize) -> Arc<Self> {
        let entry = |_| Entry {
            owner: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
        };
        Arc::new(Barrier {
            parties: parties as u64,
            state: AtomicU64::new(State::NEW),
            entries: (0..2 * parties).map(entry).collect(),
            gone: AtomicU64::new(0),
            sleepers: (Mutex::new(0), Condvar::new()),
            begun: Default::default(),
        })
    }

    fn rounds(&self) -> Rounds<'_> {
        Rounds {
            state: &self.state,
            entries: &self.entries,
        }
    }

    fn is_gone(&self, owner: Tag) -> bool {
        self.gone.load(Ordering::Acquire) & (1 << owner.slot()) != 0
    }

    fn wake(&self) {
        let _queue = self.sleepers.0.lock().unwrap();
        self.sleepers.1.notify_all();
    }

    /// Sleeps while the state is as expected, without any time limit; but a death is seen after a while.
    fn sleep(&self, expected: State, gone: u64) {
        let queue = self.sleepers.0.lock().unwrap();
        if *queue == gone && self.state.load(Ordering::SeqCst) as u32 == expected.low() {
            drop(self.sleepers.1.wait(queue).unwrap());
        }
    }

    /// What the kernel does.
    fn bury(&self, slot: usize) {
        let mut queue = self.sleepers.0.lock().unwrap();
        *queue |= 1 << slot;
        self.gone.store(*queue, Ordering::Release);
        self.sleepers.1.notify_all();
    }

    /// Arrives at a round, which is over, or is waited for.
    fn arrive(&self, slot: usize) -> Result<State, Over> {
        let rounds = self.rounds();
        let entry = rounds.entry(tag(slot), |owner| self.is_gone(owner));
        self.begun[slot].fetch_add(1, Relaxed);
        rounds.arrive(entry.expect("there is room"), self.parties)
    }

    /// As `Barrier::wait`: whether this one was the last.
    fn wait(&self, slot: usize) -> Result<bool, Over> {
        let round = match self.arrive(slot) {
            Ok(round) => round,
            Err(Over::Broken) => return Err(Over::Broken),
            Err(Over::Ended) => {
                self.wake();
                return Ok(true);
            }
        };
        loop {
            let gone = *self.sleepers.0.lock().unwrap();
            let is_gone = |owner| self.is_gone(owner);
            match self.rounds().look(round, is_gone, || self.wake()) {
                Ok(state) => self.sleep(state, gone),
                Err(Over::Broken) => return Err(Over::Broken),
                Err(Over::Ended) => return Ok(false),
            }
        }
    }

    /// The parties have met once.
    fn meet(&self, slots: impl IntoIterator<Item = usize>) {
        let last = slots.into_iter().map(|slot| self.arrive(slot)).last();
        assert_eq!(last, Some(Err(Over::Ended)));
    }

    /// A round has ended for one of those: all of them have come to it, the so manieth of each.
    fn have_all_begun(&self, slots: &[usize], times: u64) {
        for slot in slots {
            assert!(
                self.begun[*slot].load(Relaxed) >= times,
                "{slot} is missing"
            );
        }
    }
}

/// A party that waits so often. How often it was the last one, unless the barrier was broken.
fn party(
    barrier: &Arc<Barrier>,
    slot: usize,
    all: &'static [usize],
    times: std::ops::Range<u64>,
) -> JoinHandle<Result<usize, Over>> {
    let barrier = Arc::clone(barrier);
    thread::spawn(move || {
        let mut last = 0;
        for time in times {
            last += usize::from(barrier.wait(slot)?);
            barrier.have_all_begun(all, time + 1);
        }
        Ok(last)
    })
}

/// Nobody dies: all rounds end for all, and of each somebody was the last.
#[test]
fn rounds_one_after_the_other() {
    let explorer = Explorer::new("rounds: one after the other");
    explorer.run(2, || {
        let barrier = Barrier::new(2);
        let other = party(&barrier, 2, &[1, 2], 0..2);
        let mine = party(&barrier, 1, &[1, 2], 0..2);
        let last = [mine, other].map(|party| party.join().unwrap().unwrap());
        assert_eq!(last.iter().sum::<usize>(), 2);
    });
}

/// One of two gives up at once. Either both have arrived by then, or the other is told.
#[test]
fn a_party_gives_up() {
    const ALL: &[usize] = &[1, 2];
    let explorer = Explorer::new("rounds: a party gives up");
    explorer.run(2, || {
        let barrier = Barrier::new(2);
        let other = party(&barrier, 2, ALL, 0..1);
        let ended = match barrier.arrive(1) {
            Ok(round) => match barrier.rounds().give_up(round) {
                Some(over) => over == Over::Ended,
                None => {
                    barrier.wake();
                    false
                }
            },
            Err(over) => {
                barrier.wake();
                over == Over::Ended
            }
        };
        assert_eq!(other.join().unwrap().is_ok(), ended);
        assert_eq!(barrier.rounds().state().is_broken(), !ended);
    });
}

/// One of three, who have met before, dies at every write. Either it has arrived, as the others find, or these are
/// told; and so they are in the next round.
#[test]
fn death_of_a_party() {
    const ALL: &[usize] = &[1, 2, 3];
    let explorer = Explorer::new("rounds: death of a party");
    explorer.each_death(1, |deaths: Deaths, at: Death| {
        move || {
            let barrier = Barrier::new(3);
            barrier.meet([1, 2, 3]);
            let others = [2, 3].map(|slot| party(&barrier, slot, ALL, 1..3));
            let died = deaths.kill(at, || {
                let round = barrier.arrive(1);
                // As who waits, but that it does not sleep.
                if let Ok(round) = round {
                    let gone = |owner| barrier.is_gone(owner);
                    let _ = barrier.rounds().look(round, gone, || barrier.wake());
                } else {
                    barrier.wake();
                }
            });
            // It ends, in the one way or the other.
            barrier.bury(1);
            for other in others {
                assert_eq!(other.join().unwrap(), Err(Over::Broken));
            }
            assert!(barrier.rounds().state().is_broken());
            // As new it is nobody's of these, whoever has died before.
            barrier.rounds().reset();
            barrier.meet([2, 3, 4]);
            assert!(died || barrier.begun[1].load(Relaxed) == 2);
        }
    });
}

/// All of a group are gone, one after the other. Another group comes, which misses nobody, and needs their entries.
#[test]
fn another_group_comes() {
    const ALL: &[usize] = &[3, 4];
    let explorer = Explorer::new("rounds: another group comes");
    explorer.run(2, || {
        let barrier = Barrier::new(2);
        barrier.meet([1, 2]);
        barrier.meet([1, 2]);
        barrier.bury(1);
        barrier.bury(2);
        let others = [3, 4].map(|slot| party(&barrier, slot, ALL, 0..2));
        for other in others {
            assert!(other.join().unwrap().is_ok());
        }
        // A third one finds room where the first were.
        barrier.bury(3);
        barrier.bury(4);
        barrier.meet([5, 1]);
    });
}

/// Who waits is told that somebody has reset the barrier.
#[test]
fn a_reset() {
    let explorer = Explorer::new("rounds: a reset");
    explorer.run(2, || {
        let barrier = Barrier::new(2);
        let waits = party(&barrier, 1, &[], 0..1);
        while barrier.rounds().state().arrived() == 0 {
            thread::yield_now();
        }
        barrier.rounds().reset();
        barrier.wake();
        assert_eq!(waits.join().unwrap(), Err(Over::Broken));
        barrier.meet([2, 3]);
    });
}
