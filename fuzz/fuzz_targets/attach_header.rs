//! A pool's file with words of its header changed: an error, or a pool that answers.
#![no_main]

use std::alloc::Layout;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use shmkit::Pool;
use shmkit_fuzz::Steps;

/// Words of the header that are changed: all that are in use.
const WORDS: u64 = 56;

/// The file of a small pool with a few things in it.
fn file() -> File {
    let builder = Pool::builder().initial_size(64 << 10).max_size(1 << 20);
    let pool = builder.create().unwrap();
    let number = pool.named_or_create("number", || 7_u64).unwrap();
    pool.allocate(Layout::new::<[u8; 100]>()).unwrap();
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    drop(number);
    // SAFETY: nothing refers to the pool.
    unsafe { pool.unmap() };
    file
}

fuzz_target!(|changes: Steps<(u8, u64)>| {
    let file = file();
    for (word, value) in changes.0 {
        let at = u64::from(word) % WORDS * 8;
        file.write_all_at(&value.to_ne_bytes(), at).unwrap();
    }
    let fd = file.as_fd().try_clone_to_owned().unwrap();
    // SAFETY: static garbage.
    let Ok(pool) = (unsafe { Pool::from_fd(fd) }) else {
        return;
    };
    let _ = (
        pool.names(),
        pool.stats(),
        pool.check(),
        pool.check_quiescent(),
    );
    pool.recover();
    if let Ok(made) = pool.create(5_u64) {
        assert_eq!(*made, 5);
    }
    if let Ok(number) = pool.named::<u64>("number") {
        std::hint::black_box(*number);
    }
    let _ = pool.remove_name("number");
    // SAFETY: nothing refers to the pool.
    unsafe { pool.unmap() };
});
