//! What is released while a thread views it is freed by the thread that released it, or after
//! that by any thread that ends a view: nobody has to ask for it.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

use shmkit::process::scope;
use shmkit::{Link, Pool, Semaphore, Shared, ShmSafe, View};

use super::common::{TestPool, assert_sound, fork, leave, reap};

#[derive(ShmSafe)]
struct Board {
    seen: Link<u64>,
    replaced: Link<u64>,
    ready: Semaphore,
    go_on: Semaphore,
    kill: Semaphore,
}

/// More than what one end of a look makes of a walk over the table, and a parent of its child's
/// death.
const MANY: u64 = 6000;

fn board(pool: Pool) -> Shared<Board> {
    let board = pool
        .create(Board {
            seen: Link::null(),
            replaced: Link::null(),
            ready: Semaphore::new(0),
            go_on: Semaphore::new(0),
            kill: Semaphore::new(0),
        })
        .unwrap();
    let first = pool.create(0).unwrap();
    board.seen.set(Some(&first)).unwrap();
    board
}

/// Lets go of many objects, all of which somebody may look at.
fn replace(pool: Pool, board: &Board) {
    for value in 0..MANY {
        let new = pool.create(value).unwrap();
        board.replaced.set(Some(&new)).unwrap();
    }
    board.replaced.set(None).unwrap();
}

/// Looks until no more is allocated than that, or so many times.
fn look_until(pool: Pool, board: &Board, allocated: usize) {
    /// Pieces of a walk over the table, and of the list: a few thousand would do.
    const LOOKS: usize = 100_000;
    let found = (0..LOOKS).any(|_| {
        drop(board.seen.view().unwrap());
        pool.stats().allocated == allocated
    });
    assert!(
        found,
        "{} bytes are left",
        pool.stats().allocated - allocated
    );
}

fn killed_or_leaving(end: fn()) {
    let pool = TestPool::new();
    let board = board(*pool);
    let before = pool.stats().allocated;
    scope(|s| {
        let (pool, board) = (*pool, &board);
        let child = s.spawn(move || {
            board.go_on.acquire().unwrap().forget();
            replace(pool, board);
            end();
        });
        let view = board.seen.view().unwrap();
        board.go_on.add_permits(1).unwrap();
        let _ = child.unwrap().join();
        let held_up = pool.stats().allocated - before;
        assert!(held_up >= MANY as usize * 8, "{held_up} bytes are held up");
        assert_eq!(*view, 0);
    });
    look_until(*pool, &board, before);
    assert_sound(*pool);
}

pub fn the_dead_postponed_it() {
    // SAFETY: ends this process.
    killed_or_leaving(|| unsafe {
        libc::raise(libc::SIGKILL);
    });
}

pub fn who_has_left_postponed_it() {
    killed_or_leaving(|| {});
}

/// Postpones, once somebody looks, and then does nothing until it is told to go on.
fn keep(pool: Pool, board: &Board) {
    board.go_on.acquire().unwrap().forget();
    replace(pool, board);
    board.ready.add_permits(1).unwrap();
    board.go_on.acquire().unwrap().forget();
}

/// The look for which a keeper waits, once it has postponed.
fn look_while_it_keeps(board: &Board) -> View<'_, u64> {
    let view = board.seen.view().unwrap();
    board.go_on.add_permits(1).unwrap();
    board.ready.acquire().unwrap().forget();
    view
}

/// Nobody else would find what it alone knew of: its process holds nothing, and does not die.
pub fn who_unmaps_the_pool_postponed_it() {
    let pool = TestPool::new();
    pool.set_name("board", &board(*pool)).unwrap();
    let before = pool.stats().allocated;
    let open = || pool.named::<Board>("board").unwrap();
    let [(looked, looks), (gone, goes)] = [(); 2].map(|()| std::io::pipe().unwrap());
    let tell = |mut to: &PipeWriter| to.write_all(b"!").unwrap();
    let listen = |mut to: &PipeReader| to.read_exact(&mut [0]).unwrap();
    let Some(child) = fork() else {
        let looked = catch_unwind(AssertUnwindSafe(|| {
            let board = open();
            let view = board.seen.view().unwrap();
            tell(&looks);
            listen(&gone);
            drop(view);
            look_until(*pool, &board, before);
        }));
        leave(looked.is_ok());
    };
    listen(&looked);
    replace(*pool, &open());
    let held_up = pool.stats().allocated - before;
    assert!(held_up >= MANY as usize * 8, "{held_up} bytes are held up");
    drop(pool);
    tell(&goes);
    assert_eq!(reap(child), 0);
}

pub fn the_living_keep_what_they_postponed() {
    let pool = TestPool::new();
    let board = board(*pool);
    let before = pool.stats().allocated;
    scope(|s| {
        let (pool, board) = (*pool, &board);
        let keeper = s.spawn(move || {
            keep(pool, board);
            look_until(pool, board, before);
        });
        let other = s.spawn(|| {
            board.kill.acquire().unwrap().forget();
            // SAFETY: ends this process.
            unsafe { libc::raise(libc::SIGKILL) };
        });
        let view = look_while_it_keeps(board);
        // The death asks for a walk, which leaves to the keeper what is its own.
        board.kill.add_permits(1).unwrap();
        other.unwrap().join().unwrap_err();
        for _ in 0..MANY {
            drop(board.seen.view().unwrap());
        }
        let held_up = pool.stats().allocated - before;
        assert!(held_up >= MANY as usize * 8, "{held_up} bytes are held up");
        drop(view);
        board.go_on.add_permits(1).unwrap();
        keeper.unwrap().join().unwrap();
    });
    assert_eq!(pool.stats().allocated, before);
    assert_sound(*pool);
}

pub fn nobody_waits_for_an_idle_keeper() {
    let pool = TestPool::new();
    let board = board(*pool);
    let before = pool.stats().allocated;
    scope(|s| {
        let (pool, board) = (*pool, &board);
        let keeper = s.spawn(move || keep(pool, board));
        let view = look_while_it_keeps(board);
        drop(view);
        // Somebody looks again, so that nothing that is retired only now can go.
        let later = board.seen.view().unwrap();
        pool.recover();
        assert_eq!(pool.stats().allocated, before, "the keeper sleeps");
        drop(later);
        board.go_on.add_permits(1).unwrap();
        keeper.unwrap().join().unwrap();
    });
    assert_sound(*pool);
}

pub fn a_full_pool_is_tried_again() {
    let pool = TestPool::with(|options| options.max_size(4 << 20));
    let board = board(*pool);
    let view = board.seen.view().unwrap();
    // All of it stays as long as somebody looks.
    while let Ok(new) = pool.create(0) {
        board.replaced.set(Some(&new)).unwrap();
    }
    assert!(pool.create([0_u8; 1 << 20]).is_err());
    // The end of the look frees some; whoever needs it, all.
    drop(view);
    drop(pool.create([0_u8; 1 << 20]).unwrap());
    board.replaced.set(None).unwrap();
    assert_sound(*pool);
}
