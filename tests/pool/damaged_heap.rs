//! A heap whose words are to be changed, and what is asked of it then.

use shmkit::process::scope;
use shmkit::{Gc, Heap, HeapError, Pool, ShmSafe, Trace};

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
