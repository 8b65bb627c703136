//! A chunk of a hash map's table is split in two in a larger table that has the chunk too: by a thread that is
//! killed on the way, by the thread that comes next, and while keys that stay and keys that leave are looked for
//! and changed.

use std::convert::Infallible;

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lines::{self, Chunk, Line, Rest};
use shmkit::protocol::moving::{self, RAW, READY};

use super::lines::new_lines;
use super::moving::lock;
use super::{Death, Deaths, Explorer};

/// All keys begin in the first line.
const HASH: u64 = 0;
/// The first one stays in the chunk, and so does the last, which is in the second line; the others leave.
const KEYS: [u64; 4] = [2, 1, 3, 4];

/// The chunk that a key belongs to afterwards.
fn index(key: u64) -> usize {
    key as usize % 2
}

/// What there is about a chunk in one of the tables.
struct State {
    lock: AtomicU64,
    word: AtomicU64,
}

impl State {
    fn new(word: u64) -> Self {
        State {
            lock: AtomicU64::new(0),
            word: AtomicU64::new(word),
        }
    }
}

/// A flat map: a table of one chunk, and from a store on its successor, of that chunk and another one.
struct Map {
    before: State,
    after: [State; 2],
    chunks: [Vec<Line>; 2],
    has_successor: AtomicU64,
    /// Whose life words are marked, a bit a slot.
    gone: AtomicU64,
    /// The ledger: the change is over, as everybody knows.
    over: AtomicU64,
}

/// Where a key is looked for: the table, and its chunk there.
#[derive(Clone, Copy)]
enum At {
    Before,
    After(usize),
}

impl Map {
    fn new() -> Arc<Self> {
        let map = Map {
            before: State::new(READY),
            after: [State::new(RAW), State::new(RAW)],
            chunks: [new_lines(2), new_lines(2)],
            has_successor: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            over: AtomicU64::new(0),
        };
        for key in KEYS {
            assert!(lines::add(map.chunk(0), HASH, key, 10 * key, |_| true));
        }
        // The other one's memory was something else before.
        assert!(lines::add(map.chunk(1), HASH, 1, 99, |_| true));
        Arc::new(map)
    }

