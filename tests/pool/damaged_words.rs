//! Single words with values that no use of a container stores, but that a stray write may.

use std::time::Duration;

use shmkit::sync::ReentrantMutex;
use shmkit::{
    AppendError, Array, Buffer, FreeError, Gc, Heap, HeapError, Queue, ResizeError, RwLock,
    Semaphore, Tx, inspect, testing,
};

use super::common::{
    TestPool, allocate, assert_sound, fill, fork, free, leave, reap, try_free, verify,
};

/// Stores a word of something that nobody uses meanwhile.
pub fn damage(address: usize, word: u64) {
    // SAFETY: a word of a container, each of which is atomic, in a pool of this process alone.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write(word) };
}

pub fn word(address: usize) -> u64 {
    // SAFETY: as in `damage`.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read() }
}

/// Claims of the living, of no element, in all places.
pub fn a_table_full_of_empty_claims() {
    /// Where the table begins: how many of its places are used, and three words for each.
    const HIGH: usize = 24;
    const PLACES: usize = 62;
    let pool = TestPool::new();
    let array = Array::filled_in(*pool, 10, 1_u64).unwrap();
    let table = std::ptr::from_ref(&*array).expose_provenance() + HIGH;
    let claim = array.claim(..).unwrap();
    let held = word(table + 24);
    assert_eq!(word(table), 1);
    drop(claim);
    damage(table, PLACES as u64);
    for place in 0..PLACES {
        damage(table + 8 + 24 * place, 0);
        damage(table + 16 + 24 * place, 0);
        damage(table + 24 + 24 * place, held);
    }
    assert_eq!(array.grow(20, 1), Err(ResizeError::TooManyClaims));
    assert_eq!(array.get(9), Ok(1));
}

/// A chunk that is said to be the last of as many as can be told apart.
pub fn the_last_chunk_that_can_be_counted() {
    /// Where a chunk has its number.
    const INDEX: usize = 32;
    let pool = TestPool::new();
    let buffer = pool.create(Buffer::new()).unwrap();
    buffer.append(b"bytes").unwrap();
    let chunk = word(std::ptr::from_ref(&*buffer).expose_provenance()) as usize;
    assert_eq!(word(chunk + INDEX), 0);
    damage(chunk + INDEX, u64::MAX);
    assert_eq!(buffer.append(&[1; 10_000]), Err(AppendError::Closed));
    assert_eq!(buffer.view(0..5).unwrap().to_vec(), b"bytes");
    assert!(buffer.truncate_front(5).is_ok() && buffer.close().is_ok());
}

