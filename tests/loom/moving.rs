//! The chunk of a hash map moves to the next table: by a thread that is killed on the way, by the thread that comes
//! next, and while another thread changes a key and may have the chunk's lock already.

use std::convert::Infallible;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lines::{self, Chunk, Line};
use shmkit::protocol::lock_word::{self, DIED};
use shmkit::protocol::moving::{self, RAW, READY};
use shmkit::protocol::pins;
use shmkit::protocol::tag::Tag;

use super::lines::new_lines;
use super::{Death, Deaths, Explorer};

/// All keys begin in the first line.
pub const HASH: u64 = 0;

/// A table of one chunk.
pub struct Table {
    pub lock: AtomicU64,
    pub state: AtomicU64,
    lines: Vec<Line>,
}

impl Table {
    pub fn new(lines: usize, state: u64) -> Self {
        Table {
            lock: AtomicU64::new(0),
            state: AtomicU64::new(state),
            lines: new_lines(lines),
        }
    }

    pub fn chunk(&self) -> Chunk<'_> {
        Chunk(&self.lines)
    }

    pub fn add(&self, key: u64, value: u64) {
        assert!(lines::add(self.chunk(), HASH, key, value, |_| true));
    }
}

/// As `engines::map::edit::lock`: nobody has an intent open. `gone` says whose life words are marked, a bit a slot.
pub fn lock(word: &AtomicU64, slot: usize, gone: &AtomicU64) {
    let me = Tag::new(slot, 1);
    let is_gone = |owner: Tag| gone.load(Ordering::Acquire) & (1 << owner.slot()) != 0;
    loop {
        let found = word.load(Ordering::Relaxed);
        if let Ok((flags, _)) = lock_word::attempt(word, me, found, 0, is_gone) {
            if flags != 0 {
                lock_word::clear(word, DIED);
            }
            return;
        }
        thread::yield_now();
    }
}

/// A flat map: a table, and another one that is its successor from a store on. The memory of that one was
/// something else before: it looks like an entry of key 1.
struct Map {
    tables: [Table; 2],
    has_successor: AtomicU64,
    /// Whose life words are marked, a bit a slot.
    gone: AtomicU64,
    /// The ledger: the change is over, as everybody knows.
    over: AtomicU64,
}

impl Map {
    fn new() -> Arc<Self> {
        let map = Map {
            tables: [Table::new(1, READY), Table::new(2, RAW)],
            has_successor: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            over: AtomicU64::new(0),
        };
        map.tables[0].add(1, 10);
        map.tables[0].add(2, 20);
        map.tables[1].add(1, 99);
        Arc::new(map)
    }

    fn successor(&self, at: usize) -> Option<usize> {
        (at == 0 && self.has_successor.load(Ordering::SeqCst) == 1).then_some(1)
    }

    fn find(&self, key: u64) -> Option<u64> {
        self.find_if(key, |_| true)
    }

    /// The key, if that holds of its value, as of a node.
    fn find_if(&self, key: u64, is_it: impl Fn(u64) -> bool) -> Option<u64> {
        let search = |at: usize| lines::search(self.tables[at].chunk(), HASH, key, &is_it);
        let moved_to = |at: usize| {
            let successor = self.successor(at)?;
            moving::is_done(&self.tables[at].state).then_some(successor)
        };
        moving::follow(0, search, moved_to)
    }

    fn lock(&self, slot: usize, at: usize) {
        lock(&self.tables[at].lock, slot, &self.gone);
    }

    fn unlock(&self, at: usize) {
        lock_word::unlock_slow(&self.tables[at].lock, 0);
    }

    /// As `engines::map::growth::move_chunk`.
    fn move_chunk(&self, slot: usize, at: usize) -> Result<(), Infallible> {
        let table = &self.tables[at];
        if moving::is_done(&table.state) {
            return Ok(());
        }
        self.lock(slot, at);
        if let Some(next) = self.successor(at) {
            let to = &self.tables[next];
            moving::ready(&table.state, || lines::clear(table.chunk()));
            moving::hand_over(&table.state, || {
                self.lock(slot, next);
                let is_new = moving::ready(&to.state, || lines::clear(to.chunk()));
                lines::entries(table.chunk(), |key, value| {
                    if is_new {
                        assert!(lines::add_new(to.chunk(), HASH, key, value));
                    } else {
                        to.add(key, value);
                    }
                    Ok::<(), Infallible>(())
                })?;
                self.unlock(next);
                Ok::<(), Infallible>(())
            })?;
        }
        self.unlock(at);
        Ok(())
    }

    fn grow(&self) {
        self.has_successor.store(1, Ordering::SeqCst);
    }

