//! Blocks of the allocator. Each block is filled with bytes of its own, some words of which tell where it is, and is
//! listed in a table that lies in the first block.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::Shared;

use super::super::engine::{Case, Crash, Suite};
use super::super::in_pool::{self, ensure, sound};
use super::super::pool::{World, use_it, verify};
use super::super::sync::slot;
use super::Operation;

/// What is done to blocks.
#[derive(Clone, Copy, Debug)]
enum Do {
    Allocate(usize),
    /// The block of that number, which has so many bytes.
    Free(usize, usize),
    /// What has no use is given back to the system.
    Purge,
}

const ROWS: usize = 32;
/// Words of a block, from its first to its last, that are written to.
const WRITTEN: usize = 8;

fn table(world: &World) -> &[AtomicU64] {
    // SAFETY: a block of so many words, which is zeroed, and never freed.
    unsafe { std::slice::from_raw_parts(world.blocks[0].cast().as_ptr(), ROWS) }
}

/// The word of a block of so many bytes.
fn word(block: NonNull<u8>, size: usize, number: usize) -> *mut u64 {
    let words = size / size_of::<u64>() - 1;
    block
        .cast::<u64>()
        .as_ptr()
        .wrapping_add(words * number / (WRITTEN - 1))
}

/// Allocates one, writes to it, and notes it.
fn allocate(world: &mut World, size: usize) {
    world.allocate(size, 1);
    let block = *world.blocks.last().expect("a block");
    for number in (0..WRITTEN).rev() {
        let word = word(block, size, number);
        // SAFETY: within the block, which nobody else knows; aligned, as the block is.
        unsafe { word.write_volatile(if number == 0 { size } else { word.addr() } as u64) };
    }
    let free = table(world)
        .iter()
        .find(|row| row.load(Ordering::Relaxed) == 0);
    free.expect("a row")
        .store(block.addr().get() as u64, Ordering::Release);
}

/// An error unless the blocks of the table are what was written to them.
fn whole(world: &World) -> Result<(), String> {
    let noted = table(world).iter().map(|row| row.load(Ordering::Acquire));
    for address in noted.filter(|&address| address != 0) {
        let block = NonNull::new(address as *mut u8).ok_or("null")?;
        // SAFETY: the first word of a block that was noted, if that is still one; of the pool in any case.
        let size = unsafe { block.cast::<u64>().as_ptr().read_volatile() } as usize;
        let fits = world
            .pool
            .usable_size(block)
            .is_ok_and(|usable| usable >= size && size >= 64);
        ensure(fits, || {
            format!("{address:#x} is said to have {size} bytes")
        })?;
        for number in 1..WRITTEN {
            let word = word(block, size, number);
            // SAFETY: within the block.
            let found = unsafe { word.read_volatile() };
            ensure(found == word.addr() as u64, || {
                format!("{found:#x} at {word:p}")
            })?;
        }
    }
    Ok(())
}

impl Operation for Do {
    type World = World;
    /// Bytes that are allocated.
    type Model = usize;

    fn perform(self, world: &mut World) -> u64 {
        match self {
            Do::Allocate(size) => allocate(world, size),
            Do::Free(number, _) => {
                let block = world.blocks[1 + number];
                let address = block.addr().get() as u64;
                let row = table(world)
                    .iter()
                    .find(|row| row.load(Ordering::Relaxed) == address);
                row.expect("noted").store(0, Ordering::Release);
                // SAFETY: allocated from this pool, freed by one side of one case, used by nobody.
                unsafe { world.pool.deallocate(block) }.expect("a block to free");
            }
            Do::Purge => drop(world.pool.purge().expect("a slot")),
        }
        0
    }

    fn model(self, bytes: &mut usize) -> u64 {
        match self {
            Do::Allocate(size) => *bytes += size,
            Do::Free(_, size) => *bytes -= size,
            Do::Purge => {}
        }
        0
    }

    fn reads(self) -> bool {
        false
    }

    fn found(world: &mut World, _: &Crash) -> Result<usize, String> {
        sound(world.pool)?;
        whole(world)?;
        Ok(world.pool.stats().allocated - world.before)
    }

    fn ends(world: &mut World) -> Result<(), String> {
        use_it(world.pool)?;
        whole(world)
    }
}

/// Bytes of a run of slices, and of one that has a span's worth of small blocks in it.
const RUN: usize = 3 << 14;
const SMALL: usize = 2048;

/// An object is a run, of which another has the slices as soon as they are free.
fn object_by_run() -> Case<World> {
    type Run = [u64; RUN / 8];
    thread_local!(static OBJECT: Cell<Option<Shared<Run>>> = const { Cell::new(None) });
    in_pool::case("overtaken/block/an object by run", || {
        World::new().settled()
    })
    .attach(|world| OBJECT.set(Some(world.pool.create([0; RUN / 8]).expect("an object"))))
    .operation(|_| drop(OBJECT.take()))
    .overtaken_by(|world| {
        world.pool.purge().expect("a slot");
        world.allocate(RUN, 1);
    })
    .verify(|world, crash| {
        let runs = isize::from(crash.overtaken.is_some());
        verify(world, crash, &|more, _| more == runs * RUN as isize)
    })
    .without_second_order()
    .without_real_kills()
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    suite.run(object_by_run());
    let mut case = |name: &str, (size, count): (usize, usize), victim: &[Do], overtaker: &[Do]| {
        let setup = move || {
            let mut world = World::new();
            world.allocate(ROWS * size_of::<u64>(), 1);
            // SAFETY: just allocated.
            unsafe { world.blocks[0].write_bytes(0, ROWS * size_of::<u64>()) };
            let mut world = world.settled();
            (0..count).for_each(|_| allocate(&mut world, size));
            world
        };
        let case = super::case(
            format!("block/{name}"),
            setup,
            move |_: &World| size * count,
            [victim, overtaker],
        );
        suite.run(case.attach(|world| slot(world.pool)));
    };
    case(
        "allocate by allocate",
        (SMALL, 0),
        &[Allocate(SMALL)],
        &[Allocate(SMALL)],
    );
    case("run by run", (RUN, 0), &[Allocate(RUN)], &[Allocate(RUN)]);
    // The pool gets larger.
    case(
        "growth by growth",
        (SMALL, 0),
        &[Allocate(3 << 20)],
        &[Allocate(2 << 20)],
    );
    case(
        "free by free",
        (SMALL, 4),
        &[Free(0, SMALL)],
        &[Free(1, SMALL)],
    );
    case(
        "free all by free",
        (SMALL, 2),
        &[Free(0, SMALL)],
        &[Free(1, SMALL), Allocate(SMALL)],
    );
    case(
        "free by allocate",
        (SMALL, 8),
        &[Free(0, SMALL)],
        &[Allocate(SMALL), Free(1, SMALL)],
    );
    case(
        "allocate by free",
        (SMALL, 8),
        &[Allocate(SMALL)],
        &[Free(1, SMALL), Free(2, SMALL)],
    );
    case(
        "free run by free run",
        (RUN, 3),
        &[Free(0, RUN)],
        &[Free(1, RUN), Free(2, RUN)],
    );
    case(
        "free run by run",
        (RUN, 3),
        &[Free(1, RUN)],
        &[Allocate(RUN), Free(0, RUN)],
    );
    case(
        "run by purge",
        (RUN, 2),
        &[Free(0, RUN), Allocate(RUN)],
        &[Free(1, RUN), Purge],
    );
    case(
        "purge by runs",
        (RUN, 3),
        &[Free(0, RUN), Purge],
        &[Free(1, RUN), Allocate(RUN), Allocate(2 * RUN)],
    );
}