/// The tag of a run that is kept, and the note that a slot has of it, say other numbers.
pub fn kept_runs_of_any_length() {
    /// Where slots and the tags of slices are, and what a kept run of six slices is there.
    const SLOTS: usize = 16 << 20;
    const TAGS: usize = 10 << 30;
    const KEPT: u64 = 7;
    const SIX: u64 = 6;
    const SIZE: usize = 6 << 14;
    /// Bytes of a slot, and in a note the first slice is times that.
    const SLOT: usize = 16 << 10;
    const COUNTS: u64 = 256;
    let lengths = [0, 1, 5, 7, 12, 1 << 20, 1 << 40, u64::MAX >> 4];
    let slices = [63, 1 << 20, 1 << 26, u64::MAX / COUNTS];
    let notes = |slice: u64| -> Vec<u64> {
        let of = |slice: u64, count: u64| slice * COUNTS + count;
        let counts = [0, 1, 5, 7, 255].map(|count| of(slice, count));
        let places = slices.map(|slice| [SIX, 7].map(|count| of(slice, count)));
        [&counts, places.as_flattened()].concat()
    };
    let pool = TestPool::with(|b| b.initial_size(1 << 20).max_size(1 << 20));
    let try_one = |damaged: &dyn Fn(usize, usize)| {
        // It is kept only until memory ages.
        let kept = (0..10).find_map(|_| {
            pool.purge().unwrap();
            let (run, behind) = (allocate(*pool, SIZE), allocate(*pool, SIZE));
            fill(behind, SIZE);
            free(*pool, run);
            let slices = || (0..64).map(|slice| pool.base() + TAGS + 8 * slice);
            let tag = slices().find(|&tag| word(tag) == KEPT | SIX << 4);
            if tag.is_none() {
                free(*pool, behind);
            }
            tag.map(|tag| (run, behind, tag))
        });
        let (run, behind, tag) = kept.unwrap();
        let noted = ((tag - pool.base() - TAGS) / 8) as u64 * COUNTS + SIX;
        let slot = (pool.base() + SLOTS + SLOT..).step_by(8).take(SLOT / 8);
        let note = { slot }.find(|&at| word(at) == noted).unwrap();
        damaged(tag, note);
        assert_eq!(try_free(*pool, run), Err(FreeError::NotAllocated));
        let _ = (pool.stats(), pool.check(), shmkit::inspect::map(*pool));
        // Taken, if it can be, and what is too much is released.
        let more: Vec<_> = [6, 3, 3, 3, 3, 3, 3, 3, 3, 3]
            .map(|slices| allocate(*pool, slices << 14))
            .into();
        more.into_iter().for_each(|block| free(*pool, block));
        pool.purge().unwrap();
        // It stays somebody's.
        verify(behind);
        free(*pool, behind);
        // All that were really its tails are free again.
        assert_sound(*pool);
        assert_eq!(pool.stats().allocated, 0);
        free(*pool, allocate(*pool, 50 << 14));
    };
    for length in lengths {
        try_one(&|tag, _| damage(tag, KEPT | length << 4));
    }
    for number in 0..notes(0).len() {
        try_one(&|tag, note| {
            let slice = ((tag - pool.base() - TAGS) / 8) as u64;
            damage(note, notes(slice)[number]);
        });
    }
}

/// Where the header says whether runs are kept.
const ANY_KEPT: usize = 240;

/// That word says that none are, once a death is recovered from.
pub fn kept_runs_are_told_of_after_a_death() {
    let pool = TestPool::with(|b| b.initial_size(1 << 20).max_size(1 << 20));
    let told = pool.base() + ANY_KEPT;
    let tells = || {
        let Some(child) = fork() else {
            free(*pool, allocate(*pool, 60 << 14));
            let told_of = testing::slices(*pool).contains('k') && word(told) == 1;
            // As who dies having cleared it, before the look.
            damage(told, 0);
            leave(told_of);
        };
        let told_of = reap(child) == 0;
        pool.recover();
        // It is kept only until memory ages.
        told_of && testing::slices(*pool).contains('k') && word(told) == 1
    };
    assert!((0..10).any(|_| tells()));
    assert_sound(*pool);
}

/// That word says that none are, where a pool that may grow has to use them as the beginning of what it grows by.
pub fn kept_runs_at_the_end_are_grown() {
    let pool = TestPool::with(|b| b.initial_size(64 << 14).max_size(100 << 14));
    let told = pool.base() + ANY_KEPT;
    let keeps = || {
        let [below, end] = [40, 24].map(|slices| allocate(*pool, slices << 14));
        free(*pool, end);
        let keeps = testing::slices(*pool).contains('k');
        if !keeps {
            free(*pool, below);
        }
        keeps.then_some(below)
    };
    let below = (0..10).find_map(|_| keeps()).unwrap();
    damage(told, 0);
    let grown = allocate(*pool, 45 << 14);
    assert_eq!(pool.stats().allocated, 85 << 14);
    free(*pool, grown);
    free(*pool, below);
    assert_sound(*pool);
}

/// That word says that none are.
pub fn kept_runs_that_are_not_told_of() {
    let pool = TestPool::with(|b| b.initial_size(1 << 20).max_size(1 << 20));
    let told = pool.base() + ANY_KEPT;
    assert_eq!(word(told), 0);
    // It is kept only until memory ages.
    let keeps = || {
        free(*pool, allocate(*pool, 60 << 14));
        assert_eq!(word(told), 1);
        testing::slices(*pool).contains('k')
    };
    assert!((0..10).any(|_| keeps()));
    damage(told, 0);
    // The pool is full but for what is kept.
    let whole = allocate(*pool, 1 << 20);
    free(*pool, whole);
    assert_sound(*pool);
}

