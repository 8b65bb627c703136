//! Threads: their slots, and blocks that go from one to another.

use std::cell::RefCell;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::HEAP;
use super::memory::assert_sound;

/// The last one's slot may be given up a moment after it was joined.
#[track_caller]
pub fn wait_for_threads(count: usize) {
    let begun = Instant::now();
    while HEAP.stats().threads > count {
        assert!(begun.elapsed() < Duration::from_secs(10), "slots are left");
        thread::yield_now();
    }
}

pub fn threads_are_counted() {
    let before = HEAP.stats();
    assert_eq!((before.threads, before.processes), (1, 1));
    let there = Barrier::new(2);
    thread::scope(|s| {
        s.spawn(|| {
            let list: Vec<u8> = (0..100).collect();
            there.wait();
            there.wait();
            list.len()
        });
        there.wait();
        let threads = HEAP.stats().threads;
        there.wait();
        assert_eq!(threads, 2);
    });
}

pub fn threads_come_and_go() {
    let before = HEAP.stats();
    for round in 0..300_usize {
        let handles: Vec<_> = (0..8)
            .map(|i| thread::spawn(move || (0..i * 20 + round).collect::<Vec<_>>()))
            .collect();
        for (i, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.join().unwrap().len(), i * 20 + round);
        }
    }
    wait_for_threads(before.threads);
    assert!(HEAP.stats().allocated < before.allocated + 65_536);
    assert_sound();
}

pub fn freed_by_other_threads() {
    let before = HEAP.stats().allocated;
    let (sender, receiver) = channel::<Vec<u32>>();
    let receiver = Mutex::new(receiver);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                loop {
                    let next = receiver.lock().unwrap().recv();
                    let Ok(list) = next else { break };
                    assert!(list.iter().all(|&n| n as usize == list.len()));
                }
            });
        }
        for i in 0..40_000_u32 {
            let len = if i % 100 == 0 { 20_000 } else { i % 300 };
            sender.send(vec![len; len as usize]).unwrap();
        }
        drop(sender);
    });
    drop(receiver);
    assert!(HEAP.stats().allocated < before + 65_536);
}

struct Late(RefCell<Vec<String>>);

impl Drop for Late {
    fn drop(&mut self) {
        let mut list = self.0.borrow_mut();
        for i in 0..100 {
            list.push("late".repeat(i));
        }
        assert_eq!(list.iter().map(String::len).sum::<usize>(), 4 * 99 * 50);
    }
}

thread_local! {
    static LATE: Late = const { Late(RefCell::new(Vec::new())) };
}

unsafe extern "C" fn later(value: *mut libc::c_void) {
    // SAFETY: the value is a boxed list, given to the key by the case below.
    let list = unsafe { Box::from_raw(value.cast::<Vec<String>>()) };
    assert_eq!(list.len(), 50);
    let more: Vec<_> = list.iter().map(|text| text.repeat(2)).collect();
    assert!(
        more.iter()
            .zip(list.iter())
            .all(|(a, b)| a.len() == 2 * b.len())
    );
}

/// A key that is made after the heap's own is destroyed after it.
pub fn freed_after_the_thread_has_left() {
    let before = HEAP.stats();
    let mut key = 0;
    // SAFETY: writes the key to the local.
    let made = unsafe { libc::pthread_key_create(&raw mut key, Some(later)) };
    assert_eq!(made, 0);
    for _ in 0..200 {
        thread::spawn(move || {
            LATE.with(|late| late.0.borrow_mut().clear());
            let list: Vec<_> = (0..50).map(|i| "x".repeat(i)).collect();
            let list = Box::into_raw(Box::new(list));
            // SAFETY: the destructor takes what the value is.
            assert_eq!(unsafe { libc::pthread_setspecific(key, list.cast()) }, 0);
        })
        .join()
        .unwrap();
    }
    // SAFETY: no thread has a value of it any more.
    assert_eq!(unsafe { libc::pthread_key_delete(key) }, 0);
    wait_for_threads(before.threads);
    assert!(HEAP.stats().allocated < before.allocated + 65_536);
}

pub fn more_threads_than_slots() {
    const THREADS: usize = 4200;
    let before = HEAP.stats();
    let there = Arc::new(Barrier::new(THREADS + 1));
    let handles: Vec<_> = (0..THREADS)
        .map(|i| {
            let there = Arc::clone(&there);
            let thread = thread::Builder::new().stack_size(64 << 10);
            let thread = thread.spawn(move || {
                let list: Vec<_> = (0..20).map(|n| vec![i; n * 10]).collect();
                there.wait();
                list.iter().map(Vec::len).sum::<usize>()
            });
            thread.expect("the system has room for so many threads")
        })
        .collect();
    there.wait();
    assert!(HEAP.stats().threads <= 4094);
    for handle in handles {
        assert_eq!(handle.join().unwrap(), 1900);
    }
    HEAP.purge().unwrap();
    assert!(HEAP.stats().committed < before.committed + (128 << 20));
    assert_sound();
}
