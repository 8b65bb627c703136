//! What threads leave that were stopped halfway, made by hand.

use super::*;
use crate::allocator::check::CheckReport;
use crate::participants::thread;
use crate::pool::Scratch;

/// More than is appended to a chunk that there is.
const PIECE: usize = 20_000;

/// The words of a buffer, which are used no longer than the pool.
fn words(pool: &Scratch, capacity: u64) -> (Arena, &'static Slot, &'static Words) {
    let block = pool.allocate(Layout::new::<Words>()).unwrap().cast();
    // SAFETY: a new block of that layout, which is not freed.
    let words = unsafe {
        block.write(Words::new(capacity));
        block.as_ref()
    };
    (pool.0, thread::slot(pool.0).unwrap(), words)
}

/// The index of the oldest chunk that is not freed.
fn oldest(arena: Arena, words: &Words) -> u64 {
    let oldest = words.oldest.load(Ordering::SeqCst);
    Found::at(arena, oldest).unwrap().index()
}

#[test]
fn no_hint_names_what_is_freed() {
    let pool = Scratch::of_size(4 << 20);
    let (arena, slot, words) = words(&pool, NO_CAPACITY);
    (0..4).for_each(|_| _ = words.append(arena, slot, &[7; PIECE]).unwrap());
    // Nobody has moved the hint since the first one.
    let first = words.oldest.load(Ordering::SeqCst);
    words.last.store(first, Ordering::SeqCst);
    words.start.store(3 * PIECE as u64, Ordering::SeqCst);
    assert!(words.free_old(arena, slot));
    assert_eq!(oldest(arena, words), 3);
    let last = words.last.load(Ordering::SeqCst);
    assert_eq!(last, words.oldest.load(Ordering::SeqCst));
}

/// Otherwise it would never be freed, if there is always somebody who looks.
#[test]
fn what_is_stamped_does_not_wait_for_later_looks() {
    let pool = Scratch::of_size(4 << 20);
    let (arena, slot, words) = words(&pool, NO_CAPACITY);
    (0..4).for_each(|_| _ = words.append(arena, slot, &[7; PIECE]).unwrap());
    let other = std::thread::spawn(move || thread::slot(arena).unwrap().tag());
    let other = arena.slot(other.join().unwrap().slot());
    epoch::pin(arena, slot);
    words.truncate(arena, slot, 2 * PIECE as u64).unwrap();
    epoch::pin(arena, other);
    words.truncate(arena, slot, 3 * PIECE as u64).unwrap();
    assert_eq!(oldest(arena, words), 0);
    epoch::unpin(slot);
    assert!(words.free_old(arena, slot));
    assert_eq!(oldest(arena, words), 2);
    epoch::unpin(other);
    assert!(words.free_old(arena, slot));
    assert_eq!(oldest(arena, words), 3);
}

/// Links a new chunk of that length behind what was the last one.
fn link(
    (arena, slot, words): (Arena, &Slot, &Words),
    len: usize,
    last: Option<Found>,
) -> Result<Option<u64>, AppendRefusal> {
    let layout = Layout::from_size_align(HEADER + len, 16).unwrap();
    let block = block::allocate(arena, slot, layout, |_| {}).unwrap();
    let own = Found::at(arena, block as u64).unwrap();
    words.link(arena, slot, own, len as u64, last)
}

#[test]
fn what_others_have_appended_takes_room() {
    let pool = Scratch::of_size(4 << 20);
    let (arena, slot, words) = words(&pool, 1000);
    words.append(arena, slot, &[7; 600]).unwrap();
    let last = words.last(arena);
    let linked = link((arena, slot, words), 500, last);
    assert_eq!(linked, Err(AppendRefusal::Full));
    assert_eq!(words.end(arena), (600, false));
}

#[test]
fn what_is_closed_meanwhile_takes_nothing() {
    for len in [10, IN_PLACE_MAX + 1] {
        let pool = Scratch::of_size(4 << 20);
        let (arena, slot, words) = words(&pool, NO_CAPACITY);
        words.append(arena, slot, &[7; 600]).unwrap();
        let last = words.last(arena);
        words.close(arena, slot);
        let linked = link((arena, slot, words), len, last);
        assert_eq!(linked, Err(AppendRefusal::Closed));
        assert_eq!(words.end(arena), (600, true));
    }
}

#[test]
fn what_a_look_held_back_makes_room() {
    let pool = Scratch::of_size(4 << 20);
    let (arena, slot, words) = words(&pool, NO_CAPACITY);
    while words.append(arena, slot, &[7; PIECE]).is_ok() {}
    epoch::pin(arena, slot);
    let (end, _) = words.end(arena);
    words.truncate(arena, slot, end).unwrap();
    assert_eq!(oldest(arena, words), 0);
    epoch::unpin(slot);
    assert_eq!(words.append(arena, slot, &[7; PIECE]), Ok(end));
}

/// As the description of a type says that is damaged.
#[test]
fn a_buffer_that_cannot_be_there_is_a_problem() {
    let pool = Scratch::of_size(4 << 20);
    let (arena, slot, words) = words(&pool, NO_CAPACITY);
    words.append(arena, slot, &[7; PIECE]).unwrap();
    let (first, range) = (std::ptr::from_ref(words).addr(), arena.data_range());
    let end = first + range.room_at(first);
    for (address, problems) in [(first, 0), (first + 8, 1), (end - 64, 1), (end, 1)] {
        let mut report = CheckReport::default();
        check(arena, address, &mut report);
        assert_eq!(report.problems.len(), problems, "{address:#x}: {report}");
    }
}
