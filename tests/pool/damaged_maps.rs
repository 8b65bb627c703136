//! Maps whose words were changed: see `damage`.

use std::hint::black_box;
use std::ptr::NonNull;

use shmkit::{HashMap, Key, KeyHasher, MultiMap, Pool, Shared, ShmSafe};

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
        map.for_each(|key, value| {
            black_box((*key, *value));
        });
        let _ = map.clear();
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
        // Successor, number, that it is of one chunk of 2^(5 - 3) lines, the seed, and that it is flat; where the chunk
        // is, and that it is ready.
        let header = [address(number + 1), number as u64, 3 << 62, 7, 7, 2];
        words[2..8].copy_from_slice(&header);
        words[16] = address(number) + 8 * FRONT as u64;
        words[19] = 1;
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

/// The lowest value hides itself: each of the two goes once.
pub fn a_stack_that_leads_in_a_circle_is_cleared() {
    /// Where a value's node begins, and which one it hides, before the value.
    const NODE: usize = 24;
    const BELOW: usize = 8;
    let pool = TestPool::new();
    let stacks = pool.create(MultiMap::<u16, u64>::new()).unwrap();
    (1..3).for_each(|n| stacks.push(&7, n).unwrap());
    let mut all = stacks.get_all(&7);
    let [top, below] = [(); 2].map(|()| address(all.next().unwrap()));
    assert_eq!(word(top - BELOW), (below - NODE) as u64);
    damage(below - BELOW, (below - NODE) as u64);
    stacks.clear().unwrap();
    assert_eq!(pool.stats().retired.blocks, 2);
}

/// Where a map has its hints, of so many bytes; where a table has its successor and its shape.
const HINTS: std::ops::Range<usize> = 8..96;
const SUCCESSOR: usize = 16;
const SHAPE: usize = 32;
/// Where a table has where its parts are, and the states of its chunks, of so many bytes, of which the second word is 2
/// when its entries have moved away.
const PARTS: usize = 128;
const STATES: usize = 384;
const STATE: usize = 16;
/// Bytes of a line, and lines of a chunk.
const LINE: usize = 64;
const LINES: usize = 32;

fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of).expose_provenance()
}

/// How many chunks a table has.
fn chunks(table: usize) -> usize {
    word(table + SHAPE) as u32 as usize + 1
}

/// Where the chunks are whose entries have moved away from a table of several.
fn moved(table: usize) -> impl Iterator<Item = usize> {
    let is_moved = move |&chunk: &usize| word(table + STATES + chunk * STATE + 8) == 2;
    let moved = (0..chunks(table)).filter(is_moved);
    moved.map(move |chunk| place(table, chunk))
}

/// Where a chunk of a table of several is.
fn place(table: usize, chunk: usize) -> usize {
    let first = (word(table + SHAPE) >> 32) as usize;
    let part = usize::BITS - (chunk | first).leading_zeros();
    let place = word(table + PARTS + 8 * part as usize) as usize;
    place.wrapping_add(chunk * LINES * LINE)
}

