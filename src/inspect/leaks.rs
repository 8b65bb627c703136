//! What nobody can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::Pool;
use crate::allocator::walk;
use crate::layout::arena::Arena;
use crate::pool::objects::{self, ObjectPhase};
use crate::pool::{names, types};

/// What nobody can reach; see [`leaks`].
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// let block = pool.allocate(std::alloc::Layout::new::<[u64; 8]>())?;
/// // Only private memory knows of it.
/// let leaks = inspect::leaks(pool);
/// assert_eq!(leaks.blocks[0].0, block.cast::<u8>().as_ptr() as usize);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Leaks {
    /// Objects that are reached from no name and no handle: cycles of links.
    pub objects: usize,
    /// Blocks, as address and size in bytes; those of such objects too.
    pub blocks: Vec<(usize, usize)>,
}

impl Leaks {
    /// True if everything can be reached.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect};
    /// let pool = Pool::builder().max_size(4 << 20).create()?;
    /// let block = pool.allocate(std::alloc::Layout::new::<[u64; 8]>())?;
    /// // Only private memory knows of it.
    /// let leaks = inspect::leaks(pool);
    /// assert!(!leaks.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The number of bytes of all blocks.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect};
    /// let pool = Pool::builder().max_size(4 << 20).create()?;
    /// let block = pool.allocate(std::alloc::Layout::new::<[u64; 8]>())?;
    /// // Only private memory knows of it.
    /// let leaks = inspect::leaks(pool);
    /// assert!(leaks.bytes() >= 64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|(_, size)| size).sum()
    }
}

/// The blocks that are reached from no named object and no handle, while nobody is using the pool.
///
/// A block is reached if an object that is reached has it or links to it, or if any word of a
/// reached block is an address in it, or names it as maps name their nodes. So a leak can be
/// missed, if a number happens to look like a name, but none is invented, with one exception: a raw
/// block ([`Pool::allocate`]) of which only private memory knows is reported, since the pool does
/// not know that it is in use.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// let block = pool.allocate(std::alloc::Layout::new::<[u64; 8]>())?;
/// // Only private memory knows of it.
/// let leaks = inspect::leaks(pool);
/// assert_eq!((leaks.objects, leaks.blocks.len()), (0, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn leaks(pool: Pool) -> Leaks {
    leaks_of(pool.0)
}

pub(super) fn leaks_of(arena: Arena) -> Leaks {
    let blocks: BTreeMap<usize, usize> = walk::blocks(arena).into_iter().collect();
    let named: BTreeSet<usize> = names::all(arena)
        .into_iter()
        .map(|(_, index)| index)
        .collect();
    let live = |index: usize| {
        let entry = arena.object(index);
        entry.filter(|entry| entry.state().phase == ObjectPhase::Live)
    };
    let mut objects: Vec<usize> = (0..arena.object_count())
        .filter(|&index| live(index).is_some())
        .filter(|index| named.contains(index) || objects::is_held(arena, *index))
        .collect();
    let mut seen: BTreeSet<usize> = objects.iter().copied().collect();
    let mut reached: BTreeSet<usize> = BTreeSet::new();
    // What was unlinked and is not freed yet.
    for (_, slot) in arena.slots() {
        let retired = slot.limbo.head.load(Ordering::Relaxed) as usize;
        reach(&blocks, retired, &mut reached);
    }
    while let Some(index) = objects.pop() {
        let Some(entry) = live(index) else { continue };
        let address = entry.address.load(Ordering::Acquire) as usize;
        let Some(size) = blocks.get(&address) else {
            continue;
        };
        reach(&blocks, address, &mut reached);
        for word in types::owned_words(arena, entry.kind(), *size) {
            if word.offset.is_multiple_of(8)
                && word.kind == types::Owned::Link
                && let Some(target) = objects::target(read(address + word.offset))
                && seen.insert(target)
            {
                objects.push(target);
            }
        }
    }
    let unreached = |address: &usize| !reached.contains(address);
    Leaks {
        objects: (0..arena.object_count())
            .filter(|&index| live(index).is_some() && !seen.contains(&index))
            .count(),
        blocks: blocks
            .iter()
            .filter(|(address, _)| unreached(address))
            .map(|(address, size)| (*address, *size))
            .collect(),
    }
}

/// Notes the block in which an address lies, and the blocks to which words of its content lead.
fn reach(blocks: &BTreeMap<usize, usize>, address: usize, reached: &mut BTreeSet<usize>) {
    let within = |address: usize| {
        let (start, size) = blocks.range(..=address).next_back()?;
        (address - start < *size).then_some((*start, *size))
    };
    // Each block is in it once, so it does not grow with what the blocks have in them.
    let mut todo = Vec::new();
    let mut note = |address: usize, todo: &mut Vec<_>| {
        if let Some((start, size)) = within(address)
            && reached.insert(start)
        {
            todo.push((start, size));
        }
    };
    note(address, &mut todo);
    while let Some((start, size)) = todo.pop() {
        for at in (start..start + size).step_by(8) {
            note(read(at) as usize, &mut todo);
        }
    }
}

/// A word of an allocated block.
fn read(address: usize) -> u64 {
    // SAFETY: a whole word, at a multiple of eight, of a block that is allocated according to the
    // pool's tags, so it is mapped and committed. Others may write to it: the load is atomic.
    unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address) }.load(Ordering::Relaxed)
}
