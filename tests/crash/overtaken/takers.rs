//! A process that frees blocks of containers, or recovers one that did, and is overtaken by one that takes everything
//! that is free, blocks and entries of objects: what the overtaker has is not freed once more, whichever process dies,
//! and whenever. Nor is what a process takes as soon as the dead are settled.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ptr::NonNull;

use shmkit::testing;
use shmkit::{Array, Buffer, Link, Pool, Shared};

use super::super::engine::{Case, Doomed, Suite};
use super::super::in_pool::{self, InPool, ensure, sound};
use super::super::pool::{Node, World, elsewhere, node};
use super::super::recovery::leave_slots;
use super::super::sync::slot;

/// What is freed of the array, when it grows, and of the buffer.
const ELEMENTS: usize = 6;
const CHUNK: usize = 1000;
/// More than there are in a span, of all sizes that their blocks may have.
const BLOCKS: &[(usize, usize)] = &[
    (48, 400),
    (64, 300),
    (80, 250),
    (96, 200),
    (1024, 40),
    (2048, 20),
    (4096, 20),
    (8192, 20),
    (size_of::<Array<u64>>(), 100),
    (size_of::<Buffer>(), 100),
];
const ROWS: usize = 1450;
/// As many objects as the table of a small pool has entries.
const OBJECTS: usize = 64;

struct Takers {
    pool: Pool,
    array: Shared<Array<u64>>,
    buffer: Shared<Buffer>,
    /// What each of those who take has taken.
    taken: [Taken; 2],
}

/// What was taken by one.
struct Taken {
    /// The addresses of blocks; 0 behind them.
    table: NonNull<[usize; ROWS]>,
    /// Leads to the objects, each of which leads to the next.
    chain: Shared<Link<Node>>,
}

impl InPool for Takers {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl Takers {
    /// What is freed lies in spans that nobody owns: whoever needs one has it.
    fn new() -> Self {
        let mut made = None;
        let mut world = World::new();
        let pool = world.pool;
        // Who needs a slot recovers nobody for it.
        leave_slots(&mut world, 4);
        elsewhere(&mut world, |world| {
            let pool = world.pool;
            let array = Array::filled_in(pool, ELEMENTS, 1).expect("room");
            pool.set_name(
                "gone",
                &Array::filled_in(pool, ELEMENTS, 1_u64).expect("room"),
            )
            .expect("named");
            let buffer = pool.create(Buffer::new()).expect("room");
            let chunks = pool.create(Buffer::new()).expect("room");
            for buffer in [&buffer, &chunks].into_iter().cycle().take(16) {
                buffer.append(&[7; CHUNK]).expect("room");
            }
            pool.set_name("chunks", &chunks).expect("named");
            world.allocate(ROWS * size_of::<usize>(), 2);
            made = Some((array, buffer));
        });
        let (array, buffer) = made.expect("made");
        let taken = [0, 1].map(|one| Taken::nothing(pool, world.blocks[one]));
        Takers {
            pool,
            array,
            buffer,
            taken,
        }
    }

    fn grow(&self) {
        self.array.grow(2 * ELEMENTS, 2).expect("room");
    }

    fn is_taken(&self) -> Result<(), String> {
        sound(self.pool)?;
        let mut seen = HashSet::new();
        let mut taken = self.taken.iter();
        taken.try_for_each(|taken| taken.is_there(self.pool, &mut seen))
    }
}

impl Taken {
    /// The block is one for a table.
    fn nothing(pool: Pool, block: NonNull<u8>) -> Self {
        let table = block.cast::<[usize; ROWS]>();
        // SAFETY: allocated for that.
        unsafe { table.write_bytes(0, 1) };
        let chain = pool.create(Link::null()).expect("room");
        Taken { table, chain }
    }

    fn take(&self, pool: Pool, blocks: &[(usize, usize)]) {
        let mut world = World::in_pool(pool);
        for &(size, count) in blocks {
            world.allocate(size, count);
        }
        assert!(world.blocks.len() <= ROWS);
        for (row, block) in world.blocks.iter().enumerate() {
            // SAFETY: the table is a block of so many words, and nobody else writes to it.
            unsafe {
                self.table
                    .cast::<usize>()
                    .add(row)
                    .write(block.addr().get())
            };
        }
        // Behind the blocks, as it looks for objects that nobody holds.
        for value in 0..OBJECTS {
            let object = pool.create(node(value as u64)).expect("room");
            let next = self.chain.get();
            object.next.set(next.as_ref()).expect("this pool's");
            self.chain.set(Some(&object)).expect("this pool's");
        }
    }

