//! A hash map's table is replaced again before everything has moved to it: a thread at the oldest table, with a
//! key to look for or to change, still succeeds, even if a thread that moves entries past the table in the middle
//! is killed.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lines::{self, Chunk, SLOTS};
use shmkit::protocol::lock_word;
use shmkit::protocol::moving::{self, DONE, RAW, READY};
use shmkit::protocol::tag::Tag;

use super::moving::{HASH, Table as State, lock};
use super::{Death, Deaths, Explorer};

/// The tables: one of two chunks, of which the first has moved; a smaller one; and one of longer chunks.
const TABLES: usize = 3;
/// The keys that have moved to the table in the middle. Either it is full, or it has a successor already, as if
/// another chunk of it was full. The value is ten times the key.
const MIDDLES: [&[u64]; 2] = [&[2, 4, 6], &[2]];
/// The keys that have not moved.
const STAY: [u64; 2] = [1, 3];
/// Another one, for which there is no room in the middle once those are there.
const NEW: u64 = 8;

/// Who does not wait for a lock is told so.
struct Later;

/// Where a chunk is: the table and its number there.
type At = (usize, usize);

/// A flat map.
struct Map {
    first: [State; 2],
    further: [State; 2],
    /// Whether a table has a successor, which is the next.
    followed: [AtomicU64; TABLES],
    root: AtomicU64,
    /// The next chunk of the first table that nobody has set about to move.
    cursor: AtomicU64,
    /// Whose life words are marked, a bit a slot.
    gone: AtomicU64,
    /// The ledger: the keys that there were.
    keys: Vec<u64>,
}

fn index((table, key): (usize, u64)) -> usize {
    if table == 0 { key as usize % 2 } else { 0 }
}

impl Map {
    fn new(moved: &[u64]) -> Arc<Self> {
        let map = Map {
            first: [State::new(1, DONE), State::new(1, READY)],
            further: [State::new(1, READY), State::new(2, RAW)],
            followed: [1, u64::from(moved.len() < SLOTS), 0].map(AtomicU64::new),
            root: AtomicU64::new(0),
            cursor: AtomicU64::new(1),
            gone: AtomicU64::new(0),
            keys: moved.iter().chain(&STAY).copied().collect(),
        };
        let add =
            |state: &State, keys: &[u64]| keys.iter().for_each(|key| state.add(*key, 10 * key));
        add(&map.further[0], moved);
        add(&map.first[1], &STAY);
        // The last one's memory was something else before.
        map.further[1].add(3, 99);
        Arc::new(map)
    }

    fn state(&self, (table, index): At) -> &State {
        match table {
            0 => &self.first[index],
            _ => &self.further[table - 1],
        }
    }

