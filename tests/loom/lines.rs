//! The lines of a hash map: what is looked for while it is changed, passed, and moved to another table
//! by somebody who is killed on the way.

use std::convert::Infallible;

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lines::{self, Chunk, Line, Slot};

use super::Explorer;

/// All keys begin in the first line.
const HASH: u64 = 0;

const READY: u64 = 1;
const DONE: u64 = 2;

struct Table {
    state: AtomicU64,
    lines: Vec<Line>,
}

impl Table {
    fn new(lines: usize) -> Self {
        let word = || AtomicU64::new(0);
        let slot = |_| Slot {
            key: word(),
            value: word(),
        };
        let line = |_| Line {
            word: word(),
            slots: std::array::from_fn(slot),
        };
        Table {
            state: AtomicU64::new(READY),
            lines: (0..lines).map(line).collect(),
        }
    }

    fn chunk(&self) -> Chunk<'_> {
        Chunk(&self.lines)
    }

    fn add(&self, key: u64, value: u64) {
        assert!(lines::add(self.chunk(), HASH, key, value, |_| true));
    }

    fn content(&self) -> Vec<(u64, u64)> {
        let mut content = Vec::new();
        let entry = |key, value| {
            content.push((key, value));
            Ok::<(), Infallible>(())
        };
        lines::entries(self.chunk(), entry).unwrap();
        content.sort_unstable();
        content
    }
}

/// Two tables, the second of which is the first one's successor. Changes are made by one thread, as the
/// locks of chunks see to it.
struct Map {
    tables: [Table; 2],
    /// The ledger: what everybody knows to be over.
    over: AtomicU64,
}

impl Map {
    /// With those keys in the first table, of so many lines; the value is ten times the key.
    fn new(lines: [usize; 2], keys: &[u64]) -> Arc<Self> {
        let map = Map {
            tables: lines.map(Table::new),
            over: AtomicU64::new(0),
        };
        keys.iter()
            .for_each(|key| map.tables[0].add(*key, key * 10));
        Arc::new(map)
    }

    fn is_done(&self) -> bool {
        self.tables[0].state.load(Ordering::SeqCst) == DONE
    }

    fn find(&self, key: u64) -> Option<u64> {
        let search = |at: usize| lines::search(self.tables[at].chunk(), HASH, key, &|_| true);
        lines::follow(0, search, |at| (at == 0 && self.is_done()).then_some(1))
    }

    /// Moves everything, unless somebody has.
    fn move_all(&self) {
        let [from, to] = &self.tables;
        if self.is_done() {
            return;
        }
        let copy = |key, value| {
            to.add(key, value);
            Ok::<(), Infallible>(())
        };
        lines::entries(from.chunk(), copy).unwrap();
        from.state.store(DONE, Ordering::SeqCst);
    }

    fn put(&self, at: usize, key: u64, value: u64) {
        let chunk = self.tables[at].chunk();
        let (place, found) = lines::look(chunk, HASH, key, |_| true);
        let place = place.unwrap();
        if found.is_some() {
            let line = chunk.on_path(HASH, place.distance);
            line.slots[place.slot].value.store(value, Ordering::SeqCst);
        } else {
            let (word, new) = lines::fill(chunk, HASH, place, key, value);
            word.store(new, Ordering::Release);
        }
    }

    fn remove(&self, at: usize, key: u64) {
        let chunk = self.tables[at].chunk();
        if let (Some(place), Some(_)) = lines::look(chunk, HASH, key, |_| true) {
            let word = &chunk.on_path(HASH, place.distance).word;
            let new = lines::turned(word.load(Ordering::Relaxed), place.slot);
            word.store(new, Ordering::SeqCst);
            lines::unpass(chunk, HASH, place.distance);
        }
    }

    fn end(&self) {
        self.over.store(1, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) == 1
    }
}

/// A thread that looks. (Of what the first thread does less is explored.)
fn reader(map: &Arc<Map>, look: impl FnOnce(&Map) + 'static) -> thread::JoinHandle<()> {
    let map = Arc::clone(map);
    thread::spawn(move || look(&map))
}

/// A key leaves a slot and another one gets it, and leaves it again: no look takes the one's value for the
/// other's, also if the writer dies and the next one goes on.
#[test]
fn a_slot_changes_hands() {
    let explorer = Explorer::new("lines: a slot changes hands");
    explorer.each_death(3, |deaths, at| {
        move || {
            let map = Map::new([1, 1], &[1, 2]);
            let writer = {
                let (map, deaths) = (Arc::clone(&map), deaths.clone());
                thread::spawn(move || {
                    deaths.kill(at, || {
                        map.remove(0, 2);
                        map.put(0, 4, 40);
                        map.remove(0, 4);
                    });
                    map.put(0, 2, 21);
                    map.end();
                })
            };
            let reader = reader(&map, |map| {
                let over = map.is_over();
                let found = map.find(2);
                let known = matches!(found, Some(20 | 21)) || found.is_none() && !over;
                assert!(known && (!over || found == Some(21)), "{found:?}");
                assert!(matches!(map.find(4), None | Some(40)));
            });
            writer.join().unwrap();
            reader.join().unwrap();
            assert_eq!(map.find(2), Some(21));
        }
    });
}

/// An entry that finds no room in its line is found behind it from the moment that it is there, also while
/// another one behind it goes, and also after a death.
#[test]
fn entries_are_passed() {
    let explorer = Explorer::new("lines: entries are passed");
    explorer.each_death(2, |deaths, at| {
        move || {
            let map = Map::new([2, 1], &[1, 2, 3, 5]);
            let writer = {
                let (map, deaths) = (Arc::clone(&map), deaths.clone());
                thread::spawn(move || {
                    deaths.kill(at, || {
                        map.put(0, 4, 40);
                        map.remove(0, 5);
                    });
                    map.put(0, 4, 40);
                    map.end();
                })
            };
            let reader = reader(&map, |map| {
                let over = map.is_over();
                let found = map.find(4);
                assert!(found == Some(40) || found.is_none() && !over, "{found:?}");
            });
            writer.join().unwrap();
            reader.join().unwrap();
            assert_eq!(map.find(4), Some(40));
            map.remove(0, 5);
            assert_eq!((map.find(4), map.find(5)), (Some(40), None));
        }
    });
}

/// Entries are moved by who is killed on the way, and by the next one: they are there all the time, once,
/// and what is changed after the move is seen.
#[test]
fn entries_move() {
    let explorer = Explorer::new("lines: entries move");
    explorer.each_death(2, |deaths, at| {
        move || {
            let map = Map::new([1, 2], &[1, 2]);
            let mover = {
                let (map, deaths) = (Arc::clone(&map), deaths.clone());
                thread::spawn(move || {
                    deaths.kill(at, || map.move_all());
                    map.move_all();
                    map.put(1, 1, 11);
                    map.remove(1, 2);
                    map.put(1, 2, 21);
                    map.end();
                })
            };
            let reader = reader(&map, |map| {
                let over = map.is_over();
                let found = map.find(1);
                assert!(found == Some(11) || found == Some(10) && !over, "{found:?}");
            });
            mover.join().unwrap();
            reader.join().unwrap();
            assert_eq!(map.tables[1].content(), [(1, 11), (2, 21)]);
            assert_eq!(map.tables[1].chunk().count(), 2);
        }
    });
}