    /// What was taken is no other's, as no block is that was `seen`.
    fn is_there(&self, pool: Pool, seen: &mut HashSet<usize>) -> Result<(), String> {
        // SAFETY: as above; written before, and whole.
        let table = unsafe { self.table.read() };
        for address in table.into_iter().filter(|&address| address != 0) {
            let block = NonNull::new(address as *mut u8).ok_or("null")?;
            let usable = pool.usable_size(block);
            ensure(usable.is_ok() && seen.insert(address), || {
                format!("{address:#x}: {usable:?}")
            })?;
        }
        let mut next = self.chain.get();
        let mut missing = next.as_ref().map_or(0, |_| OBJECTS as u64);
        while let Some(object) = next {
            missing = missing.wrapping_sub(1);
            let value = object.value;
            ensure(value == missing, || format!("object {missing} is {value}"))?;
            next = object.next.get();
        }
        ensure(missing == 0, || format!("{missing} objects are missing"))
    }
}

/// Besides objects so many blocks are taken of such sizes.
fn case(
    name: &str,
    blocks: &'static [(usize, usize)],
    setup: impl Fn(&Takers) + 'static,
    operation: impl Fn(&mut Takers) + 'static,
) -> Case<Takers> {
    in_pool::case(format!("overtaken/taken/{name}"), move || {
        let takers = Takers::new();
        setup(&takers);
        takers
    })
    .attach(|takers| slot(takers.pool))
    .operation(operation)
    .overtaken_by(move |takers| {
        takers.pool.recover();
        takers.taken[0].take(takers.pool, blocks);
    })
    .recover(move |takers| {
        testing::settle(takers.pool);
        takers.taken[1].take(takers.pool, blocks);
        Ok(())
    })
    .verify(|takers, _| takers.is_taken())
    .without_second_order()
    .without_real_kills()
}

/// One dies in whose hands the buffer goes, when a chunk of it has become free.
fn destroys_and_dies(takers: &Takers) {
    let before = takers.pool.stats().allocated;
    let destroys = || takers.pool.remove_name("chunks").expect("the name");
    let mut doomed = Doomed::new(|| slot(takers.pool), destroys);
    doomed.go_on_until(|| takers.pool.stats().allocated < before);
    doomed.die();
}

/// One dies in whose hands an object goes, when its block has become free.
fn drops_and_dies(takers: &Takers) {
    let object = takers.pool.create(node(1)).expect("room");
    let block = NonNull::from(&*object).cast();
    let object = RefCell::new(Some(object));
    let drops = || drop(object.take());
    let mut doomed = Doomed::new(|| slot(takers.pool), drops);
    // The other has it as well since it was forked.
    drops();
    doomed.go_on_until(|| takers.pool.usable_size(block).is_err());
    doomed.die();
}

/// One dies who has grown the array, before it has freed what that had.
fn grows_and_dies(takers: &Takers) {
    let mut doomed = Doomed::new(|| slot(takers.pool), || takers.grow());
    doomed.go_on_until(|| takers.array.len() > ELEMENTS);
    doomed.die();
}

pub fn cases(suite: &mut Suite) {
    let nothing = |_: &Takers| ();
    suite.run(case("an array grows", BLOCKS, nothing, |takers| {
        takers.grow();
    }));
    suite.run(case("an array goes", BLOCKS, nothing, |takers| {
        takers.pool.remove_name("gone").expect("the name");
    }));
    suite.run(case("a buffer is cut", BLOCKS, nothing, |takers| {
        let end = takers.buffer.end();
        takers.buffer.truncate_front(end).expect("bytes");
    }));
    let recovered = |who, blocks, dies: fn(&Takers)| {
        let name = format!("one is recovered who {who}");
        case(&name, blocks, dies, |takers| testing::settle(takers.pool))
    };
    suite.run(recovered("grew an array", BLOCKS, grows_and_dies));
    suite.run(recovered("destroyed a buffer", BLOCKS, destroys_and_dies));
    // Who gets its entry is the case, and who recovers dies then.
    let object = recovered("destroyed an object", &[], drops_and_dies);
    suite.run(object.only_goes_on().soon());
}