    fn chunk(&self, at: At) -> Chunk<'_> {
        self.state(at).chunk()
    }

    fn successor(&self, table: usize) -> Option<usize> {
        let followed = self.followed[table].load(Ordering::SeqCst) == 1;
        followed.then_some(table + 1)
    }

    fn is_done(&self, at: At) -> bool {
        moving::is_done(&self.state(at).state)
    }

    fn find(&self, key: u64) -> Option<u64> {
        let at = |table| (table, index((table, key)));
        let search = |table| lines::search(self.chunk(at(table)), HASH, key, &|_| true);
        let moved_to = |table| {
            let successor = self.successor(table)?;
            self.is_done(at(table)).then_some(successor)
        };
        let root = self.root.load(Ordering::SeqCst) as usize;
        moving::follow(root, search, moved_to)
    }

    /// As `engines::map::growth::take`.
    fn take(&self, slot: usize, at: At, waits: bool) -> Result<(), Later> {
        let word = &self.state(at).lock;
        if waits {
            lock(word, slot, &self.gone);
            return Ok(());
        }
        let is_gone = |owner: Tag| self.gone.load(Ordering::Acquire) & (1 << owner.slot()) != 0;
        loop {
            let found = word.load(Ordering::Relaxed);
            match lock_word::attempt(word, Tag::new(slot, 1), found, 0, is_gone) {
                Ok(_) => return Ok(()),
                Err(_) if word.load(Ordering::Relaxed) == found => return Err(Later),
                Err(_) => {}
            }
        }
    }

    fn unlock(&self, at: At) {
        lock_word::unlock_slow(&self.state(at).lock, 0);
    }

    fn ready(&self, at: At) -> bool {
        let state = self.state(at);
        moving::ready(&state.state, || lines::clear(state.chunk()))
    }

    fn grow(&self, table: usize) {
        let followed = &self.followed[table];
        if followed.load(Ordering::SeqCst) == 0 {
            let _ = followed.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// As `move_chunk_at`.
    fn move_chunk(&self, slot: usize, at: At, waits: bool) -> Result<(), Later> {
        if self.is_done(at) {
            return Ok(());
        }
        self.take(slot, at, waits)?;
        let moved = self.move_locked(slot, at, waits);
        self.unlock(at);
        moved
    }

    fn move_locked(&self, slot: usize, at: At, waits: bool) -> Result<(), Later> {
        let Some(successor) = self.successor(at.0) else {
            return Ok(());
        };
        if self.is_done(at) {
            return Ok(());
        }
        self.ready(at);
        moving::hand_over(&self.state(at).state, || {
            self.copy_all(slot, at, successor, waits)
        })
    }

    fn copy_all(&self, slot: usize, at: At, successor: usize, waits: bool) -> Result<(), Later> {
        let target = (successor, 0);
        self.take(slot, target, waits)?;
        let is_new = self.ready(target);
        let goes_on = self.is_done(target);
        let (to, mut left) = (self.chunk(target), false);
        lines::entries(self.chunk(at), |key, value| {
            left |= goes_on
                || if is_new {
                    !lines::add_new(to, HASH, key, value)
                } else {
                    !lines::add(to, HASH, key, value, |_| true)
                };
            Ok::<(), Later>(())
        })?;
        self.unlock(target);
        if left {
            lines::entries(self.chunk(at), |key, value| {
                self.copy(slot, successor, (key, value), waits)
            })?;
        }
        Ok(())
    }

    fn copy(
        &self,
        slot: usize,
        mut to: usize,
        (key, value): (u64, u64),
        waits: bool,
    ) -> Result<(), Later> {
        loop {
            let at = (to, 0);
            if let Some(successor) = self.successor(to) {
                self.move_chunk(slot, at, waits)?;
                to = successor;
                continue;
            }
            self.take(slot, at, waits)?;
            self.ready(at);
            let done = self.is_done(at);
            let added = !done && lines::add(self.chunk(at), HASH, key, value, |_| true);
            self.unlock(at);
            if added {
                return Ok(());
            }
            self.grow(to);
        }
    }

    fn help(&self, slot: usize, table: usize) {
        if self.root.load(Ordering::SeqCst) != table as u64 || table > 0 {
            return;
        }
        let next = self.cursor.fetch_add(1, Ordering::Relaxed) as usize;
        let left = || (0..self.first.len()).find(|&index| !self.is_done((0, index)));
        let next = Some(next).filter(|&next| next < self.first.len());
        match next.or_else(left) {
            Some(index) => drop(self.move_chunk(slot, (0, index), false)),
            // As `complete`.
            None => {
                let root = &self.root;
                let _ = root.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// Gives a key a value, as `engines::map::edit` does for a flat map.
    fn put(&self, slot: usize, key: u64, value: u64) {
        let at = |table| (table, index((table, key)));
        let mut is_put = false;
        while !is_put {
            let table = moving::lock_last(
                self.root.load(Ordering::SeqCst) as usize,
                |table| self.successor(table),
                |table| {
                    self.move_chunk(slot, at(table), true)?;
                    self.help(slot, table);
                    Ok::<(), Later>(())
                },
                |table| lock(&self.state(at(table)).lock, slot, &self.gone),
                |table| self.unlock(at(table)),
            );
            let Ok(table) = table else {
                unreachable!("who waits is not told that it is later")
            };
            self.ready(at(table));
            let chunk = self.chunk(at(table));
            let (place, found) = lines::look(chunk, HASH, key, |_| true);
            match place {
                Some(place) => {
                    lines::put(chunk, HASH, place, (key, value), found.is_some());
                    is_put = true;
                }
                None => self.grow(table),
            }
            self.unlock(at(table));
        }
    }

    /// All is there, with the values that were changed, and is so once somebody has moved what was left.
    fn check(&self, changed: &[(u64, u64)]) {
        let all_are_there = || {
            for &key in &self.keys {
                let changed = changed.iter().find(|(changed, _)| *changed == key);
                let value = changed.map_or(10 * key, |(_, value)| *value);
                assert_eq!(self.find(key), Some(value), "{key}");
            }
        };
        all_are_there();
        self.put(5, NEW, 80);
        for _ in 0..2 {
            self.help(5, 0);
        }
        all_are_there();
        assert_eq!(self.root.load(Ordering::SeqCst), 1);
        let last = self.chunk((2, 0));
        assert_eq!(last.count(), self.keys.len() + 1, "twice");
    }
}

/// What a thread does with the map; and where it dies. True if it did not.
fn does(
    map: &Arc<Map>,
    slot: usize,
    (deaths, at): (Deaths, Death),
    work: impl FnOnce(&Map) + 'static,
) -> thread::JoinHandle<bool> {
    let map = Arc::clone(map);
    thread::spawn(move || {
        let died = deaths.kill(at, || work(&map));
        if died {
            map.gone.fetch_or(1 << slot, Ordering::SeqCst);
        }
        !died
    })
}

fn lives() -> (Deaths, Death) {
    (Deaths::default(), None)
}

/// The value of a key once somebody has put another one, unless he was killed before.
fn put_or_not(map: &Map, (key, value): (u64, u64), is_put: bool) -> Option<(u64, u64)> {
    let now = map.find(key);
    let before = map.keys.contains(&key).then_some(10 * key);
    assert!(
        now == Some(value) || now == before && !is_put,
        "{key}: {now:?}"
    );
    now.map(|now| (key, now))
}

/// A key is put, or changed, in the middle table, which moves on while one at the oldest is changed.
fn model(moved: &'static [u64], put: (u64, u64), both: [(Deaths, Death); 2]) -> impl Fn() {
    move || {
        let map = Map::new(moved);
        let (changed, [putter, changer]) = ((3, 31), both.clone());
        let putter = does(&map, 1, putter, move |map| map.put(1, put.0, put.1));
        let changer = does(&map, 2, changer, move |map| {
            map.put(2, changed.0, changed.1)
        });
        let now = [(put, putter), (changed, changer)]
            .map(|(entry, thread)| (entry, thread.join().unwrap()))
            .map(|(entry, lives)| put_or_not(&map, entry, lives));
        map.check(&now.into_iter().flatten().collect::<Vec<_>>());
    }
}

const PUTS: [(u64, u64); 2] = [(NEW, 80), (2, 21)];

#[test]
fn a_change_goes_past_a_table_that_moves() {
    let explorer = Explorer::new("chain: a change goes past a table that moves");
    for (moved, put) in MIDDLES.into_iter().zip(PUTS) {
        explorer.run(2, model(moved, put, [lives(), lives()]));
    }
    explorer.run(2, model(MIDDLES[0], PUTS[1], [lives(), lives()]));
}

/// Who puts the one key, or who changes the other, dies at every write, and another goes on.
#[test]
fn who_moves_a_table_on_dies() {
    let explorer = Explorer::new("chain: who moves a table on dies");
    for (moved, put) in MIDDLES.into_iter().zip(PUTS) {
        explorer.each_death(1, |deaths, at| model(moved, put, [(deaths, at), lives()]));
        explorer.each_death(1, |deaths, at| model(moved, put, [lives(), (deaths, at)]));
    }
}

/// Keys at each of the tables are there all the time for who looks: one that stays as it is while another is put,
/// and one that is changed.
#[test]
fn a_look_goes_past_a_table_that_moves() {
    let explorer = Explorer::new("chain: a look goes past a table that moves");
    for (key, put) in [(2, (NEW, 80)), (3, (NEW, 80)), (2, (2, 21)), (3, (3, 31))] {
        for moved in MIDDLES {
            explorer.run(2, move || {
                let map = Map::new(moved);
                let over = Arc::new(AtomicU64::new(0));
                let writer = {
                    let over = Arc::clone(&over);
                    does(&map, 1, lives(), move |map| {
                        map.put(1, put.0, put.1);
                        over.store(1, Ordering::SeqCst);
                    })
                };
                let reader = does(&map, 2, lives(), move |map| {
                    let over = over.load(Ordering::SeqCst) == 1;
                    let found = map.find(key);
                    let is_before = found == Some(10 * key) && (put.0 != key || !over);
                    assert!(
                        is_before || put.0 == key && found == Some(put.1),
                        "{found:?}"
                    );
                });
                assert!(writer.join().unwrap() && reader.join().unwrap());
                map.check(&[put]);
            });
        }
    }
}
