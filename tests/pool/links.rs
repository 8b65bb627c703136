//! Objects reached from within the pool, and collections of other crates.

use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::scope;
use shmkit::{Foreign, Link, LinkError, Mutex, Pool, PoolAlloc, Shared, ShmSafe};

use super::common::{TestPool, assert_sound};

#[derive(ShmSafe)]
struct Node {
    value: u64,
    next: Link<Node>,
}

fn node(pool: Pool, value: u64) -> Shared<Node> {
    let next = Link::null();
    pool.create(Node { value, next }).unwrap()
}

/// A list with the numbers `0..len`, by its first node.
fn list(pool: Pool, len: u64) -> Shared<Node> {
    let mut first = node(pool, len - 1);
    for value in (0..len - 1).rev() {
        let before = node(pool, value);
        before.next.set(Some(&first)).unwrap();
        first = before;
    }
    first
}

const LONG: u64 = 100_000;

pub fn a_long_list() {
    let pool = TestPool::new();
    let first = list(*pool, LONG);
    assert_sound(*pool);
    let mut sum = 0;
    let mut at = Some(first.clone());
    while let Some(node) = at {
        sum += node.value;
        at = node.next.get();
    }
    assert_eq!(sum, LONG * (LONG - 1) / 2);
    let shared = *pool;
    // On a stack that recursion would overflow.
    let small = std::thread::Builder::new().stack_size(64 << 10);
    small.spawn(move || drop(first)).unwrap().join().unwrap();
    assert_eq!(shared.stats().allocated, 0);
    assert_sound(shared);
}

