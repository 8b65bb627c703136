//! Containers in full pools that would have room, but it is in limbo or held back by the caller's own
//! pin; and what is released under a pin, which is freed when the pin ends.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use shmkit::process::scope;
use shmkit::{
    AllocError, Array, Buffer, ChangeError, HashMap, Matrix, MultiMap, Pool, SharedCell, ShmSafe,
};

use crate::common::{TestPool, layout};
use crate::workers::until;
use crate::{assert_sound, pool};

/// What makes a block of five slices, which is too few bytes to be collected by itself.
type Large = [u64; 8192];

/// Takes all room that there is.
fn fill(pool: Pool) {
    for size in [256 << 10, 16 << 10, 4096, 1024, 256, 96, 88, 64, 16] {
        while pool.allocate(layout(size, 8)).is_ok() {}
    }
}

fn small() -> TestPool {
    TestPool::with(|builder| builder.initial_size(2 << 20).max_size(2 << 20))
}

/// Fills the pool but for a block that is in limbo, and that nobody looks at any more.
fn fill_but_limbo(pool: Pool, cell: &SharedCell<Large>) {
    cell.set([1; 8192]).unwrap();
    let view = cell.view().unwrap();
    cell.set([2; 8192]).unwrap();
    fill(pool);
    drop(view);
    assert!(pool.allocate(layout(16 << 10, 8)).is_err(), "it is full");
}

#[derive(ShmSafe)]
struct Tables {
    large: SharedCell<Large>,
    numbers: Array<u64>,
    matrix: Matrix<u64>,
}

pub fn growth_makes_room() {
    let uses: [fn(&Tables); 4] = [
        |tables| tables.numbers.grow(4000, 1).unwrap(),
        |tables| assert_eq!(tables.numbers.extend_from_slice(&[1; 4000]), Ok(0)),
        |tables| tables.matrix.fill(40, 100, 1).unwrap(),
        |tables| tables.matrix.grow(40, 1).unwrap(),
    ];
    for (number, uses) in uses.into_iter().enumerate() {
        let pool = small();
        let tables = Tables {
            large: SharedCell::new(),
            numbers: Array::new(),
            matrix: Matrix::new(),
        };
        let tables = pool.create(tables).ok().unwrap();
        if number == 3 {
            tables.matrix.fill(1, 100, 1).unwrap();
        }
        fill_but_limbo(*pool, &tables.large);
        uses(&tables);
        assert!(tables.numbers.claim(..).unwrap().iter().all(|&n| n == 1));
        if let Ok(rows) = tables.matrix.rows(..) {
            assert!(rows.iter().all(|&n| n == 1));
        }
        assert_sound(*pool);
    }
}

pub fn an_update_lives_on_what_its_pin_held() {
    let pool = small();
    let cell = pool.create(SharedCell::<Large>::new()).unwrap();
    let other = pool.create(SharedCell::<Large>::new()).unwrap();
    cell.set([1; 8192]).unwrap();
    other.set([1; 8192]).unwrap();
    let runs = Cell::new(0);
    let update = cell.update(|old| {
        if runs.replace(runs.get() + 1) == 0 {
            other.set([2; 8192]).unwrap();
            fill(*pool);
        }
        [old.unwrap()[0] + 6; 8192]
    });
    assert_eq!((update, runs.get()), (Ok(()), 2));
    assert_eq!(cell.view().unwrap()[..], [7; 8192]);
    assert_sound(*pool);
}

/// Each attempt leaves something to be freed, which the next one takes.
pub fn attempts_come_to_an_end() {
    type Other = SharedCell<[u64; 20]>;
    type Use = fn(Pool, &dyn Fn()) -> ChangeError;
    let uses: [Use; 2] = [
        |pool, each| {
            let cell = pool.create(SharedCell::<Large>::new()).unwrap();
            let update = cell.update(|_| {
                each();
                [1; 8192]
            });
            update.unwrap_err()
        },
        |pool, each| {
            let map = pool.create(HashMap::<u64, Large>::new()).unwrap();
            let update = map.update(&1, |_| {
                each();
                Some([1; 8192])
            });
            update.map(drop).unwrap_err()
        },
    ];
    for uses in uses {
        let pool = small();
        let other = pool.create(Other::new()).unwrap();
        other.set([1; 20]).unwrap();
        let runs = Cell::new(0);
        let refused = uses(*pool, &|| {
            other.set([2; 20]).unwrap();
            if runs.replace(runs.get() + 1) == 0 {
                fill(*pool);
            }
            assert!(runs.get() < 1000, "for ever");
        });
        assert_eq!(refused, ChangeError::Alloc(AllocError::PoolFull));
        assert_sound(*pool);
    }
}