    fn chunk(&self, index: usize) -> Chunk<'_> {
        Chunk(&self.chunks[index])
    }

    fn chunk_at(&self, at: At) -> Chunk<'_> {
        match at {
            At::Before => self.chunk(0),
            At::After(index) => self.chunk(index),
        }
    }

    fn state(&self, at: At) -> &State {
        match at {
            At::Before => &self.before,
            At::After(index) => &self.after[index],
        }
    }

    fn successor(&self, at: At, key: u64) -> Option<At> {
        let has = matches!(at, At::Before) && self.has_successor.load(Ordering::SeqCst) == 1;
        has.then_some(At::After(index(key)))
    }

    fn find(&self, key: u64) -> Option<u64> {
        let search = |at| lines::search(self.chunk_at(at), HASH, key, &|_| true);
        let moved_to = |at| {
            let successor = self.successor(at, key)?;
            moving::is_done(&self.before.word).then_some(successor)
        };
        moving::follow(At::Before, search, moved_to)
    }

    /// As `engines::map::find::Entries::read_lines`.
    fn read_lines(&self, chunk: usize, found: &mut Vec<(u64, u64)>) {
        for line in &self.chunks[chunk] {
            let before = found.len();
            let mut word = line.word.load(Ordering::SeqCst);
            loop {
                found.extend(lines::live(word).map(|i| {
                    let key = line.slots[i].key.load(Ordering::Acquire);
                    (key, line.slots[i].value.load(Ordering::Acquire))
                }));
                match line.word.load(Ordering::SeqCst) {
                    now if now == word => break,
                    now => word = now,
                }
                found.truncate(before);
            }
        }
    }

    /// As `read`: the entries of one of the two chunks.
    fn read(&self, index: usize) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        loop {
            if self.after[index].word.load(Ordering::Acquire) != RAW {
                self.read_lines(index, &mut found);
                return found;
            }
            if index == 1 {
                return found;
            }
            let words = || {
                self.chunks[0]
                    .iter()
                    .map(|line| line.word.load(Ordering::SeqCst))
            };
            let before: Vec<u64> = words().collect();
            self.read_lines(0, &mut found);
            if words().eq(before) {
                found.sort_unstable();
                found.dedup();
                found.retain(|(key, _)| self::index(*key) == 0);
                return found;
            }
            found.clear();
        }
    }

    /// All entries.
    fn entries(&self) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        self.read_lines(0, &mut found);
        let followed = self.has_successor.load(Ordering::SeqCst) == 1;
        if followed && moving::is_done(&self.before.word) {
            found = [0, 1].map(|index| self.read(index)).concat();
        }
        found
    }

    fn lock(&self, slot: usize, at: At) {
        lock(&self.state(at).lock, slot, &self.gone);
    }

    fn unlock(&self, at: At) {
        shmkit::protocol::lock_word::unlock_slow(&self.state(at).lock, 0);
    }

    /// As `engines::map::split::ready`.
    fn ready(&self, at: usize) -> bool {
        moving::ready(&self.after[at].word, || {
            if at == 1 {
                return lines::clear(self.chunk(1));
            }
            let Ok(rest) = Rest::of(self.chunk(0), |key, _| {
                Ok::<_, Infallible>((HASH, index(key) == 0))
            });
            rest.leave(self.chunk(0));
        })
    }

    /// As `engines::map::split::split`.
    fn split(&self, slot: usize) -> Result<(), Infallible> {
        self.lock(slot, At::Before);
        if moving::is_done(&self.before.word) {
            self.unlock(At::Before);
            return Ok(());
        }
        self.lock(slot, At::After(0));
        let mut rest = None;
        moving::hand_over(&self.before.word, || {
            self.lock(slot, At::After(1));
            let is_new = self.ready(1);
            let to = self.chunk(1);
            let Ok(copied) = Rest::of(self.chunk(0), |key, value| {
                let stays = index(key) == 0;
                assert!(
                    stays
                        || if is_new {
                            lines::add_new(to, HASH, key, value)
                        } else {
                            lines::add(to, HASH, key, value, |_| true)
                        }
                );
                Ok::<_, Infallible>((HASH, stays))
            });
            self.unlock(At::After(1));
            rest = Some(copied);
            Ok::<(), Infallible>(())
        })?;
        if let Some(rest) = rest {
            moving::ready(&self.after[0].word, || rest.leave(self.chunk(0)));
        }
        self.unlock(At::After(0));
        self.unlock(At::Before);
        Ok(())
    }

    /// Gives a key another value.
    fn change(&self, slot: usize, key: u64, value: u64) {
        let Ok(at) = moving::lock_last(
            At::Before,
            |at| self.successor(at, key),
            |_| self.split(slot),
            |at| self.lock(slot, at),
            |at| self.unlock(at),
        );
        if let At::After(index) = at {
            self.ready(index);
        }
        let chunk = self.chunk_at(at);
        let (place, found) = lines::look(chunk, HASH, key, |_| true);
        assert!(found.is_some());
        lines::put(chunk, HASH, place.unwrap(), (key, value), true);
        self.unlock(at);
        self.over.store(1, Ordering::SeqCst);
    }
}

/// Where the mover dies, and where the writer does.
type Both = [(Deaths, Death); 2];