/// A buffer names a block that is no chunk.
pub fn a_chunk_in_a_small_block() {
    let pool = TestPool::new();
    let buffer = pool.create(Buffer::new()).unwrap();
    let block = allocate(*pool, 16).expose_provenance().get();
    damage(block, 0);
    damage(block + 8, 0);
    damage(
        std::ptr::from_ref(&*buffer).expose_provenance(),
        block as u64,
    );
    assert!(!pool.check_quiescent().is_ok());
}

/// A ring is its own next ring, and has as many cells as twice as many.
pub fn a_ring_that_leads_to_itself() {
    /// Where a ring has the address of the next one.
    const NEXT: usize = 16;
    let pool = TestPool::new();
    for cells in [0, u64::MAX] {
        let Some(child) = fork() else {
            let queue = pool.create(Queue::bounded(4)).unwrap();
            queue.push(1_u64).unwrap();
            let ring = word(std::ptr::from_ref(&*queue).expose_provenance()) as usize;
            assert_eq!(word(ring), 4);
            damage(ring, cells);
            damage(ring + NEXT, ring as u64);
            // SAFETY: ends this process if it frees the ring for ever.
            unsafe { libc::alarm(20) };
            drop(queue);
            leave(pool.check().objects == 0);
        };
        assert_eq!(reap(child), 0);
    }
    pool.recover();
    assert_sound(*pool);
}

/// A span's record says that its blocks are of any size: a report reads none beyond the pool.
pub fn blocks_larger_than_the_pool() {
    /// Where the data is, and the records of spans; bytes of a slice and of a record.
    const DATA: usize = 40 << 30;
    const SPANS: usize = 12 << 30;
    const SLICE: usize = 16 << 10;
    const RECORD: usize = 320;
    let pool = TestPool::with(|b| b.initial_size(1 << 20).max_size(1 << 20));
    let object = pool.create([7_u64; 8]).unwrap();
    let address = std::ptr::from_ref(&*object).expose_provenance();
    let slice = (address - pool.base() - DATA) / SLICE;
    // The size, and the number of blocks.
    let sizes = pool.base() + SPANS + slice * RECORD + 8;
    let before = word(sizes);
    assert_eq!(before as u32, 64);
    for size in [u32::MAX, 1 << 20, 3, 0] {
        damage(sizes, before & !u64::from(u32::MAX) | u64::from(size));
        let Some(child) = fork() else {
            leave(inspect::leaks(*pool).is_empty());
        };
        assert_eq!(reap(child), 0);
    }
    damage(sizes, before);
    // The same, where the class is damaged: the largest there is.
    let class = sizes + 8;
    let before = word(class);
    damage(class, before | u64::from(u32::MAX));
    let Some(child) = fork() else {
        let _ = inspect::leaks(*pool);
        leave(true);
    };
    assert_eq!(reap(child), 0);
    damage(class, before);
    drop(object);
    assert_sound(*pool);
}

/// A chunk of a heap's log says that it has room beyond its block.
pub fn a_log_longer_than_its_block() {
    /// Where the heap names the chunk behind its own, and where that has its length.
    const NEXT: usize = 9 * 8;
    const SIZE: usize = 32;
    let pool = TestPool::new();
    let heap = pool.create(Heap::<Option<Gc<[u64]>>>::new(None)).unwrap();
    let change = |len: usize, value: u64| {
        heap.try_modify(|tx| {
            let list = tx.root().ok_or(HeapError::NoObject)?;
            tx.slice_mut(list, ..len)?.fill(value);
            Ok::<_, HeapError>(())
        })
    };
    let make = |tx: &mut Tx<'_, _>| {
        *tx.root_mut()? = Some(tx.alloc_slice(&[1_u64; 3000])?);
        Ok::<_, HeapError>(())
    };
    heap.try_modify(make).unwrap();
    change(300, 2).unwrap();
    let chunk = word(std::ptr::from_ref(&*heap).expose_provenance() + NEXT) as usize;
    assert_eq!(word(chunk + SIZE), 4096 - 40);
    let others: Vec<_> = (0..32).map(|_| allocate(*pool, 4096)).collect();
    others.iter().for_each(|block| fill(*block, 4096));
    for size in [4096 - 39, 1 << 16, u64::MAX] {
        damage(chunk + SIZE, size);
        assert!(change(3000, 3).is_err());
        others.iter().for_each(|block| verify(*block));
    }
    damage(chunk + SIZE, 4096 - 40);
    // And that it comes after itself.
    damage(chunk, chunk as u64);
    assert_eq!(heap.stats().unwrap().objects, 1);
    damage(chunk, 0);
    change(3000, 3).unwrap();
    others.into_iter().for_each(|block| free(*pool, block));
    assert_sound(*pool);
}