    /// As `engines::map::at_once::put_at_once`.
    fn change_at_once(&self, slot: usize, entry: (u64, u64)) -> bool {
        let table = &self.tables[0];
        if self.successor(0).is_some()
            || lock_word::try_fast(&table.lock, Tag::new(slot, 1)).is_none()
        {
            return false;
        }
        let line = table.chunk().on_path(HASH, 0);
        let changed =
            self.successor(0).is_none() && lines::put_first(line, entry, |_| true).is_some();
        self.unlock(0);
        changed
    }

    /// Gives a key another value.
    fn change(&self, slot: usize, key: u64, value: u64) {
        if self.change_at_once(slot, (key, value)) {
            self.over.store(1, Ordering::SeqCst);
            return;
        }
        let Ok(at) = moving::lock_last(
            0,
            |at| self.successor(at),
            |at| self.move_chunk(slot, at),
            |at| self.lock(slot, at),
            |at| self.unlock(at),
        );
        let chunk = self.tables[at].chunk();
        let (place, found) = lines::look(chunk, HASH, key, |_| true);
        let place = place.unwrap();
        assert!(found.is_some());
        let line = chunk.on_path(HASH, place.distance);
        line.slots[place.slot].value.store(value, Ordering::Release);
        self.unlock(at);
        self.over.store(1, Ordering::SeqCst);
    }
}

fn model(deaths: Deaths, at: Death, reads: bool) -> impl Fn() {
    move || {
        let map = Map::new();
        let mover = {
            let (map, deaths) = (Arc::clone(&map), deaths.clone());
            thread::spawn(move || {
                let died = deaths.kill(at, || {
                    map.grow();
                    map.move_chunk(1, 0).unwrap();
                });
                if died {
                    map.gone.store(1 << 1, Ordering::SeqCst);
                }
            })
        };
        let writer = {
            let map = Arc::clone(&map);
            thread::spawn(move || map.change(2, 1, 11))
        };
        let reader = reads.then(|| {
            let map = Arc::clone(&map);
            thread::spawn(move || {
                let over = map.over.load(Ordering::SeqCst) == 1;
                let found = map.find(1);
                assert!(found == Some(11) || found == Some(10) && !over, "{found:?}");
            })
        });
        mover.join().unwrap();
        writer.join().unwrap();
        reader.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!([map.find(1), map.find(2)], [Some(11), Some(20)]);
        // And so it is when somebody has moved what was left.
        map.grow();
        map.move_chunk(3, 0).unwrap();
        assert!(moving::is_done(&map.tables[0].state));
        assert_eq!([map.find(1), map.find(2)], [Some(11), Some(20)]);
        assert_eq!(map.tables[1].chunk().count(), 2);
    }
}

/// A key is changed while its chunk is moved, and its mover dies at every write: the change is not lost.
#[test]
fn a_change_meets_a_move() {
    let explorer = Explorer::new("moving: a change meets a move");
    explorer.each_death(2, |deaths, at| model(deaths, at, false));
}

/// The key is there all the time for who looks.
#[test]
fn a_look_meets_a_move() {
    let explorer = Explorer::new("moving: a look meets a move");
    explorer.each_death(2, |deaths, at| model(deaths, at, true));
}

/// The node that an entry names is removed, and freed, where the entry has moved to. The entry that was left behind
/// names it still, and leads nobody to it.
#[test]
fn what_has_moved_is_freed() {
    let explorer = Explorer::new("moving: what has moved is freed");
    explorer.run(2, || {
        let map = Map::new();
        let (epoch, pin) = (AtomicU64::new(1), AtomicU64::new(0));
        let pool = Arc::new((epoch, pin, UnsafeCell::new(true)));
        let remover = {
            let (map, pool) = (Arc::clone(&map), Arc::clone(&pool));
            thread::spawn(move || {
                let (epoch, pin, node) = &*pool;
                map.grow();
                let Ok(()) = map.move_chunk(1, 0);
                map.lock(1, 1);
                let (place, _) = lines::look(map.tables[1].chunk(), HASH, 1, |_| true);
                let place = place.unwrap();
                let word = &map.tables[1].chunk().on_path(HASH, place.distance).word;
                let new = lines::turned(word.load(Ordering::Relaxed), place.slot);
                word.store(new, Ordering::Release);
                map.unlock(1);
                if pins::is_past([pin].into_iter(), pins::stamp(epoch)) {
                    // SAFETY: nobody looks at it, or loom reports it.
                    node.with_mut(|there| unsafe { *there = false });
                }
            })
        };
        let (epoch, pin, node) = &*pool;
        pins::show(pin, epoch);
        map.find_if(1, |_| {
            // SAFETY: pinned: nobody frees it, or loom reports it.
            assert!(node.with(|there| unsafe { *there }), "freed");
            true
        });
        pins::hide(pin);
        remover.join().unwrap();
    });
}
