//! Who frees blocks of containers, or recovers one who did, and is overtaken by one who takes all that is free: what that
//! one has is not freed once more, whoever dies when.

use std::ptr::NonNull;

use shmkit::testing;
use shmkit::{Array, Buffer, Pool, Shared};

use super::super::engine::{Case, Doomed, Suite};
use super::super::in_pool::{self, InPool, ensure, sound};
use super::super::pool::{World, elsewhere};
use super::super::recovery::leave_slots;
use super::super::sync::slot;

/// What is freed of the array, when it grows, and of the buffer.
const ELEMENTS: usize = 6;
const CHUNK: usize = 1000;
/// More than there are in a span, of all sizes that their blocks may have.
const TAKEN: [(usize, usize); 8] = [
    (48, 400),
    (64, 300),
    (80, 250),
    (96, 200),
    (1024, 40),
    (2048, 20),
    (4096, 20),
    (8192, 20),
];
const ROWS: usize = 1250;

struct Takers {
    pool: Pool,
    array: Shared<Array<u64>>,
    buffer: Shared<Buffer>,
    /// The addresses of what was taken; 0 behind them.
    table: NonNull<[usize; ROWS]>,
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
            world.allocate(ROWS * size_of::<usize>(), 1);
            made = Some((array, buffer));
        });
        let (array, buffer) = made.expect("made");
        let table = world.blocks[0].cast::<[usize; ROWS]>();
        // SAFETY: allocated above, of that length.
        unsafe { table.write_bytes(0, 1) };
        Takers {
            pool,
            array,
            buffer,
            table,
        }
    }

    fn grow(&self) {
        self.array.grow(2 * ELEMENTS, 2).expect("room");
    }

    fn take(&mut self) {
        self.pool.recover();
        let mut world = World::in_pool(self.pool);
        for (size, count) in TAKEN {
            world.allocate(size, count);
        }
        for (row, block) in world.blocks.iter().enumerate() {
            // SAFETY: the table is a block of so many words, and nobody else writes to it.
            unsafe {
                self.table
                    .cast::<usize>()
                    .add(row)
                    .write(block.addr().get())
            };
        }
    }

    /// What was taken is no other's.
    fn is_taken(&self) -> Result<(), String> {
        sound(self.pool)?;
        // SAFETY: as above; written before, and whole.
        let table = unsafe { self.table.read() };
        for address in table.into_iter().filter(|&address| address != 0) {
            let block = NonNull::new(address as *mut u8).ok_or("null")?;
            let usable = self.pool.usable_size(block);
            ensure(usable.is_ok(), || format!("{address:#x}: {usable:?}"))?;
        }
        Ok(())
    }
}

fn case(
    name: &str,
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
    .overtaken_by(Takers::take)
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

/// One dies who has grown the array, before it has freed what that had.
fn grows_and_dies(takers: &Takers) {
    let mut doomed = Doomed::new(|| slot(takers.pool), || takers.grow());
    doomed.go_on_until(|| takers.array.len() > ELEMENTS);
    doomed.die();
}

pub fn cases(suite: &mut Suite) {
    let nothing = |_: &Takers| ();
    suite.run(case("an array grows", nothing, |takers| takers.grow()));
    suite.run(case("an array goes", nothing, |takers| {
        takers.pool.remove_name("gone").expect("the name");
    }));
    suite.run(case("a buffer is cut", nothing, |takers| {
        let end = takers.buffer.end();
        takers.buffer.truncate_front(end).expect("bytes");
    }));
    for (name, dies) in [
        (
            "one is recovered who grew an array",
            grows_and_dies as fn(&_),
        ),
        ("one is recovered who destroyed a buffer", destroys_and_dies),
    ] {
        suite.run(case(name, dies, |takers| testing::settle(takers.pool)));
    }
}
