//! How much memory is used for what: counted from the tags and bitmaps, so a death falsifies
//! nothing.

use serde::Serialize;

use super::size_class::{CLASSES, TABLE};
use super::slice::{self, HOLE, State};
use crate::layout::arena::{Arena, SLICE};
use crate::primitive::Ordering;

/// How the memory of a pool is used, at about one moment.
///
/// ```
/// use shmkit::Pool;
///
/// let pool = Pool::builder().initial_size(2 << 20).max_size(4 << 20).create()?;
/// let _object = pool.create([0_u8; 1000])?;
/// let stats = pool.stats();
/// assert_eq!((stats.total, stats.maximum), (2 << 20, 4 << 20));
/// assert_eq!(stats.allocated + stats.free, stats.total);
/// assert!(stats.allocated >= 1000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of data that the pool has now.
    pub total: usize,
    /// Bytes of data that it can grow to.
    pub maximum: usize,
    /// Bytes of blocks that are allocated.
    pub allocated: usize,
    /// Bytes of data that are not allocated: free slices, and free blocks in spans.
    pub free: usize,
    /// Bytes of the largest block that fits without growing: free slices in a row, or a free block
    /// of a span (which only its owner can use, if it has one).
    pub largest_contiguous: usize,
    /// Bytes of data that have memory; the rest was given back to the kernel.
    pub committed: usize,
    /// Blocks of whole slices, and their bytes.
    pub runs: ClassStats,
    /// The size classes in use, by block size.
    pub classes: Vec<ClassStats>,
    /// What was unlinked from containers and is not freed yet: part of what is allocated.
    pub retired: RetiredStats,
    /// Threads that have a slot.
    pub threads: usize,
    /// Processes that have a record.
    pub processes: usize,
    /// Dead threads that were recovered since the pool was made.
    pub recoveries: u64,
}

/// Blocks in limbo.
///
/// ```
/// use shmkit::{HashMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let map = pool.create(HashMap::<u32, u32>::new())?;
/// map.insert(&1, 10)?;
/// map.remove(&1);
/// let retired = pool.stats().retired;
/// // Somebody may still be reading what was removed.
/// println!("{} blocks of {} bytes", retired.blocks, retired.bytes);
/// pool.recover();
/// assert_eq!(pool.stats().retired.blocks, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetiredStats {
    /// Blocks that were unlinked and are not freed yet. They count as allocated.
    pub blocks: usize,
    /// How many bytes these have.
    pub bytes: usize,
    /// Bytes that could not be freed at the last attempt, because somebody still looks at them: a
    /// process that is stopped with a view open, or in an operation, holds them back.
    pub held_back: usize,
}

/// How the blocks of one size are used.
///
/// ```
/// use std::alloc::Layout;
/// use shmkit::Pool;
///
/// let pool = Pool::builder().create()?;
/// pool.allocate(Layout::new::<[u8; 100]>())?;
/// let stats = pool.stats();
/// let class = stats.classes.iter().find(|class| class.block_size == 112).unwrap();
/// assert_eq!((class.allocated, class.allocated_bytes), (1, 112));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ClassStats {
    /// Bytes per block; 0 for runs, which have many sizes.
    pub block_size: usize,
    /// How many spans there are of the size.
    pub spans: usize,
    /// Blocks that are allocated.
    pub allocated: usize,
    /// Blocks that are free.
    pub free: usize,
    /// Bytes of the allocated blocks.
    pub allocated_bytes: usize,
}

/// Counts the data; the caller adds the participants.
pub(crate) fn count(arena: Arena) -> Stats {
    let end = arena.slices();
    let mut classes = [ClassStats::default(); CLASSES];
    let mut stats = Stats {
        total: end * SLICE,
        maximum: arena.header().max_slices.load(Ordering::Relaxed) as usize * SLICE,
        recoveries: arena.header().recoveries.load(Ordering::Relaxed),
        ..Stats::default()
    };
    let (mut row, mut longest, mut holes) = (0, 0, 0);
    let mut kept_until = 0;
    for index in 0..end {
        let state = slice::state(arena.tag(index).load(Ordering::Acquire));
        if let State::Kept { slices } = state {
            kept_until = index + slices.min(end - index);
        }
        let tail_of_kept = index < kept_until && matches!(state, State::Tail { .. });
        row = match state {
            State::Free { .. } | State::Kept { .. } => row + 1,
            _ if tail_of_kept => row + 1,
            _ => 0,
        };
        longest = longest.max(row);
        match state {
            State::Free { kind } | State::Claimed { kind, .. } if kind == HOLE => holes += 1,
            State::Run { slices } => {
                stats.runs.allocated += 1;
                // Bounded, in case the tag is garbage.
                stats.runs.allocated_bytes += slices.min(end - index) * SLICE;
            }
            State::Span { .. } => {
                let span = arena.span(index);
                let free = span.count_free() as usize;
                let blocks = span.blocks.load(Ordering::Relaxed) as usize;
                let class = &mut classes[span.class()];
                class.spans += 1;
                class.free += free;
                class.allocated += blocks.saturating_sub(free);
            }
            _ => {}
        }
    }
    for (class, shape) in classes.iter_mut().zip(&TABLE) {
        class.block_size = shape.size as usize;
        class.allocated_bytes = class.allocated * class.block_size;
        stats.allocated += class.allocated_bytes;
        if class.spans > 0 {
            stats.classes.push(*class);
        }
    }
    stats.allocated += stats.runs.allocated_bytes;
    stats.free = stats.total.saturating_sub(stats.allocated);
    let in_spans = stats.classes.iter().filter(|class| class.free > 0);
    let in_spans = in_spans.map(|class| class.block_size).max().unwrap_or(0);
    stats.largest_contiguous = (longest * SLICE).max(in_spans);
    stats.committed = stats.total - holes * SLICE;
    stats
}