pub fn a_long_list_of_a_dead_process() {
    let pool = TestPool::new();
    scope(|s| {
        let pool = *pool;
        let child = s.spawn(move || {
            let first = list(pool, LONG / 10);
            assert_eq!(first.value, 0);
            std::mem::forget(first);
            std::process::abort()
        });
        let joined: Result<(), _> = child.unwrap().join();
        joined.unwrap_err();
    });
    pool.recover();
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn a_cycle_stays() {
    let pool = TestPool::new();
    let (a, b) = (node(*pool, 1), node(*pool, 2));
    a.next.set(Some(&b)).unwrap();
    b.next.set(Some(&a)).unwrap();
    let handle = a.handle();
    drop((a, b));
    pool.recover();
    assert!(pool.stats().allocated > 0, "cycles leak, as documented");
    // Until somebody takes them apart.
    let a = handle.open().unwrap();
    assert_eq!(a.next.view().unwrap().value, 2);
    a.next.set(None).unwrap();
    drop(a);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
    // To oneself, and the same again.
    let own = node(*pool, 3);
    own.next.set(Some(&own)).unwrap();
    own.next.set(Some(&own)).unwrap();
    assert_eq!(own.next.get().unwrap().value, 3);
    own.next.set(None).unwrap();
    drop(own);
    assert_eq!(pool.stats().allocated, 0);
}

pub fn links_stay_in_their_pool() {
    let (pool, other) = (TestPool::new(), TestPool::new());
    let (ours, theirs) = (node(*pool, 1), node(*other, 2));
    assert_eq!(ours.next.set(Some(&theirs)), Err(LinkError::OtherPool));
    assert!(ours.next.is_null() && ours.next.get().is_none());
    let nowhere: Link<Node> = Link::null();
    assert_eq!(nowhere.set(Some(&ours)), Err(LinkError::NotInPool));
    assert_eq!(nowhere.set(None), Err(LinkError::NotInPool));
    assert!(nowhere.get().is_none() && nowhere.view().is_none());
    drop((ours, theirs));
    assert_eq!(pool.stats().allocated + other.stats().allocated, 0);
}

pub fn a_view_keeps_its_object() {
    let pool = TestPool::new();
    let first = node(*pool, 1);
    first.next.set(Some(&node(*pool, 2))).unwrap();
    let handle = first.next.get().unwrap().handle();
    let (fixed, block) = (pool.stats().allocated / 2, handle.open().unwrap());
    let address = std::ptr::from_ref(&*block).addr();
    drop(block);
    let view = first.next.view().unwrap();
    first.next.set(None).unwrap();
    assert_eq!(view.value, 2);
    assert_eq!(pool.stats().allocated, 2 * fixed, "not freed under a view");
    // Nor is its place used again.
    let others: Vec<_> = (0..100).map(|i| node(*pool, 100 + i)).collect();
    assert!(
        others
            .iter()
            .all(|o| std::ptr::from_ref(&**o).addr() != address)
    );
    assert_eq!(view.value, 2);
    drop((view, others));
    pool.recover();
    assert_eq!(pool.stats().allocated, fixed);
    assert!(handle.open().is_err());
    // A view of another process does as well.
    first.next.set(Some(&node(*pool, 3))).unwrap();
    let word = pool.create(AtomicU64::new(0)).unwrap();
    scope(|s| {
        let (first, word_ref) = (&first, &word);
        let child = s.spawn(move || {
            let view = first.next.view().unwrap();
            word_ref.store(1, Ordering::Release);
            while word_ref.load(Ordering::Acquire) != 2 {
                std::thread::yield_now();
            }
            assert_eq!(view.value, 3);
        });
        let child = child.unwrap();
        while word.load(Ordering::Acquire) != 1 {
            std::thread::yield_now();
        }
        first.next.set(None).unwrap();
        pool.recover();
        let others: Vec<_> = (0..100).map(|i| node(*pool, 200 + i)).collect();
        word.store(2, Ordering::Release);
        child.join().unwrap();
        drop(others);
    });
    drop((word, first));
    pool.recover();
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

#[derive(ShmSafe)]
struct Hub {
    links: [Link<Node>; 8],
    /// Values taken out of the links, and put in.
    sums: [AtomicU64; 2],
}

pub fn set_and_read_by_four_processes() {
    const ROUNDS: u64 = 20_000;
    let pool = TestPool::new();
    let hub = Hub {
        links: std::array::from_fn(|_| Link::null()),
        sums: [const { AtomicU64::new(0) }; 2],
    };
    let hub = pool.create(hub).unwrap();
    let fixed = pool.stats().allocated;
    scope(|s| {
        let (pool, hub) = (*pool, &hub);
        for me in 0..4_u64 {
            let child = s.spawn(move || {
                let mut made = 0;
                for i in 0..ROUNDS {
                    let link = &hub.links[((i * 7 + me * 3) % 8) as usize];
                    match (i + me) % 4 {
                        0 => {
                            let new = node(pool, i << 8 | me);
                            // Its own value again, behind it.
                            new.next.set(Some(&node(pool, i << 8 | me))).unwrap();
                            link.set(Some(&new)).unwrap();
                            made += 2;
                        }
                        1 => {
                            if let Some(found) = link.get() {
                                assert_eq!(found.next.get().unwrap().value, found.value);
                            }
                        }
                        2 => {
                            if let Some(found) = link.view() {
                                assert_eq!(found.next.view().unwrap().value, found.value);
                            }
                        }
                        _ => {
                            let other = &hub.links[(i % 8) as usize];
                            let found = other.get();
                            link.set(found.as_ref()).unwrap();
                        }
                    }
                }
                hub.sums[0].fetch_add(made, Ordering::Relaxed);
            });
            child.unwrap();
        }
    });
    assert_eq!(hub.sums[0].load(Ordering::Relaxed), 4 * 2 * ROUNDS / 4);
    pool.recover();
    assert_sound(*pool);
    // What is left is what the links lead to, with the node behind each.
    let mut linked: Vec<_> = hub.links.iter().filter_map(|l| l.get()).collect();
    linked.sort_by_key(|node| std::ptr::from_ref(&**node).addr());
    linked.dedup_by_key(|node| std::ptr::from_ref(&**node).addr());
    let objects = pool.check_quiescent().objects;
    assert_eq!(objects, 1 + 2 * linked.len());
    drop(linked);
    for link in &hub.links {
        link.set(None).unwrap();
    }
    pool.recover();
    assert_eq!(pool.stats().allocated, fixed);
    drop(hub);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

type Counts = hashbrown::HashMap<u64, u64, FixedHasher, PoolAlloc>;

/// A hasher without a state outside of the map.
#[derive(Clone, Copy, Default)]
struct FixedHasher;

impl std::hash::BuildHasher for FixedHasher {
    type Hasher = std::hash::DefaultHasher;

    fn build_hasher(&self) -> Self::Hasher {
        std::hash::DefaultHasher::new()
    }
}

pub fn a_hash_map_under_a_lock() {
    const KEYS: u64 = 500;
    const ROUNDS: u64 = 20_000;
    let pool = TestPool::new();
    // SAFETY: used in this program only, and shared within `Foreign` alone.
    let allocator = unsafe { pool.allocator() };
    let map = Counts::with_hasher_in(FixedHasher, allocator);
    // SAFETY: its memory is the pool's, its hasher has no state.
    let map = pool
        .create(Mutex::new(unsafe { Foreign::new(map) }))
        .unwrap();
    scope(|s| {
        let map = &map;
        for me in 0..4 {
            let child = s.spawn(move || {
                for i in 0..ROUNDS {
                    let mut map = map.lock().unwrap();
                    *map.entry((i * 31 + me) % KEYS).or_default() += 1;
                    if i % 100 == 99 {
                        // Grown and shrunk by whoever has it.
                        map.insert(KEYS + i, 0);
                        map.remove(&(KEYS + i));
                        map.shrink_to_fit();
                    }
                }
            });
            child.unwrap();
        }
    });
    let mut guard = map.lock().unwrap();
    assert_eq!(guard.len() as u64, KEYS);
    assert_eq!(guard.values().sum::<u64>(), 4 * ROUNDS);
    guard.clear();
    guard.shrink_to_fit();
    drop(guard);
    drop(map);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

type Words = allocator_api2::vec::Vec<u64, PoolAlloc>;

pub fn collections_of_other_crates() {
    let pool = TestPool::new();
    // SAFETY: used within this case, and by the child only to read.
    let allocator = unsafe { pool.allocator() };
    let mut words = Words::new_in(allocator);
    words.extend(0..100_000);
    assert!(words.as_ptr().addr() > pool.base());
    // SAFETY: made of memory of the pool, in this program.
    let words = pool.create(unsafe { Foreign::new(words) }).unwrap();
    scope(|s| {
        let words = &words;
        let child = s.spawn(move || words.iter().sum::<u64>());
        assert_eq!(child.unwrap().join().unwrap(), 100_000 * 99_999 / 2);
    });
    assert_sound(*pool);
    drop(words);
    // Its own drop never runs, as documented: the buffer stays.
    assert!(pool.stats().allocated >= 800_000);
}
