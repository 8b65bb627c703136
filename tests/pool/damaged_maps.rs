//! Maps whose words were changed: see `damage`.

use std::hint::black_box;
use std::ptr::NonNull;

use shmkit::{HashMap, Key, MultiMap, Pool, ShmSafe};

use super::common::{TestPool, layout};

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
