//! The lines of a hash map: keys that are looked for while lines are changed, and while entries pass lines
//! that are full.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lines::{self, Chunk, Line, Slot};

use super::Explorer;

/// All keys begin in the first line.
const HASH: u64 = 0;

/// So many lines without entries.
pub fn new_lines(count: usize) -> Vec<Line> {
    let word = || AtomicU64::new(0);
    let slot = |_| Slot {
        key: word(),
        value: word(),
    };
    let line = |_| Line {
        word: word(),
        slots: std::array::from_fn(slot),
    };
    (0..count).map(line).collect()
}

/// A chunk, which one thread changes, as its lock sees to it.
struct Map {
    lines: Vec<Line>,
    /// The ledger: what everybody knows to be over.
    over: AtomicU64,
}

impl Map {
    /// With those keys, in so many lines; the value is ten times the key.
    fn new(lines: usize, keys: &[u64]) -> Arc<Self> {
        let map = Map {
            lines: new_lines(lines),
            over: AtomicU64::new(0),
        };
        for key in keys {
            assert!(lines::add(map.chunk(), HASH, *key, key * 10, |_| true));
        }
        Arc::new(map)
    }

    fn chunk(&self) -> Chunk<'_> {
        Chunk(&self.lines)
    }

    fn find(&self, key: u64) -> Option<u64> {
        lines::search(self.chunk(), HASH, key, &|_| true)
    }

    fn put(&self, key: u64, value: u64) {
        let chunk = self.chunk();
        if lines::put_first(chunk.on_path(HASH, 0), (key, value), |_| true).is_none() {
            let (place, found) = lines::look(chunk, HASH, key, |_| true);
            lines::put(chunk, HASH, place.unwrap(), (key, value), found.is_some());
        }
    }

    fn remove(&self, key: u64) {
        let chunk = self.chunk();
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
            let map = Map::new(1, &[1, 2]);
            let writer = {
                let (map, deaths) = (Arc::clone(&map), deaths.clone());
                thread::spawn(move || {
                    deaths.kill(at, || {
                        map.remove(2);
                        map.put(4, 40);
                        map.remove(4);
                    });
                    map.put(2, 21);
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
            let map = Map::new(2, &[1, 2, 3, 5]);
            let writer = {
                let (map, deaths) = (Arc::clone(&map), deaths.clone());
                thread::spawn(move || {
                    deaths.kill(at, || {
                        map.put(4, 40);
                        map.remove(5);
                    });
                    map.put(4, 40);
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
            map.remove(5);
            assert_eq!((map.find(4), map.find(5)), (Some(40), None));
        }
    });
}
