use std::alloc::Layout;
use std::ptr::NonNull;

use super::*;
use crate::Pool;
use crate::participants::thread;
use crate::pool::Scratch;

type Block = [u64; 64];

fn allocate(pool: &Pool) -> usize {
    pool.allocate(Layout::new::<Block>()).unwrap().addr().get()
}

fn free(pool: &Pool, block: usize) {
    let block = std::ptr::with_exposed_provenance_mut(block);
    // SAFETY: a block that the test has allocated, and that nobody uses.
    unsafe { pool.deallocate(NonNull::new(block).unwrap()) }.unwrap();
}

/// A block, and its span, whose other blocks are all handed out as well; and a function that frees
/// the block as another thread does.
fn full(pool: &Pool) -> (usize, &'static Span, impl Fn()) {
    let (arena, first) = (pool.0, allocate(pool));
    let start = arena.slice_of(first).unwrap();
    let span = arena.span(start);
    (1..span.blocks.load(Ordering::Relaxed)).for_each(|_| _ = allocate(pool));
    let place = span.place_of(first - arena.slice_address(start)).unwrap();
    (first, span, move || _ = span.sets().free_remote(place))
}

/// A thread has adopted a span that by now is of another class than the one it was looking for. All
/// of its free blocks were freed by others, which did not set the hint that would make the thread
/// look at that class.
#[test]
fn what_others_freed_of_a_span_before_it_was_kept_is_handed_out() {
    let pool = Scratch::new();
    let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
    let (first, span, free) = full(&pool);
    let (cache, start) = (slot.cache(span.class()), span.slice(arena));
    cache.set_none(slot);
    let nobodys = slice::span_tag(Tag::NOBODY);
    arena.tag(start).store(nobodys, Ordering::Release);
    free();

    cache.keep(arena, slot, adopt(arena, slot.tag(), start).unwrap());
    assert_eq!(allocate(&pool), first);
}

/// Another thread is about to free a block, or may free it once more, when the owner looks for the
/// last time. The thread that frees it has set no hint.
#[test]
fn what_was_about_to_be_freed_is_handed_out_later() {
    let pool = Scratch::new();
    let arena = pool.0;
    let (first, _, free) = full(&pool);
    // What another thread has left.
    let theirs = by_another(|| thread::slot(arena).unwrap().tag().slot());
    let freeing = &arena.slot(theirs).watched.freeing;
    freeing.store(first as u64, Ordering::SeqCst);
    free();
    let next = allocate(&pool);
    freeing.store(0, Ordering::SeqCst);

    let blocks = arena
        .span(arena.slice_of(next).unwrap())
        .blocks
        .load(Ordering::Relaxed);
    assert!((0..blocks).any(|_| allocate(&pool) == first));
}

fn by_another<R: Send>(does: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|s| s.spawn(does).join().unwrap())
}

/// A thread that needs blocks goes on with a span that another thread has left.
#[test]
fn a_span_of_who_has_left_is_found() {
    let pool = Scratch::new();
    let theirs = by_another(|| allocate(&pool));
    let [theirs, mine] = [theirs, allocate(&pool)].map(|block| pool.0.slice_of(block));
    assert_eq!(theirs, mine);
}

/// No block of such a span was free when others looked. Now one is.
#[test]
fn a_block_that_was_freed_of_a_span_of_who_has_left_is_found() {
    let pool = Scratch::new();
    let theirs = by_another(|| full(&pool).0);
    // All others of the first span.
    drop(full(&pool));
    free(&pool, theirs);
    assert_eq!(allocate(&pool), theirs);
}

/// The same, and others may be about to free the block once more, so that the thread that has
/// adopted the span for it goes on without it.
#[test]
fn a_block_of_a_span_that_was_adopted_in_vain_is_found_later() {
    let pool = Scratch::new();
    let arena = pool.0;
    let me = thread::slot(arena).unwrap().tag();
    let (first, start) = by_another(|| {
        let (first, span, _) = full(&pool);
        (first, span.slice(arena))
    });
    let theirs = by_another(|| thread::slot(arena).unwrap().tag().slot());
    let freeing = &arena.slot(theirs).watched.freeing;
    freeing.store(first as u64, Ordering::SeqCst);
    free(&pool, first);
    let next = allocate(&pool);
    assert_ne!(next, first);
    assert_eq!(
        arena.tag(start).load(Ordering::Relaxed),
        slice::span_tag(me)
    );
    freeing.store(0, Ordering::SeqCst);

    // As soon as a span is needed again.
    let others = arena.span(arena.slice_of(next).unwrap());
    let blocks = others.blocks.load(Ordering::Relaxed);
    assert!((0..blocks).any(|_| allocate(&pool) == first));
}

/// All blocks of a span are free, and another thread may be about to free one of them once more.
#[test]
fn a_span_that_a_freeing_word_names_is_not_empty() {
    let pool = Scratch::new();
    let (arena, block) = (pool.0, allocate(&pool));
    let span = arena.span(arena.slice_of(block).unwrap());
    let theirs = by_another(|| thread::slot(arena).unwrap().tag().slot());
    let freeing = &arena.slot(theirs).watched.freeing;
    free(&pool, block);
    assert!(span.is_empty(arena));
    freeing.store(block as u64, Ordering::SeqCst);
    assert!(!span.is_empty(arena));
    freeing.store(0, Ordering::SeqCst);
}
