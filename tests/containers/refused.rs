//! Memory is refused at each place in turn where an operation asks for some: the result is an error,
//! nothing is lost, and the same operation succeeds when there is memory again.

use std::ptr::NonNull;

use shmkit::{
    AllocError, Array, Buffer, CreateError, Gc, HashMap, Heap, HeapError, Link, Mailbox, Matrix,
    MultiMap, Pool, Queue, Shared, SharedCell, ShmSafe, Trace, testing,
};

use super::common::{TestPool, assert_sound, free, layout};

/// Who refuses.
#[derive(Clone, Copy, Debug)]
enum Refuser {
    /// The allocator, any block.
    Blocks,
    /// The kernel, any memory that a pool commits.
    Commits,
}

impl Refuser {
    fn after(self, granted: Option<usize>) {
        match self {
            Refuser::Blocks => testing::refuse_blocks(granted),
            Refuser::Commits => testing::refuse_commits(granted),
        }
    }

    /// In a guarded pool each block is asked for at one place.
    fn pool(self) -> TestPool {
        TestPool::with(|builder| match self {
            Refuser::Blocks => builder.max_size(64 << 20).guard(true),
            Refuser::Commits => builder.initial_size(16 << 10).max_size(64 << 20),
        })
    }
}

/// Takes all that the pool has, slices and blocks of each size, so that what is allocated next takes
/// growth.
fn exhaust(pool: Pool) -> Vec<NonNull<u8>> {
    let classes = (0..8).flat_map(|doubling| (5..9).map(move |fifth| (fifth * 32) << doubling));
    let mut sizes: Vec<usize> = (1..9).map(|n| n * 16).chain(classes).collect();
    sizes.extend([40_000, 1 << 20]);
    testing::refuse_commits(Some(0));
    let mut taken = Vec::new();
    for size in sizes.into_iter().rev() {
        let blocks = std::iter::from_fn(|| pool.allocate(layout(size, 16)).ok());
        taken.extend(blocks.map(NonNull::cast::<u8>));
    }
    testing::refuse_commits(None);
    taken
}

/// Bytes allocated, once what was retired is freed.
fn allocated(pool: Pool) -> usize {
    for _ in 0..16 {
        pool.recover();
        if pool.stats().retired.blocks == 0 {
            break;
        }
    }
    pool.stats().allocated
}

/// Refuses all but `n` requests of the operation, for each `n` until it succeeds; how many `n`.
fn in_turn<C: ShmSafe>(
    refuser: Refuser,
    make: impl Fn() -> C,
    operation: impl Fn(Pool, &Shared<C>) -> bool,
) -> usize {
    for n in 0..1000 {
        let pool = refuser.pool();
        let create = || pool.create(make()).unwrap_or_else(|_| panic!("no memory"));
        if matches!(refuser, Refuser::Blocks) {
            // What there is once a type: not counted.
            assert!(operation(*pool, &create()));
        }
        let other = pool.create(0_u64).unwrap();
        let before = allocated(*pool);
        let container = create();
        let taken = match refuser {
            Refuser::Blocks => Vec::new(),
            Refuser::Commits => exhaust(*pool),
        };
        refuser.after(Some(n));
        let done = operation(*pool, &container);
        refuser.after(None);
        assert_sound(*pool);
        assert!(done || operation(*pool, &container), "{refuser:?} {n}");
        assert_sound(*pool);
        taken.into_iter().for_each(|block| free(*pool, block));
        drop(container);
        assert_eq!(allocated(*pool), before, "{refuser:?} {n}");
        drop(other);
        if done {
            return n;
        }
    }
    panic!("it never succeeds");
}

/// The same by both; the fewest places that there must be.
#[track_caller]
fn by_both<C: ShmSafe>(
    places: usize,
    make: impl Fn() -> C,
    operation: impl Fn(Pool, &Shared<C>) -> bool,
) {
    let blocks = in_turn(Refuser::Blocks, &make, &operation);
    assert!(blocks >= places, "{blocks} blocks asked for");
    let commits = in_turn(Refuser::Commits, &make, &operation);
    assert!(commits >= 1, "no growth was asked for");
    println!("  {blocks} blocks, {commits} commits");
}

#[derive(ShmSafe)]
struct Node {
    next: Link<Node>,
}

fn node() -> Node {
    Node { next: Link::null() }
}

pub fn objects_refused() {
    by_both(1, || 0_u64, |pool, _| pool.create([7_u64; 4000]).is_ok());
    by_both(1, node, |pool, this| {
        pool.create(node())
            .is_ok_and(|next| this.next.set(Some(&next)).is_ok())
    });
    by_both(
        1,
        || 0_u64,
        |pool, _| {
            let named = pool.named_or_create("it", || 7_u64);
            named.is_ok_and(|_| pool.remove_name("it").is_ok())
        },
    );
}