/// `changed` gets another value while the chunk is split, and `sought` is looked for.
fn model(both: Both, changed: Option<u64>, sought: Option<u64>) -> impl Fn() {
    move || {
        let map = Map::new();
        let [mover, writer] = both.clone();
        let kill = |slot: usize, (deaths, at): (Deaths, Death), work: fn(&Map, u64)| {
            let map = Arc::clone(&map);
            thread::spawn(move || {
                if deaths.kill(at, || work(&map, changed.unwrap_or(0))) {
                    map.gone.fetch_or(1 << slot, Ordering::SeqCst);
                }
            })
        };
        let mover = kill(1, mover, |map, _| {
            map.has_successor.store(1, Ordering::SeqCst);
            let Ok(()) = map.split(1);
        });
        let writer = changed.map(|_| kill(2, writer, |map, key| map.change(2, key, 11)));
        let reader = sought.map(|key| {
            let map = Arc::clone(&map);
            thread::spawn(move || {
                let over = map.over.load(Ordering::SeqCst) == 1;
                let found = map.find(key);
                let is_right = if changed == Some(key) {
                    found == Some(11) || found == Some(10 * key) && !over
                } else {
                    found == Some(10 * key)
                };
                assert!(is_right, "{key}: {found:?}");
            })
        });
        mover.join().unwrap();
        writer.into_iter().for_each(|writer| writer.join().unwrap());
        reader.into_iter().for_each(|reader| reader.join().unwrap());
        // The writer may have been killed, before or after.
        let over = map.over.load(Ordering::SeqCst) == 1;
        let now = changed.and_then(|key| map.find(key));
        assert!(now == Some(11) || !over, "{now:?}");
        let all_are_there = || {
            for key in KEYS {
                let value = if changed == Some(key) {
                    now
                } else {
                    Some(10 * key)
                };
                assert_eq!(map.find(key), value);
            }
        };
        all_are_there();
        // And so it is when somebody has done what was left.
        map.has_successor.store(1, Ordering::SeqCst);
        let Ok(()) = map.split(3);
        map.lock(3, At::After(0));
        map.ready(0);
        map.unlock(At::After(0));
        all_are_there();
        assert_eq!([map.chunk(0).count(), map.chunk(1).count()], [2, 2]);
    }
}

fn lives() -> (Deaths, Death) {
    (Deaths::default(), None)
}

/// Keys that stay and keys that leave are there all the time for who looks.
#[test]
fn a_look_meets_a_split() {
    let explorer = Explorer::new("split: a look meets a split");
    for key in KEYS {
        explorer.each_death(2, |deaths, at| {
            model([(deaths, at), lives()], None, Some(key))
        });
    }
}

/// Who goes through all entries meanwhile, or after a death, when another does what was left, meets each key once.
#[test]
fn a_walk_meets_a_split() {
    let explorer = Explorer::new("split: a walk meets a split");
    let model = |deaths: Deaths, at: Death| {
        move || {
            let map = Map::new();
            map.has_successor.store(1, Ordering::SeqCst);
            let split = || {
                let Ok(()) = map.split(1);
            };
            if at.is_some() && deaths.kill(at, split) {
                map.gone.fetch_or(1 << 1, Ordering::SeqCst);
            }
            let walker = {
                let map = Arc::clone(&map);
                thread::spawn(move || {
                    let [mut found, mut all] =
                        [map.entries(), KEYS.map(|key| (key, 10 * key)).into()];
                    found.sort_unstable();
                    all.sort_unstable();
                    assert_eq!(found, all);
                })
            };
            let Ok(()) = map.split(2);
            map.lock(2, At::After(0));
            map.ready(0);
            map.unlock(At::After(0));
            walker.join().unwrap();
        }
    };
    explorer.run(1, model(Deaths::default(), None));
    explorer.each_death(1, model);
}

/// A key that stays, and one that leaves, is changed meanwhile: the change is not lost.
#[test]
fn a_change_meets_a_split() {
    let explorer = Explorer::new("split: a change meets a split");
    for key in [1, 4] {
        explorer.each_death(2, |deaths, at| {
            model([(deaths, at), lives()], Some(key), None)
        });
    }
}

/// The same, and it is looked for.
#[test]
fn a_look_and_a_change_meet_a_split() {
    let explorer = Explorer::new("split: a look and a change meet a split");
    for key in [1, 4] {
        explorer.each_death(1, |deaths, at| {
            model([(deaths, at), lives()], Some(key), Some(key))
        });
    }
}

/// Who does what the mover has left dies, too; or before the mover.
#[test]
fn a_change_meets_a_split_and_dies() {
    let explorer = Explorer::new("split: a change meets a split and dies");
    for key in [1, 4] {
        explorer.each_recovery(1, |mover, writer| model([mover, writer], Some(key), None));
    }
}
