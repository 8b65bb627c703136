//! Objects, from outside: counted handles, and descriptors.

use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::scope;
use shmkit::{Handle, HandleError, ObjectError, Shared, testing};

use super::common::{Random, TestPool, assert_sound, leave, reap};

pub fn counts() {
    let pool = TestPool::new();
    let first = pool.create([7_u8; 1000]).unwrap();
    let one = pool.stats().allocated;
    let more: Vec<_> = (0..1000).map(|_| first.clone()).collect();
    let handle = first.handle();
    assert_eq!(pool.stats().allocated, one, "a handle is no copy");
    drop(first);
    assert_eq!(more[999][999], 7);
    let again = handle.open().unwrap();
    drop(more);
    assert_eq!((again[0], pool.stats().allocated), (7, one));
    drop(again);
    assert_eq!(pool.stats().allocated, 0);
    let many: Vec<_> = (0..10_000_u64).map(|i| pool.create(i).unwrap()).collect();
    assert!(many.iter().enumerate().all(|(i, o)| **o == i as u64));
    assert_sound(*pool);
    drop(many);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn the_value_comes_back() {
    let pool = TestPool::with(|b| b.max_size(1 << 18).initial_size(1 << 16));
    let refused = pool.create([3_u16; 1 << 18]).unwrap_err();
    assert_eq!(refused.value, [3; 1 << 18]);
    let full = ObjectError::Alloc(shmkit::AllocError::PoolFull);
    assert_eq!(refused.cause, full);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn handles_of_what_is_gone() {
    let pool = TestPool::new();
    let object = pool.create(1_u64).unwrap();
    let handle = object.handle();
    assert_eq!(handle, object.handle());
    drop(object);
    assert_eq!(handle.open().unwrap_err(), HandleError::Gone);
    for i in 0..100_u64 {
        // In its place, most likely; never mistaken for it.
        let other = pool.create(i).unwrap();
        assert_eq!(handle.open().unwrap_err(), HandleError::Gone);
        assert_ne!(other.handle(), handle);
    }
    assert_sound(*pool);
}

pub fn a_stale_handle_takes_nothing() {
    let pool = TestPool::new();
    let stale = pool.create(1_u64).unwrap().handle();
    let object = pool.create(2_u64).unwrap();
    assert_eq!(stale.open().unwrap_err(), HandleError::Gone);
    assert_sound(*pool);
    pool.recover();
    assert_eq!(*object, 2);
    assert_eq!(*object.handle().open().unwrap(), 2);
    // The same while other threads make and drop objects of the same places.
    let shared = *pool;
    std::thread::scope(|s| {
        let threads = [0_u64, 1, 2, 3].map(|seed| {
            s.spawn(move || {
                for i in 0..5000 {
                    let object = shared.create(seed << 32 | i).unwrap();
                    let _ = stale.open();
                    assert_eq!(*object.handle().open().unwrap(), seed << 32 | i);
                }
            })
        });
        for _ in 0..500 {
            let _ = stale.open();
            shared.recover();
        }
        // By their handles: the scope alone would not wait for them to leave the pool.
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert_eq!(*object, 2);
    drop(object);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn handles_of_pools_not_attached() {
    let pool = TestPool::new();
    let object = pool.create(1_u64).unwrap();
    let handle = object.handle();
    drop(object);
    drop(pool);
    assert_eq!(handle.open().unwrap_err(), HandleError::PoolNotAttached);
    let another = TestPool::new();
    let _object = another.create(1_u64).unwrap();
    assert_eq!(handle.open().unwrap_err(), HandleError::PoolNotAttached);
}

/// A handle with these numbers in it.
fn forged<T: shmkit::ShmSafe>(uuid: [u64; 2], index: u32, generation: u32) -> Handle<T> {
    let bytes = postcard::to_stdvec(&(uuid, index, generation)).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

pub fn forged_handles() {
    let pool = TestPool::new();
    let object = pool.create(5_u64).unwrap();
    let bytes = postcard::to_stdvec(&object.handle()).unwrap();
    let (uuid, index, generation): ([u64; 2], u32, u32) = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(*forged::<u64>(uuid, index, generation).open().unwrap(), 5);
    let other = forged::<[u8; 4096]>(uuid, index, generation);
    assert_eq!(other.open().unwrap_err(), HandleError::OtherType);
    assert_eq!(*object, 5, "still held");
    assert_sound(*pool);
    for wrong in [0, generation - 1, generation + 1, u32::MAX] {
        let gone = forged::<u64>(uuid, index, wrong).open();
        assert_eq!(gone.unwrap_err(), HandleError::Gone, "{wrong}");
    }
    for wrong in [index + 1, 1 << 20, 1 << 24, u32::MAX] {
        for generation in [0, 1, generation] {
            let gone = forged::<u64>(uuid, wrong, generation).open();
            assert_eq!(gone.unwrap_err(), HandleError::Gone, "{wrong}");
        }
    }
    let nowhere = forged::<u64>([0, 0], index, generation).open();
    assert_eq!(nowhere.unwrap_err(), HandleError::PoolNotAttached);
    let mut random = Random::new(11);
    for _ in 0..10_000 {
        let index = random.next() as u32 >> random.below(32);
        let generation = random.next() as u32 >> random.below(32);
        let _ = forged::<u64>(uuid, index, generation).open();
    }
    pool.recover();
    assert_eq!(*object, 5);
    drop(object);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn handles_travel() {
    let pool = TestPool::new();
    let object = pool.create(AtomicU64::new(1)).unwrap();
    // As bytes, as a result of another process, and as an object of the pool.
    let bytes = postcard::to_stdvec(&object.handle()).unwrap();
    let read: Handle<AtomicU64> = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(read, object.handle());
    let (made, stored) = scope(|s| {
        let (pool, bytes) = (*pool, &bytes);
        let child = s.spawn(move || {
            let known: Handle<AtomicU64> = postcard::from_bytes(bytes).unwrap();
            known.open().unwrap().fetch_add(1, Ordering::Relaxed);
            let made = pool.create([4_u8; 4]).unwrap();
            pool.set_name("made", &made).unwrap();
            let stored = pool.create(made.handle()).unwrap();
            pool.set_name("stored", &stored).unwrap();
            (made.handle(), stored.handle())
        });
        child.unwrap().join().unwrap()
    });
    assert_eq!(object.load(Ordering::Relaxed), 2);
    assert_eq!(*made.open().unwrap(), [4; 4]);
    let stored: Shared<Handle<[u8; 4]>> = stored.open().unwrap();
    assert_eq!(*stored, made);
    drop((object, stored));
    pool.remove_name("made").unwrap();
    pool.remove_name("stored").unwrap();
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn inherited_handles() {
    let pool = TestPool::new();
    let object = pool.create(AtomicU64::new(0)).unwrap();
    let handle = object.handle();
    let word = pool.create(AtomicU64::new(0)).unwrap();
    scope(|s| {
        let (object_ref, word_ref) = (&object, &word);
        let child = s.spawn(move || {
            word_ref.store(1, Ordering::Release);
            while word_ref.load(Ordering::Acquire) != 2 {
                std::thread::yield_now();
            }
            // The parent has let go; the child holds it all the same.
            object_ref.fetch_add(1, Ordering::Relaxed);
            let again = object_ref.handle().open().unwrap();
            assert_eq!(again.load(Ordering::Relaxed), 1);
        });
        let child = child.unwrap();
        while word.load(Ordering::Acquire) != 1 {
            std::thread::yield_now();
        }
        let parents = object.clone();
        drop(parents);
        word.store(2, Ordering::Release);
        child.join().unwrap();
    });
    assert_eq!(object.load(Ordering::Relaxed), 1);
    drop(object);
    assert_eq!(handle.open().unwrap_err(), HandleError::Gone);
    drop(word);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn the_dead_let_go() {
    let pool = TestPool::new();
    for signal in [libc::SIGKILL, libc::SIGABRT] {
        let inherited = pool.create(1_u32).unwrap();
        scope(|s| {
            let (pool, inherited) = (*pool, &inherited);
            let child = s.spawn(move || {
                let kept: Vec<_> = (0..100_u64).map(|i| pool.create(i).unwrap()).collect();
                std::mem::forget((kept, inherited.clone()));
                // SAFETY: ends this process.
                unsafe { libc::raise(signal) };
            });
            child.unwrap().join().unwrap_err();
        });
        assert_eq!(*inherited, 1);
        drop(inherited);
        assert_eq!(pool.stats().allocated, 0, "without being asked");
        assert_sound(*pool);
    }
    let stats = pool.stats();
    assert_eq!((stats.threads, stats.processes), (1, 1));
}

/// Nobody asks for a walk over the table for who ends in order: he destroys what he alone held.
pub fn who_ends_lets_go() {
    let pool = TestPool::new();
    let inherited = pool.create(1_u32).unwrap();
    let before = pool.stats().allocated;
    scope(|s| {
        let (pool, inherited) = (*pool, &inherited);
        let child = s.spawn(move || {
            let kept: Vec<_> = (0..100_u64).map(|i| pool.create(i).unwrap()).collect();
            std::mem::forget((kept, inherited.clone()));
        });
        child.unwrap().join().unwrap();
    });
    assert_eq!(*inherited, 1);
    assert_eq!(pool.stats().allocated, before);
    assert_sound(*pool);
}

/// Its handles are its parent's.
pub fn a_copy_of_which_no_handler_knows_lets_go_of_nothing() {
    let pool = TestPool::new();
    let object = pool.create(7_u64).unwrap();
    let before = pool.stats().allocated;
    // SAFETY: a fork of a process that has one thread.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        drop(object);
        leave(true);
    }
    assert_eq!(reap(child.try_into().unwrap()), 0);
    pool.recover();
    assert_eq!((*object, pool.stats().allocated), (7, before));
    assert_sound(*pool);
}

/// Where there is no memory for more entries.
pub fn a_free_entry_is_found_however_far_off_it_is() {
    let pool = TestPool::new();
    // As many as a table has that has grown in steps, and the search begins anew.
    let mut objects: Vec<_> = (0..12_800).map(|i: u64| pool.create(i).unwrap()).collect();
    drop(objects.remove(12_000));
    testing::refuse_commits(Some(0));
    let made = pool.create(1_u64);
    testing::refuse_commits(None);
    objects.push(made.unwrap());
    drop(objects);
    assert_sound(*pool);
}
