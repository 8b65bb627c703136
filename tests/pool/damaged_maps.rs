//! Maps whose words were changed: see `damage`.

use std::hint::black_box;
use std::ptr::NonNull;

use shmkit::{HashMap, Key, MultiMap, Pool, Shared, ShmSafe};

use super::common::{TestPool, layout};
use super::damaged_words::{damage, word};

/// How many maps there are.
pub const COUNT: usize = 4;

/// How many keys the flat map has, of which each table is larger than the last by far.
const FLAT: u32 = 2000;

/// Maps of every kind, one of which is moving to a larger table; where they and their tables are.
pub fn fill(pool: Pool) -> Vec<(u64, u64)> {
    let mut places = Vec::new();
    macro_rules! named {
        ($name:literal, $map:expr) => {{
            let map = pool.create($map).ok().unwrap();
            pool.set_name($name, &map).unwrap();
            let address = std::ptr::from_ref(&*map).addr();
            places.push(((address - pool.base()) as u64, size_of_val(&*map) as u64));
            map
        }};
    }
    let map = named!("map", HashMap::<u64, [u64; 3]>::new());
    for key in 0..60 {
        map.insert(&key, [key; 3]).unwrap();
    }
    let texts = named!("texts", HashMap::<str, u8>::new());
    for key in 0..10 {
        texts.insert(&"text".repeat(key), key as u8).unwrap();
    }
    let stacks = named!("stacks", MultiMap::<u16, u64>::new());
    for n in 0..60 {
        stacks.push(&(n % 20), n.into()).unwrap();
    }
    let flat = named!("flat", HashMap::<u32, u64>::new());
    for key in 0..FLAT {
        let before = pool.stats().allocated;
        flat.insert(&key, key.into()).unwrap();
        if pool.stats().allocated > before + (30 << 10) {
            return places;
        }
    }
    panic!("{FLAT} entries are in a small table");
}

fn probe_map<K: ?Sized + Key, V: ShmSafe + Unpin + Copy>(
    map: &HashMap<K, V>,
    keys: &[&K],
    value: V,
) {
    for (n, &key) in keys.iter().enumerate() {
        let _ = map.get(key).map(|found| black_box(*found));
        black_box((map.get_copied(key), map.contains_key(key)));
        let _ = match n % 4 {
            0 => map.insert(key, value).map(drop).is_ok(),
            1 => map
                .update(key, |old| old.is_none().then_some(value))
                .is_ok(),
            2 => map
                .entry(key)
                .and_modify(|old| *old)
                .or_insert(value)
                .is_ok(),
            _ => map.try_remove(key).is_ok(),
        };
    }
    let mut entries = map.iter();
    while let Some((key, value)) = entries.next() {
        black_box(key.bytes().iter().fold(0, |a, b| a ^ b));
        black_box(*value);
    }
    drop(entries);
    black_box((map.len(), map.is_empty()));
    let mut stays = false;
    let _ = map.retain(|_, _| {
        stays = !stays;
        stays
    });
    keys.iter()
        .for_each(|key| _ = map.insert(key, value).is_ok());
    let _ = map.clear();
}

/// Uses every operation of every map.
pub fn probe(pool: Pool) {
    if let Ok(map) = pool.named::<HashMap<u64, [u64; 3]>>("map") {
        let keys: Vec<u64> = (0..100).collect();
        probe_map(&map, &keys.iter().collect::<Vec<_>>(), [1; 3]);
    }
    if let Ok(map) = pool.named::<HashMap<u32, u64>>("flat") {
        let keys: Vec<u32> = (0..60).chain(FLAT..FLAT + 10).collect();
        probe_map(&map, &keys.iter().collect::<Vec<_>>(), 1);
    }
    if let Ok(map) = pool.named::<HashMap<str, u8>>("texts") {
        let keys: Vec<String> = (0..12).map(|n| "text".repeat(n)).collect();
        probe_map(&map, &keys.iter().map(|key| &**key).collect::<Vec<_>>(), 1);
    }
    if let Ok(map) = pool.named::<MultiMap<u16, u64>>("stacks") {
        for key in 0..25 {
            let mut all = map.get_all(&key);
            while let Some(value) = all.next() {
                black_box(*value);
            }
            drop(all);
            let _ = match key % 3 {
                0 => map.push(&key, 1).is_ok(),
                1 => map.replace(&key, 1).is_ok(),
                _ => map.try_pop(&key).is_ok(),
            };
        }
        black_box((map.len(), map.is_empty()));
    }
}

/// A chain of small tables, each of which is full and has the next one for its successor: whoever moved
/// the first would have to move the second before, and so on.
pub fn a_chain_of_tables_has_an_end() {
    /// A table's words before its only chunk, of 4 lines of 8 words.
    const FRONT: usize = 32;
    const TABLES: u64 = 4000;
    let pool = TestPool::with(|builder| builder.max_size(16 << 20));
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    let root = std::ptr::from_ref(&*map).addr();
    let tables: Vec<NonNull<u64>> = (0..TABLES)
        .map(|_| pool.allocate(layout(8 * (FRONT + 32), 256)).unwrap().cast())
        .collect();
    let address = |number: usize| tables.get(number).map_or(0, |t| t.addr().get() as u64);
    for (number, table) in tables.iter().enumerate() {
        let mut words = [0; FRONT + 32];
        // Successor, number, where the first of 2^0 chunks is, of 2^2 lines, the seed, and that it is flat; the chunk
        // is ready.
        let chunk = address(number) + 8 * FRONT as u64;
        let header = [address(number + 1), number as u64, chunk, 2, 7, 7, 2];
        words[2..9].copy_from_slice(&header);
        words[17] = 1;
        for (place, line) in words[FRONT..].chunks_mut(8).enumerate() {
            // Three entries, and one more that passed.
            line[0] = 0b1111;
            (0..3).for_each(|slot| line[1 + 2 * slot] = (12 * number + 3 * place + slot) as u64);
        }
        // SAFETY: the block's words.
        unsafe { table.cast().write(words) };
    }
    // SAFETY: what a stray write does; the map is used again only after it.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(root).write(address(0)) };
    for key in [0, u64::MAX] {
        assert!(map.insert(&key, 1).is_err());
        assert_eq!(map.get_copied(&key), (key == 0).then_some(0));
    }
}

