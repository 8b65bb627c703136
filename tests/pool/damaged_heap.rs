//! A heap whose words are to be changed, and the operations that are run on it then.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::scope;
use shmkit::{Gc, Heap, HeapError, Pool, ShmSafe, Trace};

use super::common::{TestPool, allocate, assert_sound, free};
use super::damaged_words::{damage, word};

#[derive(Clone, Copy, ShmSafe, Trace)]
struct Item {
    value: u64,
    next: Option<Gc<Item>>,
    list: Option<Gc<[u64]>>,
}

/// Puts a heap into the pool whose last transaction was cut off by a death. Where its own words, its
/// table, its log and a block of that begin in the file, and how many bytes of each are used.
pub fn fill(pool: Pool) -> [(u64, usize); 4] {
    let heap = pool.named_or_create("heap", || Heap::new(None)).unwrap();
    let change = |tx: &mut shmkit::Tx<'_, Option<Gc<Item>>>| {
        let list = tx.alloc_slice(&[1_u64; 100])?;
        let (next, list) = (*tx.root(), Some(list));
        let item = tx.alloc(Item {
            value: 1,
            next,
            list,
        })?;
        *tx.root_mut()? = Some(item);
        if let Some(next) = next {
            tx.get_mut(next)?.next = Some(item);
            let list = tx.get(next).unwrap().list.unwrap();
            tx.slice_mut(list, 3..90)?.fill(2);
        }
        Ok::<_, HeapError>(())
    };
    heap.try_modify(change).unwrap();
    scope(|s| {
        let dies = || {
            let _ = heap.modify(|tx| {
                change(tx).unwrap();
                std::process::abort();
            });
        };
        s.spawn(dies).unwrap().join().unwrap_err();
    });
    let words = std::ptr::from_ref(&*heap).cast::<u64>();
    // SAFETY: the heap is larger than that, and nobody writes to it now.
    let word = |i: usize| unsafe { words.add(i).read() } - pool.base() as u64;
    let own = (words.addr() - pool.base()) as u64;
    // The lock's two words, the table and six more, then the log with its five, the block behind it first.
    let log = own + 14 * 8;
    [
        (own, 14 * 8),
        (word(2), 5 * 32),
        (log, 880),
        (word(9), 5 * 8 + 100),
    ]
}

/// Uses every operation of the heap.
pub fn probe(pool: Pool) {
    if let Ok(heap) = pool.named::<Heap<Option<Gc<Item>>>>("heap") {
        if let Ok(view) = heap.view() {
            let mut next = *view.root();
            for _ in 0..10 {
                let Some(item) = next.and_then(|next| view.get(next)) else {
                    break;
                };
                let list = item.list.and_then(|list| view.get(list));
                std::hint::black_box(list.map(|list| list.iter().fold(0, |a, b| a ^ b)));
                next = item.next;
            }
        }
        let _ = heap.stats().map(|stats| stats.objects);
        let _ = heap.try_modify(|tx| {
            let first = tx.root().ok_or(HeapError::NoObject)?;
            tx.get_mut(first)?.value = 7;
            let item = *tx.get(first).unwrap();
            let item = tx.alloc(item)?;
            *tx.root_mut()? = Some(item);
            Ok::<_, HeapError>(())
        });
        let _ = heap.collect().map(|collected| collected.live);
    }
}

/// A table that says that it is longer than its block: what lies behind is others', and stays theirs.
pub fn a_table_takes_nothing_behind_its_block() {
    let pool = TestPool::new();
    let heap = pool.create(Heap::new(None)).unwrap();
    let fill = |tx: &mut shmkit::Tx<'_, Option<Gc<Item>>>| {
        let item = Item {
            value: 1,
            next: None,
            list: None,
        };
        *tx.root_mut()? = Some(tx.alloc(item)?);
        Ok::<_, HeapError>(())
    };
    heap.try_modify(fill).unwrap();
    // As a table's neighbours: each word names a block of somebody, or none.
    let named = allocate(*pool, 64);
    let others: Vec<_> = (0..32).map(|_| allocate(*pool, 2048)).collect();
    let words = |block: &NonNull<u8>| {
        // SAFETY: a block of as many words, which only this thread uses.
        unsafe { std::slice::from_raw_parts_mut(block.cast::<usize>().as_ptr(), 256) }
    };
    let content = |word: usize| if word % 8 < 4 { named.addr().get() } else { 0 };
    for block in &others {
        (0..256).for_each(|word| words(block)[word] = content(word));
    }
    let entries = std::ptr::from_ref(&*heap).cast::<AtomicU64>();
    // SAFETY: the lock's two words and the table's are before it.
    let entries = unsafe { &*entries.add(3) };
    assert_eq!(
        entries.load(Ordering::Relaxed),
        64,
        "the length of the table"
    );
    for length in [65, 1 << 10, 1 << 40, u64::MAX] {
        entries.store(length, Ordering::Relaxed);
        heap.collect().unwrap();
        assert!(pool.usable_size(named).is_ok(), "what others name is freed");
        (0..200).for_each(|_| heap.try_modify(fill).unwrap());
        let is_whole = |block| (0..256).all(|word| words(block)[word] == content(word));
        assert!(others.iter().all(is_whole), "written to behind the table");
    }
    entries.store(u64::MAX, Ordering::Relaxed);
    drop(heap);
    assert!(pool.usable_size(named).is_ok(), "what others name is freed");
    for block in others.into_iter().chain([named]) {
        free(*pool, block);
    }
    assert_sound(*pool);
}

