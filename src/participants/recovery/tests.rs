//! What is done for one dead thread, word by word.

use super::*;
use crate::participants::thread;
use crate::primitive::AtomicU32;
use crate::{Pool, SharedCell};

/// The slot that a thread had that has done `does`.
fn left_by(arena: Arena, does: impl FnOnce() + Send) -> usize {
    let comes = || {
        does();
        thread::slot(arena).unwrap().tag().slot()
    };
    std::thread::scope(|s| s.spawn(comes).join().unwrap())
}

/// As if the slot's thread had died.
fn dies(slot: &Slot) {
    let free = slot.state();
    assert!(slot.turn(free, free.with(SlotPhase::Dead)));
}

/// A thread has died that looked at something, had a lock for reading, and was at an element:
/// nobody waits for that.
#[test]
fn a_settled_slot_holds_nothing_up() {
    let arena = Pool::builder().create().unwrap().0;
    let index = left_by(arena, || ());
    let slot = arena.slot(index);
    let words = [
        &slot.watched.pin,
        &slot.pin_depth,
        &slot.watched.element,
        &slot.reading.locks[0],
        &slot.reading.limit,
    ];
    for word in words {
        word.store(1, Ordering::Relaxed);
    }
    dies(slot);
    let rescan = arena.header().rescan.load(Ordering::Relaxed);
    assert!(settle_slot(arena, index));
    assert_eq!(words.map(|word| word.load(Ordering::Relaxed)), [0; 5]);
    assert_ne!(arena.header().rescan.load(Ordering::Relaxed), rescan);
    assert_eq!(slot.state().phase, SlotPhase::Settled);
}

/// Not by looking again after a tick: the dead thread may have received the wake that was meant for
/// one of them.
#[test]
fn who_sleeps_where_a_dead_one_slept_is_woken() {
    let arena = Pool::builder().create().unwrap().0;
    let index = left_by(arena, || ());
    let slot = arena.slot(index);
    let words = [const { AtomicU32::new(0) }; 2];
    let named = [&slot.watched.waiting_on, &slot.watched.condition];
    let [on_one, on_other] = &words;
    let places = [on_one, on_other, &slot.life.word];
    let over = AtomicU32::new(0);
    std::thread::scope(|s| {
        for word in places {
            s.spawn(|| {
                while over.load(Ordering::Acquire) == 0 {
                    futex::wait(word, 0, std::time::Duration::from_secs(3600));
                }
            });
        }
        while places.map(futex::is_slept_on) != [true; 3] {
            std::thread::yield_now();
        }
        for (name, word) in named.iter().zip(&words) {
            name.store(std::ptr::from_ref(word).addr() as u64, Ordering::Relaxed);
        }
        dies(slot);
        over.store(1, Ordering::Release);
        assert!(settle_slot(arena, index));
        let asleep = places.map(futex::is_slept_on);
        for word in places {
            futex::wake(word, 1);
        }
        assert_eq!(asleep, [false; 3]);
    });
    assert_eq!(named.map(|name| name.load(Ordering::Relaxed)), [0; 2]);
}

/// A thread that looks for retired blocks before a slot is free passes the slot over.
#[test]
fn who_frees_a_slot_tells_of_what_it_has_retired() {
    let pool = Pool::builder().create().unwrap();
    let cell = pool.create(SharedCell::new()).unwrap();
    cell.set([1_u64; 4]).unwrap();
    let _look = cell.view();
    let arena = pool.0;
    let index = left_by(arena, || cell.set([2; 4]).unwrap());
    let slot = arena.slot(index);
    let is_told = || arena.header().limbo_left.take();
    assert!(is_told(), "by the thread");
    slot.life.word.store(OWNER_DIED, Ordering::Relaxed);
    settle(arena, index);
    assert!(is_told(), "for one who has died behind that");
    dies(slot);
    assert!(settle_slot(arena, index));
    assert!(is_told(), "for one who may have been about to look");
    free_settled(arena, index..index + 1);
    assert_eq!(slot.state().phase, SlotPhase::Free);
    assert!(is_told(), "for the dead");
    thread::give_back(arena, thread::borrow(arena, index).unwrap());
    assert!(is_told(), "by who has borrowed it");
}

/// A process that had begun to take a child's record back has died in the middle.
#[test]
fn a_record_that_is_half_taken_back_is_freed() {
    let pool = Pool::builder().create().unwrap();
    let _held = pool.create(1_u64).unwrap();
    let arena = pool.0;
    let child = process::reserve_child(arena).unwrap().slot();
    let record = arena.process(child);
    // Another parent: a child that another test forks meanwhile is not to lose its record.
    let parent = u16::MAX;
    let (forking, phase) = (record.state(), ProcessPhase::Aborted);
    assert!(record.turn(
        forking,
        ProcessState {
            phase,
            parent,
            ..forking
        }
    ));
    let holds = || {
        let held = |word: &&AtomicU64| word.load(Ordering::Relaxed) != 0;
        arena.hold_row(child).filter(held).count()
    };
    assert_eq!(holds(), 1);
    abort_children(arena, parent.into());
    assert_eq!((record.state().phase, holds()), (ProcessPhase::Free, 0));
}