pub fn arrays_refused() {
    by_both(1, Array::<u64>::new, |_, array| {
        array.grow(array.len() + 1000, 1).is_ok()
    });
    by_both(
        1,
        || 0_u64,
        |pool, _| Array::filled_in(pool, 100_000, 1_u64).is_ok(),
    );
}

pub fn cells_refused() {
    by_both(1, SharedCell::<[u64; 50]>::new, |_, cell| {
        (0..3).all(|n| cell.set([n; 50]).is_ok())
    });
}

pub fn maps_refused() {
    by_both(64, HashMap::<u64, [u64; 20]>::new, |_, map| {
        (0..64).all(|key| map.insert(&key, [key; 20]).is_ok())
    });
    by_both(64, HashMap::<u64, [u8]>::new, |_, map| {
        (0..64).all(|key| map.insert_bytes(&key, &vec![7; key as usize * 40]).is_ok())
    });
    by_both(20, MultiMap::<str, u64>::new, |_, map| {
        (0..20).all(|n| map.push(&format!("{}", n % 5), n).is_ok())
    });
}

pub fn queues_refused() {
    by_both(
        1,
        || Queue::<[u64; 8]>::bounded(100),
        |_, queue| queue.push([1; 8]).is_ok(),
    );
    by_both(2, Queue::<[u64; 8]>::unbounded, |_, queue| {
        (0..300).all(|n| queue.push([n; 8]).is_ok())
    });
    by_both(
        1,
        || Mailbox::<u64>::new(4),
        |_, mailbox| {
            let receiver = mailbox.receiver();
            let sent = mailbox.try_send(1).is_ok();
            drop(receiver);
            sent
        },
    );
}

pub fn buffers_refused() {
    for len in [100, 20_000, 300_000] {
        by_both(1, Buffer::new, move |_, buffer| {
            (0..3).all(|_| buffer.append(&vec![7; len]).is_ok())
        });
    }
}

pub fn matrices_refused() {
    by_both(1, Matrix::<u64>::new, |_, matrix| {
        matrix.fill(30, 40, 1).is_ok()
    });
    by_both(2, Matrix::<u64>::new, |_, matrix| {
        let filled = matrix.dims() != (0, 0) || matrix.fill(10, 40, 1).is_ok();
        filled && matrix.grow(2000, 2).is_ok()
    });
    by_both(
        1,
        || 0_u64,
        |pool, _| Matrix::filled_in(pool, 300, 300, 1_u64).is_ok(),
    );
}

#[derive(Clone, Copy, ShmSafe, Trace)]
struct Item {
    values: [u64; 10],
    next: Option<Gc<Item>>,
}

pub fn heaps_refused() {
    by_both(
        20,
        || Heap::<Option<Gc<Item>>>::new(None),
        |_, heap| {
            let grown = heap.try_modify(|tx| {
                for value in 0..20 {
                    let next = *tx.root();
                    let values = [value; 10];
                    *tx.root_mut()? = Some(tx.alloc(Item { values, next })?);
                }
                tx.alloc_str(&"x".repeat(5000))?;
                Ok::<_, HeapError>(())
            });
            grown.is_ok() && heap.collect().is_ok()
        },
    );
}

/// A thread that takes part first, where the table of slots is to grow.
pub fn slots_refused() {
    let allocates = |pool: Pool| {
        std::thread::scope(|s| {
            let thread = s.spawn(|| {
                let block = pool.allocate(layout(8, 8))?;
                free(pool, block.cast());
                Ok(())
            });
            thread.join().unwrap()
        })
    };
    let pool = Refuser::Commits.pool();
    free(*pool, pool.allocate(layout(8, 8)).unwrap().cast());
    Refuser::Commits.after(Some(0));
    let refused = allocates(*pool);
    Refuser::Commits.after(None);
    assert!(matches!(refused, Err(AllocError::NoSlot(_))), "{refused:?}");
    assert_eq!(pool.stats().threads, 1);
    allocates(*pool).unwrap();
    assert_sound(*pool);
    let places = in_turn(
        Refuser::Commits,
        || 0_u64,
        |pool, _| allocates(pool).is_ok(),
    );
    assert!(places >= 2, "{places}");
}

/// Pools themselves. Of those that are refused nothing stays: a process could have 48 mapped.
pub fn pools_refused() {
    let make = |granted| {
        Refuser::Commits.after(Some(granted));
        let made = Pool::builder().create();
        Refuser::Commits.after(None);
        made
    };
    for granted in 0.. {
        match make(granted) {
            Ok(pool) => {
                assert!(granted >= 4, "{granted} commits");
                assert_sound(*TestPool::of(pool));
                break;
            }
            Err(error) => assert!(matches!(error, CreateError::NoMemory(_)), "{error:?}"),
        }
    }
    for _ in 0..50 {
        make(1).expect_err("no memory");
    }
    drop(TestPool::new());
}
