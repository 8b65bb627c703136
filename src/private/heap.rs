//! The one private heap of the process, made by the thread that first allocates.
//!
//! The heap is an arena like a pool's, over private anonymous memory. Address space is reserved for
//! each table at its place; what is committed is made accessible. A limit on the process's address
//! space (`RLIMIT_AS`) makes the heap's maximum smaller: it takes at most half of that.
//!
//! Nothing here allocates before the heap exists. Code that allocates afterwards (the C library,
//! when the fork handler is registered with it) finds the heap.

use rustix::process::Resource;
use rustix::rand::{GetRandomFlags, getrandom};

use super::threads;
use crate::allocator::grow;
use crate::layout::arena::{
    Arena, DATA, FIRST_GRANULE, FREE_HINTS, GRANULE, GRANULES, HEADER_SIZE, SLICE, SLOTS, SPANS,
    TAGS,
};
use crate::layout::local;
use crate::pool;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::{limits, memory};

/// Slices that the heap has from the start: 64 MiB, which is address space until they are used.
const INITIAL: usize = (64 << 20) / SLICE;
/// From this many bytes of data on, the heap asks for huge pages: a small program does not take
/// one.
const HUGE_FROM: usize = 2 << 20;
/// The fewest slices for which a heap is made.
const LEAST: usize = (1 << 20) / SLICE;

/// The heap's base address; 0 while there is none.
static BASE: AtomicU64 = AtomicU64::new(0);

/// The heap, if there is one.
#[inline]
pub(super) fn known() -> Option<Arena> {
    let base = BASE.load(Ordering::Acquire) as usize;
    (base != 0).then(|| Arena::at(base))
}

/// The heap, made now if need be.
pub(super) fn known_or_new() -> Option<Arena> {
    known().or_else(make)
}

/// Several threads may make one at once: the first to publish its own wins.
#[cold]
fn make() -> Option<Arena> {
    let (arena, slices) = reserve()?;
    local::of(arena).set_private();
    if fill(arena, slices).is_none() {
        give_up(arena, slices);
        return known();
    }
    let (start, len) = (arena.slice_address(0), slices * SLICE);
    // If this is refused, the heap has ordinary pages.
    let _ = memory::advise(
        start + HUGE_FROM,
        len.saturating_sub(HUGE_FROM),
        rustix::mm::Advice::LinuxHugepage,
    );
    pool::fork::teach_recovery();
    let base = arena.base() as u64;
    if let Err(other) = BASE.compare_exchange(0, base, Ordering::AcqRel, Ordering::Acquire) {
        give_up(arena, slices);
        return Some(Arena::at(other as usize));
    }
    // SAFETY: the handler is a function of this program and does only what a forked child may do.
    // If it cannot be installed, children leave unused what their parent's other threads had
    // cached.
    let _ = unsafe { libc::pthread_atfork(None, None, Some(threads::in_child)) };
    Some(arena)
}

fn fill(arena: Arena, slices: usize) -> Option<()> {
    arena.commit(0, HEADER_SIZE).ok()?;
    let header = arena.header();
    header.max_slices.store(slices as u64, Ordering::Relaxed);
    header.max_slots.store(SLOTS.max as u64, Ordering::Relaxed);
    header.epoch.store(1, Ordering::Relaxed);
    // A strict overcommit policy may refuse the first amount.
    [INITIAL, LEAST]
        .into_iter()
        .find_map(|count| grow::extend(arena, 0, count.min(slices)).ok())?;
    threads::make_common(arena)
}

/// The tables that a private heap with `slices` slices uses, as offset and length.
fn tables(slices: usize) -> [(usize, usize); 5] {
    let sized = |offset: usize, entry: usize, count: usize| (offset, count * entry);
    [
        sized(0, SLOTS.end(), 1),
        sized(TAGS.offset, TAGS.entry, slices),
        sized(FREE_HINTS.offset, FREE_HINTS.entry, slices.div_ceil(64)),
        sized(SPANS.offset, SPANS.entry, slices),
        sized(DATA.offset, DATA.entry, slices),
    ]
    .map(|(offset, len)| (offset, len.next_multiple_of(memory::page_size())))
}

/// Reserves address space in a granule where it is free, for as many slices as possible.
fn reserve() -> Option<(Arena, usize)> {
    let limit = limits::of(Resource::As).unwrap_or(u64::MAX) / 2;
    let mut slices = DATA
        .max
        .min(limit as usize / (SLICE + SPANS.entry + TAGS.entry));
    let mut random = [0; 8];
    // Without random numbers all processes have the same order of granules.
    let _ = getrandom(&mut random, GetRandomFlags::NONBLOCK);
    let random = usize::from_ne_bytes(random);
    while slices >= LEAST {
        for i in 0..GRANULES {
            let granule = FIRST_GRANULE + (random % GRANULES + i) % GRANULES;
            match reserve_at(Arena::at(granule * GRANULE), slices) {
                Ok(arena) => return Some((arena, slices)),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(_) => break,
            }
        }
        slices /= 2;
    }
    None
}

fn reserve_at(arena: Arena, slices: usize) -> std::io::Result<Arena> {
    let tables = tables(slices);
    for (i, (offset, len)) in tables.iter().enumerate() {
        if let Err(error) = memory::reserve_at(arena.base() + offset, *len) {
            unreserve(arena, &tables[..i]);
            return Err(error);
        }
    }
    Ok(arena)
}

fn give_up(arena: Arena, slices: usize) {
    let _ = local::of(arena).clear();
    unreserve(arena, &tables(slices));
}

fn unreserve(arena: Arena, tables: &[(usize, usize)]) {
    for (offset, len) in tables {
        // SAFETY: reserved by the caller just now; nobody has seen it.
        let _ = unsafe { memory::unmap(arena.base() + offset, *len) };
    }
}
