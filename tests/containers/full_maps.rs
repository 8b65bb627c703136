//! Hash maps in pools without room.

use shmkit::{AllocError, ChangeError, CompareError, HashMap, Pool, ShmSafe, StoreError};

use crate::common::{TestPool, layout};
use crate::{allocated, assert_sound};

pub fn a_full_pool_loses_no_entry() {
    let pool = TestPool::with(|builder| builder.initial_size(1 << 20).max_size(1 << 20));
    let before = allocated(*pool);
    let map = pool.create(HashMap::<u64, [u64; 8]>::new()).unwrap();
    let mut full = 0;
    let refused = loop {
        match map.insert(&full, [full; 8]) {
            Ok(_) => full += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.value, [full; 8]);
    assert_eq!(refused.cause, ChangeError::Alloc(AllocError::PoolFull));
    assert!(full > 4000, "{full}");
    for key in 0..full {
        assert_eq!(map.get_copied(&key), Some([key; 8]));
    }
    assert_sound(*pool);
    for key in 0..full {
        assert_eq!(map.try_remove(&key).unwrap().map(|v| *v), Some([key; 8]));
    }
    assert!(map.is_empty());
    map.insert(&1, [1; 8]).unwrap();
    drop(map);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

/// Takes all room that a pool of a few megabytes has.
fn fill(pool: Pool) {
    for size in [256 << 10, 16 << 10, 4096, 1024, 256, 96, 88, 64, 16] {
        while pool.allocate(layout(size, 8)).is_ok() {}
    }
}

/// A full pool with a map that is moving to a smaller table: the change that finds the last of it moved
/// gives the old table back, and then has room for itself. (In between all that is in limbo is
/// freed, and taken: so no change can live on what another one left.)
pub fn lives_on_what_it_outgrows<M: ShmSafe>(
    empty: M,
    insert: impl Fn(&M, u64),
    remove: impl Fn(&M, u64),
    change: impl Fn(&M, u64) -> Result<(), ChangeError>,
) {
    let pool = TestPool::with(|builder| builder.initial_size(2 << 20).max_size(2 << 20));
    let map = pool.create(empty).ok().unwrap();
    // No node or small table is as large as half a table of 64 chunks, which is slices that go back to the pool.
    let gets_a_table = |change: &dyn Fn()| {
        let before = allocated(*pool);
        change();
        allocated(*pool) > before + (64 << 10)
    };
    let mut new = 0;
    while !gets_a_table(&|| insert(&map, new)) {
        new += 1;
    }
    // It has to move before it can shrink.
    (0..100).for_each(|_| insert(&map, 3));
    while !gets_a_table(&|| remove(&map, new)) {
        new -= 1;
        assert!(new > 3, "it shrinks before it is empty");
    }
    let mut refused = 0;
    loop {
        pool.recover();
        fill(*pool);
        match change(&map, new) {
            Ok(()) => break,
            Err(cause) => assert_eq!(cause, ChangeError::Alloc(AllocError::PoolFull)),
        }
        refused += 1;
        assert!(refused < 100, "the table is moved by now");
    }
    assert!(refused > 4, "the pool was full");
    assert_sound(*pool);
}

pub fn changes_live_on_what_they_outgrow() {
    type Map = HashMap<u64, [u64; 8]>;
    type Change = fn(&Map, u64) -> Result<(), ChangeError>;
    fn cause(refused: StoreError<[u64; 8]>) -> ChangeError {
        assert_eq!(refused.value, [7; 8]);
        refused.cause
    }
    let changes: [Change; 8] = [
        |map, new| map.insert(&new, [7; 8]).map(drop).map_err(cause),
        |map, new| {
            map.get_or_insert_with(&new, || [7; 8])
                .map(drop)
                .map_err(cause)
        },
        |map, new| map.update(&new, |_| Some([7; 8])).map(drop),
        |map, _| map.update(&3, |old| old.map(|_| [7; 8])).map(drop),
        |map, new| {
            map.compare_exchange(&new, None, Some([7; 8]))
                .map(drop)
                .map_err(|error| match error {
                    CompareError::Change(cause) => cause,
                    error => panic!("{error}"),
                })
        },
        |map, new| {
            map.entry(&new)
                .and_modify(|_| [8; 8])
                .or_insert([7; 8])
                .map(drop)
                .map_err(cause)
        },
        |map, _| {
            map.entry(&3)
                .and_modify(|_| [7; 8])
                .or_insert([8; 8])
                .map(drop)
                .map_err(cause)
        },
        |map, _| map.entry(&3).and_modify(|_| [7; 8]).or_nothing().map(drop),
    ];
    for change in changes {
        let insert = |map: &Map, key| drop(map.insert(&key, [0; 8]).unwrap());
        let remove = |map: &Map, key| drop(map.remove(&key));
        lives_on_what_it_outgrows(Map::new(), insert, remove, change);
    }
}