/// What a full pool refuses of an entry comes back, and is not what is put when there is room.
pub fn an_entry_keeps_its_values_apart() {
    let pool = small();
    let map = pool.create(HashMap::<u64, Large>::new()).unwrap();
    let cell = pool.create(SharedCell::<Large>::new()).unwrap();
    cell.set([1; 8192]).unwrap();
    map.insert(&1, [1; 8192]).unwrap();
    let runs = Cell::new(0);
    let modify = |_: &Large| {
        if runs.replace(runs.get() + 1) == 0 {
            cell.set([2; 8192]).unwrap();
            fill(*pool);
        } else {
            map.remove(&1).unwrap();
        }
        [3; 8192]
    };
    let now = map.entry(&1).and_modify(modify).or_insert([4; 8192]);
    assert_eq!((now.unwrap()[0], runs.get()), (4, 2));

    let pool = small();
    let map = pool.create(HashMap::<u64, Large>::new()).unwrap();
    let make = || {
        map.insert(&1, [1; 8192]).unwrap();
        [2; 8192]
    };
    let modify = |_: &Large| {
        fill(*pool);
        [3; 8192]
    };
    let refused = map.entry(&1).and_modify(modify).or_insert_with(make);
    let refused = refused.unwrap_err();
    let full = ChangeError::Alloc(AllocError::PoolFull);
    assert_eq!((refused.value[0], refused.cause), (3, full));
}

/// An object that is let go of under a pin goes when the pin ends.
pub fn the_end_of_a_pin_frees_what_it_held() {
    let pool = TestPool::new();
    let buffer = pool.create(Buffer::new()).unwrap();
    buffer.append(b"bytes").unwrap();
    let map = pool.create(HashMap::<u32, [u64; 3]>::new()).unwrap();
    map.insert(&1, [1; 3]).unwrap();
    let stacks = pool.create(MultiMap::<u32, u64>::new()).unwrap();
    stacks.push(&1, 1).unwrap();
    let cell = pool.create(SharedCell::<[u64; 3]>::new()).unwrap();
    cell.set([1; 3]).unwrap();
    let let_go = || drop(pool.create([5_u64; 100]).unwrap());
    let uses: [(&str, &dyn Fn()); 6] = [
        ("bytes", &|| {
            let view = buffer.view(0..5).unwrap();
            let_go();
            drop(view);
        }),
        ("entries", &|| map.for_each(|_, _| let_go())),
        ("bindings", &|| {
            let all = stacks.get_all(&1);
            let_go();
            drop(all);
        }),
        ("retain", &|| {
            let kept = map.retain(|_, _| {
                let_go();
                true
            });
            kept.unwrap();
        }),
        ("update of a cell", &|| {
            let update = cell.update(|old| {
                let_go();
                *old.unwrap()
            });
            update.unwrap();
        }),
        ("update of an entry", &|| {
            let update = map.update(&1, |_| {
                let_go();
                None
            });
            drop(update.unwrap());
            map.insert(&1, [1; 3]).unwrap();
        }),
    ];
    for (name, uses) in uses {
        let_go();
        pool.recover();
        let before = pool.stats().allocated;
        uses();
        // A node may be in limbo.
        let left = pool.stats().allocated - before;
        assert!(left < 800, "{left} bytes are left after {name}");
    }
    assert_sound(*pool);
}

/// What a thread has unlinked goes when it has ended its look, not when it looks again.
pub fn idle_threads_hold_nothing_back() {
    type Large = [u64; 1 << 16];
    fn large(n: u64) -> Large {
        [n; 1 << 16]
    }
    fn idle(pool: Pool, work: impl Fn() + Sync) {
        let step = pool.create(AtomicU32::new(0)).unwrap();
        scope(|s| {
            let child = s.spawn(|| {
                work();
                step.store(1, Ordering::SeqCst);
                until(|| step.load(Ordering::SeqCst) == 2);
            });
            until(|| step.load(Ordering::SeqCst) == 1);
            let left = pool.stats().retired.bytes;
            step.store(2, Ordering::SeqCst);
            child.unwrap().join().unwrap();
            assert!(left < 512 << 10, "{left} bytes");
        });
    }
    let pool = pool();
    let map = pool.create(HashMap::<u32, Large>::new()).unwrap();
    idle(pool, || {
        for key in 0..4 {
            map.insert(&key, large(1)).unwrap();
        }
        map.clear().unwrap();
    });
    idle(pool, || {
        (0..3).for_each(|n| drop(map.insert(&1, large(n)).unwrap()));
    });
    let cell = pool.create(SharedCell::<Large>::new()).unwrap();
    idle(pool, || (0..3).for_each(|n| cell.set(large(n)).unwrap()));
    idle(pool, || {
        cell.update(|_| large(7)).unwrap();
    });
    // Tables that a flat map has grown out of, and back.
    let flat = pool.create(HashMap::<u64, u64>::new()).unwrap();
    idle(pool, || {
        for _ in 0..4 {
            (0..50_000).for_each(|n| drop(flat.insert(&n, n).unwrap()));
            (0..50_000).for_each(|n| drop(flat.remove(&n)));
        }
    });
}