/// The same where objects are looked at and changed: what lies behind the block is no object's entry.
pub fn a_table_finds_nothing_behind_its_block() {
    let pool = TestPool::new();
    let heap = pool.create(Heap::new(())).unwrap();
    let make = |tx: &mut shmkit::Tx<'_, ()>| (0..100).map(|n| tx.alloc(n)).collect();
    let ids: Result<Vec<Gc<u64>>, _> = heap.modify(make).unwrap();
    let (first, behind) = (ids.as_ref().unwrap()[0], ids.as_ref().unwrap()[64]);
    assert_eq!(heap.view().unwrap().get(behind), Some(&64));

    // Two neighbours: the first is to be the table, and its entries go on in the second, which is somebody's.
    const HALF: usize = 64 * 32;
    let mut blocks: Vec<_> = (0..32).map(|_| allocate(*pool, HALF)).collect();
    blocks.sort_unstable();
    let next_to = |pair: &[NonNull<u8>]| pair[1].addr().get() - pair[0].addr().get() == HALF;
    let pair = blocks.windows(2).position(next_to).unwrap();
    let (block, others) = (blocks[pair], blocks[pair + 1]);
    assert_eq!(pool.usable_size(block).unwrap(), HALF);
    let words = std::ptr::from_ref(&*heap).cast::<AtomicU64>();
    // SAFETY: the words of the lock are two, then come the table's.
    let (table, entries) = unsafe { (&*words.add(2), &*words.add(3)) };
    let own = table.load(Ordering::Relaxed);
    assert_eq!(entries.load(Ordering::Relaxed), 128);
    let from = std::ptr::with_exposed_provenance::<u8>(own as usize);
    // SAFETY: the table's 128 entries, and two blocks of as many bytes, which only this thread uses.
    unsafe { from.copy_to_nonoverlapping(block.as_ptr(), 2 * HALF) };
    // SAFETY: the block behind, which is written to, if at all, by the heap's calls below.
    let content = || unsafe { std::slice::from_raw_parts(others.as_ptr(), HALF) }.to_vec();
    let before = content();

    table.store(block.addr().get() as u64, Ordering::Relaxed);
    for length in [65, 128, 1 << 40, u64::MAX] {
        entries.store(length, Ordering::Relaxed);
        let view = heap.view().unwrap();
        assert_eq!(view.get(first), Some(&0), "what is in the block is there");
        assert_eq!(view.get(behind), None, "read behind the table");
        drop(view);
        assert!(heap.stats().unwrap().objects <= 64, "counted");
        let written = heap.modify(|tx| {
            tx.get_mut(first).map(|first| *first += 0)?;
            assert_eq!(tx.get(behind), None);
            tx.get_mut(behind).map(|value| *value = 7)
        });
        assert_eq!(written.unwrap(), Err(HeapError::NoObject));
        assert!(content() == before, "written to behind the table");
    }
    table.store(own, Ordering::Relaxed);
    entries.store(128, Ordering::Relaxed);
    assert_eq!(heap.view().unwrap().get(behind), Some(&64));
    drop(heap);
    for block in blocks {
        free(*pool, block);
    }
    assert_sound(*pool);
}

/// What a heap has that it cannot have is told.
pub fn damaged_heaps_are_found() {
    /// Where a heap has its table, its length and the first block of its log; where an entry has its block, and the next
    /// entry is; and where a block of the log has how many bytes count, and how many there are.
    const TABLE: usize = 16;
    const ENTRIES: usize = 24;
    const LOG: usize = 72;
    const ENTRY: usize = 32;
    const USED: usize = 24;
    const SIZE: usize = 32;
    let pool = TestPool::new();
    let heap = pool.create(Heap::new(())).unwrap();
    let make = |tx: &mut shmkit::Tx<'_, ()>| [1, 2].map(|n| tx.alloc_slice(&[n; 2000]).unwrap());
    let [list, _] = heap.modify(make).unwrap();
    let save = heap.modify(|tx| tx.slice_mut(list, ..1000).map(drop));
    save.unwrap().unwrap();
    let own = std::ptr::from_ref(&*heap).expose_provenance();
    let (table, log) = (word(own + TABLE) as usize, word(own + LOG));
    let first = word(table);
    for (at, damaged, tells) in [
        (own + ENTRIES, 1 << 20, "its table is no block"),
        (table + ENTRY, first, "object 1 has no block"),
        (table + ENTRY, first + 8, "object 1 has no block"),
        (log as usize + SIZE, 1 << 20, "a bad log"),
        (log as usize + USED, 1 << 20, "a chunk is too small"),
        (log as usize, log, "a bad log"),
    ] {
        let right = word(at);
        damage(at, damaged);
        let report = pool.check_quiescent();
        damage(at, right);
        let is_told = report
            .problems
            .iter()
            .any(|problem| problem.contains(tells));
        assert!(is_told, "{tells}: {report:?}");
    }
    assert_sound(*pool);
}