/// There is no room behind it, and never will be.
pub fn the_last_position_there_is() {
    use std::io::Write;
    /// Where a chunk has the position of its first byte.
    const START: usize = 16;
    let pool = TestPool::new();
    let buffer = pool.create(Buffer::new()).unwrap();
    buffer.append(b"bytes").unwrap();
    let chunk = word(std::ptr::from_ref(&*buffer).expose_provenance()) as usize;
    damage(chunk + START, u64::MAX - 7);
    assert_eq!(buffer.append(b"12345"), Err(AppendError::Closed));
    assert!((&*buffer).write(b"12345").is_err());
}

/// The first word of a slot, of those that a test damages, that is `value`.
fn find(pool: &TestPool, slot: usize, value: u64) -> usize {
    const SLOTS: usize = 16 << 20;
    const SLOT: usize = 16 << 10;
    let slot = pool.base() + SLOTS + slot * SLOT;
    let mut words = (slot..slot + SLOT).step_by(8);
    words.find(|&at| word(at) == value).unwrap()
}

/// Recovery gives the permits of the dead back to semaphores alone.
pub fn a_permit_of_something_else() {
    /// Where the header says how many slices there are.
    const SLICES: usize = 168;
    let pool = TestPool::new();
    let semaphore = pool.create(Semaphore::new(2)).unwrap();
    let at = std::ptr::from_ref(&*semaphore).expose_provenance() as u64;
    let Some(child) = fork() else {
        std::mem::forget(semaphore.acquire().unwrap());
        leave(true);
    };
    assert_eq!(reap(child), 0);
    let slices = pool.base() + SLICES;
    let before = word(slices);
    assert_eq!(before << 14, pool.stats().total as u64);
    damage(find(&pool, 2, at), slices as u64);
    pool.recover();
    assert_eq!(word(slices), before);
}

/// A free lock says that a writer died, and its value is valid.
pub fn a_flag_that_no_writer_has_set() {
    const DIED: u64 = 4;
    let pool = TestPool::new();
    let lock = pool.create(RwLock::new(5_u64)).unwrap();
    let at = std::ptr::from_ref(&*lock).expose_provenance();
    damage(at, DIED);
    assert_eq!(*lock.try_read().unwrap(), 5);
    assert_eq!(word(at), 0);
    damage(at, DIED);
    *lock.write().unwrap() += 1;
    assert_eq!((*lock.read().unwrap(), word(at)), (6, 0));
}

/// A slot that is free lists a lock.
pub fn what_a_free_slot_reads_under() {
    let pool = TestPool::new();
    let lock = pool.create(RwLock::new(5_u64)).unwrap();
    let at = std::ptr::from_ref(&*lock).expose_provenance() as u64;
    let entry = std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let _guard = lock.read().unwrap();
            find(&pool, 2, at)
        });
        reader.join().unwrap()
    });
    damage(entry, at);
    std::thread::scope(|s| {
        s.spawn(|| assert!(lock.write_timeout(Duration::from_secs(60)).is_ok()));
    });
}

/// Its depth is the largest number.
pub fn a_lock_taken_as_often_as_can_be_counted() {
    let pool = TestPool::new();
    let lock = pool.create(ReentrantMutex::new(5_u64)).unwrap();
    let at = std::ptr::from_ref(&*lock).expose_provenance();
    let guard = lock.lock().unwrap();
    damage(at + 8, u64::MAX);
    assert!(lock.lock().is_ok());
    drop(guard);
}
