//! How often the system is asked whether a process still runs.
//!
//! A process one of whose threads has died may live on: then each look at what the dead thread held
//! would ask about the process, and so would the looks of all other threads and processes. So the
//! answer stands for a while in the record of the process, for all of them: the longer, the more
//! often the answer was that the process lives. A thread that asks first takes that time for
//! itself, so one asks and the others go on as if the process lived.
//!
//! | killed | leaves |
//! |---|---|
//! | before it has the answer | a time until which nobody asks: [`MOST`] at most |

use crate::primitive::{AtomicU64, Ordering};

/// Microseconds of the monotonic clock until which nobody asks; in the lowest bits, how often
/// somebody has asked.
#[repr(transparent)]
pub(crate) struct Asked(AtomicU64);

/// The number of bits that hold the count.
const COUNT: u32 = 3;
/// The highest count.
const OFTEN: u64 = 6;
/// The longest that an answer stands, in microseconds: a little more than a `lock::TICK`.
const MOST: u64 = apart(OFTEN);

/// How long the answer of number `count` stands.
const fn apart(count: u64) -> u64 {
    64 << count
}

impl Asked {
    /// The record is another process's from now on. Called by the thread that has the record,
    /// before it is LIVE.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The result of `lives`, or true if that was asked a short while ago, or is being asked.
    // Relaxed: no other memory goes with the answer.
    pub(crate) fn or_ask(&self, now: impl Fn() -> u64, lives: impl FnOnce() -> bool) -> bool {
        let known = self.0.load(Ordering::Relaxed);
        let (until, count) = (known >> COUNT, OFTEN.min(known % (1 << COUNT)));
        // A time further off than any that is ever stored is garbage.
        if (1..=MOST).contains(&until.saturating_sub(now())) {
            return true;
        }
        let next = || (now() + apart(count)) << COUNT | OFTEN.min(count + 1);
        let change = |from, to| {
            let changed = self
                .0
                .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
            changed.is_ok()
        };
        let mine = next();
        if !change(known, mine) {
            return true;
        }
        let alive = lives();
        if alive {
            // However long the answer took. Not if the record has become another process's.
            change(mine, next());
        }
        alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A process that may live, the time, and how often somebody asked.
    struct World {
        asked: Asked,
        now: Cell<u64>,
        times: Cell<u64>,
    }

    impl World {
        fn new(word: u64) -> World {
            World {
                asked: Asked(AtomicU64::new(word)),
                now: Cell::new(1_000_000),
                times: Cell::new(0),
            }
        }

        /// Somebody looks; returns whether it takes the process for one that lives.
        fn look(&self, lives: bool) -> bool {
            let asks = || {
                self.times.set(self.times.get() + 1);
                // What others see that come meanwhile.
                assert!(self.asked.or_ask(|| self.now.get(), || unreachable!()));
                lives
            };
            self.asked.or_ask(|| self.now.get(), asks)
        }
    }

    #[test]
    fn one_asks_for_all() {
        let world = World::new(0);
        (0..1000).for_each(|_| assert!(world.look(true)));
        assert_eq!(world.times.get(), 1);
    }

    #[test]
    fn the_longer_it_lives_the_less_it_is_asked_about() {
        let world = World::new(0);
        for _ in 0..1_000_000 {
            world.look(true);
            world.now.set(world.now.get() + 1);
        }
        // Six times in the first four milliseconds.
        let most = 6 + 1_000_000 / MOST + 1;
        assert!((200..=most).contains(&world.times.get()));
        world.now.set(world.now.get() + MOST);
        assert!(!world.look(false));
    }

    #[test]
    fn the_next_process_is_asked_about_at_once() {
        let world = World::new(0);
        assert!(world.look(true));
        world.asked.forget();
        assert!(!world.look(false));
    }

    #[test]
    fn garbage_keeps_nobody_alive() {
        for word in [u64::MAX, 7, 1 << 63] {
            assert!(!World::new(word).look(false));
        }
    }
}