/// Where a map has its root and the hint at it, and a table its successor, its place and the logarithm of its lines.
const HINT: usize = 8;
const SUCCESSOR: usize = 16;
const PLACE: usize = 32;
const LINES_LOG: usize = 40;
/// Bytes of a table's header; of a chunk's states, of which the second word is 2 when its entries have moved away.
const HEADER: usize = 128;
const STATES: usize = 16;
/// Bytes of a line, and lines of a chunk.
const LINE: usize = 64;
const LINES: usize = 32;

fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of).expose_provenance()
}

/// What entries that have moved away have left behind names nodes that may be freed since: nobody looks at those.
pub fn what_has_moved_away_is_not_looked_at() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u64, [u64; 3]>::new()).unwrap();
    let root = || word(address(&*map)) as usize;
    let chunks = |table: usize| 1_usize << (word(table + PLACE) & 63);
    let moved = |table: usize| {
        let state = move |chunk| table + HEADER + chunk * STATES + 8;
        (0..chunks(table)).filter(move |&chunk| word(state(chunk)) == 2)
    };
    map.insert(&0, [0; 3]).unwrap();
    let mut keys = 1_u64;
    // Some have moved, and some have not.
    while chunks(root()) < 4 || moved(root()).count() == 0 {
        map.insert(&keys, [keys; 3]).unwrap();
        keys += 1;
    }
    let table = root();
    assert!(word(table + SUCCESSOR) != 0);
    // Memory that nobody can look at.
    let forbidden = pool.allocate(layout(64 << 10, 16 << 10)).unwrap();
    let forbidden = forbidden.cast::<u8>().as_ptr();
    let protect = |how| {
        // SAFETY: a block of this test's, of whole pages.
        let done = unsafe { libc::mprotect(forbidden.cast(), 64 << 10, how) };
        assert_eq!(done, 0);
    };
    protect(libc::PROT_NONE);
    let first = word(table + PLACE) as usize & !63;
    for chunk in moved(table) {
        for line in (0..LINES).map(|line| first + (chunk * LINES + line) * LINE) {
            for slot in (0..3).filter(|slot| word(line) >> slot & 1 != 0) {
                damage(line + 16 + 16 * slot, forbidden.expose_provenance() as u64);
            }
        }
    }
    // With the hint as it is, and as it was before somebody has changed an entry since the table has a successor.
    for hint in [word(address(&*map) + HINT), word(table + PLACE)] {
        damage(address(&*map) + HINT, hint);
        for key in 0..keys {
            assert_eq!(map.get_copied(&key), Some([key; 3]));
        }
        assert_eq!(map.get_copied(&keys), None);
    }
    assert_eq!(map.len() as u64, keys);
    protect(libc::PROT_READ | libc::PROT_WRITE);
}

/// A flat map with as many keys at least, whose table is not moving.
fn flat_at_rest(pool: Pool, keys: usize) -> Shared<HashMap<u64, u64>> {
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    map.insert(&0, 0).unwrap();
    while map.len() < keys || word(word(address(&*map)) as usize + SUCCESSOR) != 0 {
        let key = map.len() as u64;
        map.insert(&key, key).unwrap();
    }
    map
}

/// Tables that say of themselves what none is like.
pub fn tables_of_impossible_shapes() {
    for (keys, impossible) in [(3, [0, 1, 6, 64]), (2000, [0, 2, 4, 6])] {
        let pool = TestPool::new();
        let map = flat_at_rest(*pool, keys);
        let lines_log = word(address(&*map)) as usize + LINES_LOG;
        let right = word(lines_log);
        for log in impossible {
            damage(lines_log, log);
            assert!(map.insert(&1, 7).is_err(), "{log}");
            assert!(map.try_remove(&1).is_err(), "{log}");
            assert_eq!(map.len(), 0, "{log}");
        }
        damage(lines_log, right);
        assert_eq!(map.get_copied(&1), Some(1));
    }
}

/// A table at the very end of the pool, the states of whose chunks would be behind it.
pub fn a_table_behind_its_chunks() {
    /// Where the header says how many slices there are, of so many bytes each, and where the first one is.
    const SLICES: usize = 128 + 40;
    const SLICE: usize = 16 << 10;
    const DATA: usize = 40 << 30;
    let pool = TestPool::new();
    let map = flat_at_rest(*pool, 2000);
    let (root, keys) = (address(&*map), map.len() as u64);
    let table = word(root) as usize;
    let end = pool.base() + DATA + word(pool.base() + SLICES) as usize * SLICE;
    for at in (0..HEADER).step_by(8) {
        damage(end - HEADER + at, word(table + at));
    }
    damage(root, (end - HEADER) as u64);
    for key in 0..keys {
        assert!(map.insert(&key, 7).is_err());
        assert!(map.try_remove(&key).is_err());
    }
    damage(root, table as u64);
    assert!((0..keys).all(|key| map.get_copied(&key) == Some(key)));
}