/// What entries that have moved away have left behind names nodes that may be freed since: nobody looks at those.
pub fn what_has_moved_away_is_not_looked_at() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u64, [u64; 3]>::new()).unwrap();
    let root = || word(address(&*map)) as usize;
    let hints = || HINTS.step_by(8).map(|at| word(address(&*map) + at));
    map.insert(&0, [0; 3]).unwrap();
    let mut keys = 1_u64;
    while chunks(root()) < 32 || word(root() + SUCCESSOR) != 0 {
        map.insert(&keys, [keys; 3]).unwrap();
        keys += 1;
    }
    // It shrinks, and some have moved, and some have not.
    let mut before: Vec<u64> = hints().collect();
    while moved(root()).count() < 8 {
        keys -= 1;
        assert_eq!(map.remove(&keys).as_deref(), Some(&[keys; 3]));
        if word(root() + SUCCESSOR) == 0 {
            before = hints().collect();
        }
    }
    let table = root();
    assert!(moved(table).count() < chunks(table));
    // Memory that nobody can look at.
    let forbidden = pool.allocate(layout(64 << 10, 16 << 10)).unwrap();
    let forbidden = forbidden.cast::<u8>().as_ptr();
    let protect = |how| {
        // SAFETY: a block of this test's, of whole pages.
        let done = unsafe { libc::mprotect(forbidden.cast(), 64 << 10, how) };
        assert_eq!(done, 0);
    };
    protect(libc::PROT_NONE);
    let mut damaged = 0;
    for chunk in moved(table) {
        for line in (0..LINES).map(|line| chunk + line * LINE) {
            for slot in (0..3).filter(|slot| word(line) >> slot & 1 != 0) {
                damage(line + 16 + 16 * slot, forbidden.expose_provenance() as u64);
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    // With the hints as they are, and as they were before somebody has changed an entry since the table has a successor.
    for hints in [hints().collect(), before] {
        for (at, hint) in HINTS.step_by(8).zip(hints) {
            damage(address(&*map) + at, hint);
        }
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

/// A map's hints of where its table is are any words: all is found and changed as if they were right.
pub fn hints_are_not_believed() {
    let pool = TestPool::new();
    let map = flat_at_rest(*pool, 2000);
    let keys = map.len() as u64;
    for hint in HINTS.step_by(8).map(|at| address(&*map) + at) {
        let right = word(hint);
        let near = right ^ 1 | 1 << 32;
        for garbage in [0, !0, near, near.rotate_left(32), right.wrapping_add(1)] {
            for key in 0..keys {
                damage(hint, garbage);
                assert_eq!(map.get_copied(&key), Some(key));
                let other = keys + key;
                assert_eq!(map.get_copied(&other), None);
                damage(hint, garbage);
                assert_eq!(map.insert(&key, key).unwrap().as_deref(), Some(&key));
            }
        }
        damage(hint, right);
    }
    assert_eq!(map.len() as u64, keys);
}

/// Tables that say of themselves what none is like.
pub fn tables_of_impossible_shapes() {
    for keys in [3, 2000] {
        let pool = TestPool::new();
        let map = flat_at_rest(*pool, keys);
        let shape = word(address(&*map)) as usize + SHAPE;
        let right = word(shape);
        let mut impossible = vec![
            // Chunks that are no power of two, of which there are too many, or fewer than in the first part.
            right ^ 0b100,
            right | 1 << 31,
            right | u64::from(u32::MAX),
            right << 32,
            right | 0x3fff_ffff << 32,
            right ^ 0b10 << 32,
        ];
        // Short chunks in a large table.
        impossible.extend((1..4).map(|lines| right | 1 | lines << 62));
        // 0 is a full chunk.
        for word in impossible
            .into_iter()
            .filter(|&word| word != right && word != 0)
        {
            damage(shape, word);
            assert!(map.insert(&1, 7).is_err(), "{word:#x}");
            assert!(map.try_remove(&1).is_err(), "{word:#x}");
            assert_eq!(map.len(), 0, "{word:#x}");
        }
        damage(shape, right);
        assert_eq!(map.get_copied(&1), Some(1));
    }
}

/// The parts of a table are said to be where nothing is: no memory is touched that is not the pool's.
pub fn parts_that_are_nowhere() {
    for garbage in [
        |_| 0,
        |_| 64,
        |right| right + 8,
        |_| !0,
        |right| right - (1 << 36),
    ] {
        let garbage: fn(u64) -> u64 = garbage;
        let pool = TestPool::new();
        let map = flat_at_rest(*pool, 2000);
        let table = word(address(&*map)) as usize;
        let own = chunks(table).ilog2() as usize;
        for part in (0..own).map(|part| table + PARTS + 8 * part) {
            damage(part, garbage(word(part)));
        }
        for key in 0..4000 {
            black_box(map.get_copied(&key));
            let _ = map.insert(&key, key);
            let _ = map.try_remove(&(key + 1));
        }
        black_box(map.len());
        let _ = map.clear();
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
    for at in (0..PARTS).step_by(8) {
        damage(end - PARTS + at, word(table + at));
    }
    damage(root, (end - PARTS) as u64);
    for key in 0..keys {
        assert!(map.insert(&key, 7).is_err());
        assert!(map.try_remove(&key).is_err());
    }
    damage(root, table as u64);
    assert!((0..keys).all(|key| map.get_copied(&key) == Some(key)));
}

/// A table is said to be its own successor: it has none.
pub fn a_table_that_follows_itself() {
    let pool = TestPool::new();
    let map = flat_at_rest(*pool, 3);
    let table = word(address(&*map));
    damage(table as usize + SUCCESSOR, table);
    assert_eq!(map.insert(&1, 7).unwrap().as_deref(), Some(&1));
    assert_eq!((map.get_copied(&1), map.len()), (Some(7), 3));
}

/// Numbers belong to a table's chunks by turns.
#[derive(ShmSafe)]
struct ByTurns;

// SAFETY: a function of its arguments, that neither panics nor uses a pool.
unsafe impl KeyHasher for ByTurns {
    fn hash(_: [u64; 2], bytes: &[u8]) -> u64 {
        let number = u64::from(bytes[0]) | u64::from(bytes[1]) << 8;
        number << 32 | number.wrapping_mul(0x9e37_79b1) >> 16 & 0xffff
    }
}

/// Whoever has split a chunk was killed before the entries were removed that belong elsewhere: they count once, also if
/// nobody changes anything in the chunk before its entries move on.
pub fn what_a_split_has_left_does_not_move_on() {
    let pool = TestPool::new();
    let map = HashMap::<u64, u64, ByTurns>::with_hasher();
    let map = pool.create(map).unwrap();
    let root = || word(address(&*map)) as usize;
    map.insert(&0, 0).unwrap();
    let mut keys = 1_u64;
    while chunks(root()) < 4 || word(root() + SUCCESSOR) != 0 {
        map.insert(&keys, keys).unwrap();
        keys += 1;
    }
    // The third chunk came of the first.
    let elsewhere = 2;
    let mut lines = (0..LINES).map(|line| place(root(), 0) + line * LINE);
    let line = lines.find(|&line| word(line) & 7 != 7).unwrap();
    let slot = word(line).trailing_ones() as usize;
    damage(line + 8 + 16 * slot, elsewhere);
    damage(line + 16 + 16 * slot, elsewhere);
    damage(line, word(line) | 1 << slot);
    damage(root() + STATES + 8, 0);
    assert_eq!(map.len() as u64, keys);
    for key in (keys..).filter(|key| key % 4 != 0) {
        map.insert(&key, key).unwrap();
        keys += 1;
        if chunks(root()) > 4 {
            break;
        }
    }
    assert_eq!(map.len() as u64, keys);
}
