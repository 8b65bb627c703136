//! Pools in file systems without memory for all of them.

use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;

use shmkit::inspect::Observer;
use shmkit::{
    AllocError, AttachError, CommitError, CreateError, GrowError, ObjectError, Pool, testing,
};

use super::common::skip::skipped;
use super::common::{
    Random, TestPool, address, allocate, assert_sound, fill, filled_by_the_dead, free, layout,
    role_succeeds, verify,
};

pub fn a_full_file_system() {
    role_succeeds("role_full_file_system");
}

pub fn a_copy_takes_no_memory_that_the_machine_lacks() {
    role_succeeds("role_little_memory");
}

pub fn memory_that_is_free_elsewhere() {
    role_succeeds("role_free_elsewhere");
}

pub fn who_is_refused_takes_no_memory() {
    role_succeeds("role_refused");
}

pub fn what_a_dead_one_took_is_no_others() {
    role_succeeds("role_left_behind");
}

/// Mounts a tmpfs of 8 MiB that is seen by this process alone, and goes with it.
fn small_file_system() -> Option<tempdir::Temp> {
    let directory = tempdir::Temp::new();
    let path = CString::new(directory.0.as_str()).unwrap();
    let null = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: system calls with constants and a path; this process has one thread.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0
            && libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) != 0
        {
            let why = std::io::Error::last_os_error();
            assert_ne!(libc::geteuid(), 0, "root may mount: {why}");
            skipped(&format!(
                "a full file system: this user may not mount anything ({why})"
            ));
            return None;
        }
        assert_eq!(
            libc::mount(null, c"/".as_ptr(), null, private, null.cast()),
            0
        );
        let options = c"size=8m,mode=0700".as_ptr().cast();
        let kind = c"tmpfs".as_ptr();
        let mounted = libc::mount(kind, path.as_ptr(), kind, 0, options);
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
    }
    Some(directory)
}

mod tempdir {
    /// A directory that is removed at the end.
    pub struct Temp(pub String);

    impl Temp {
        pub fn new() -> Self {
            let pid = std::process::id();
            let path = std::env::temp_dir().join(format!("shmkit-test-{pid}"));
            std::fs::create_dir(&path).unwrap();
            Temp(path.to_str().unwrap().into())
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let path = std::ffi::CString::new(self.0.as_str()).unwrap();
            // SAFETY: a system call with a path.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
            std::fs::remove_dir(&self.0).unwrap();
        }
    }
}

/// So much that the tags of its slices take more than a page, of which making the pool touches one.
const UNTOUCHED: usize = 24 << 20;

/// The file of a pool to which nothing was ever written, nor to most of what is said of its slices.
fn untouched() -> File {
    let pool = TestPool::with(|b| b.initial_size(UNTOUCHED).max_size(UNTOUCHED));
    File::from(pool.fd().try_clone_to_owned().unwrap())
}

/// Copies a file, without what was never written to; the copy's path.
fn copy_sparsely(original: &File, directory: &str) -> String {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let path = format!("{directory}/copy");
    let copied = File::create_new(&path).unwrap();
    copied.set_len(original.metadata().unwrap().len()).unwrap();
    let mut end = 0;
    while let Ok(start) = seek(original, SeekFrom::Data(end)) {
        end = seek(original, SeekFrom::Hole(start)).unwrap();
        let mut run = vec![0; (end - start) as usize];
        original.read_exact_at(&mut run, start).unwrap();
        copied.write_all_at(&run, start).unwrap();
    }
    path
}

/// A copy in a file system that has no room for what it lacks.
fn a_copy_is_refused(original: &File, directory: &str) {
    let path = copy_sparsely(original, directory);
    let is_refused = || {
        // SAFETY: a pool of this program, that nobody uses.
        let refused = unsafe { Pool::open(&path) };
        let full = matches!(refused, Err(AttachError::NoMemory(CommitError::Full)));
        assert!(full, "{refused:?}");
    };
    // Who looks at it needs none of what it lacks, also once it was refused to the same process.
    without_memory(directory, || {
        let observer = Observer::open(&path).unwrap();
        for _ in 0..2 {
            let report = observer.check();
            assert!(report.is_ok(), "{report}");
            assert_eq!(observer.stats().total, UNTOUCHED);
            is_refused();
        }
    });
    // What was refused once has not got what it lacks.
    (0..2).for_each(|_| is_refused());
    std::fs::remove_file(path).unwrap();
}

pub fn role_full_file_system() {
    let file = untouched();
    let Some(directory) = small_file_system() else {
        return;
    };
    a_copy_is_refused(&file, &directory.0);
    let path = format!("{}/pool", directory.0);
    let pool = TestPool::of(Pool::builder().create_named(&path).unwrap());
    let kept = pool.create(5_u64).unwrap();
    let mut random = Random::new(3);
    let mut taken = Vec::new();
    let error = loop {
        let size = 8 + random.below(if taken.len() % 8 == 0 { 50_000 } else { 1000 });
        match pool.allocate(layout(size, 8)) {
            Ok(block) => {
                fill(block.cast(), size);
                taken.push(block.cast());
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error, AllocError::NoMemory(CommitError::Full));
    let full = pool.stats();
    assert!(full.total > 6 << 20, "{full:?}");
    assert!(matches!(
        pool.grow_to(1 << 30),
        Err(GrowError::NoMemory(CommitError::Full))
    ));
    match pool.create([1_u8; 60_000]) {
        Err(refused) => {
            assert_eq!(refused.value, [1; 60_000]);
            let cause = ObjectError::Alloc(AllocError::NoMemory(CommitError::Full));
            assert_eq!(refused.cause, cause);
        }
        Ok(_) => panic!("room for more"),
    }
    assert_sound(*pool);
    let other = format!("{}/other", directory.0);
    match Pool::builder().create_named(&other) {
        Err(CreateError::NoMemory(CommitError::Full)) => {}
        refused => panic!("{refused:?}"),
    }
    assert!(!std::fs::exists(&other).unwrap());
    for block in taken.drain(..) {
        verify(block);
        free(*pool, block);
    }
    assert_eq!(*kept, 5);
    // As much again, without growing.
    let made: Vec<_> = (0..1000_u64)
        .map(|i| pool.create([i; 100]).expect("room"))
        .collect();
    assert!(made.iter().zip(0..).all(|(object, i)| object[99] == i));
    drop(made);
    // Memory that is given back is the file system's again.
    pool.purge().unwrap();
    let second = TestPool::of(Pool::builder().create_named(&other).unwrap());
    free(*second, allocate(*second, 100_000));
    let shared = *pool;
    let thread = std::thread::spawn(move || free(shared, allocate(shared, 100_000)));
    thread.join().unwrap();
    assert_sound(*pool);
    drop(kept);
    assert_eq!(pool.stats().allocated, 0);
}

/// A copy for which the machine has no memory left, as far as it says.
pub fn role_little_memory() {
    const LEFT: u64 = 4 << 10;
    let file = untouched();
    let Some(directory) = small_file_system() else {
        return;
    };
    let path = copy_sparsely(&file, &directory.0);
    let says = format!("{}/meminfo", directory.0);
    // A mebibyte is never taken.
    let available = (LEFT + (1 << 20)) >> 10;
    std::fs::write(&says, format!("MemAvailable: {available} kB\n")).unwrap();
    let (says, null) = (CString::new(says).unwrap(), std::ptr::null());
    let meminfo = c"/proc/meminfo".as_ptr();
    // SAFETY: a system call with constants and a path.
    let bound = unsafe { libc::mount(says.as_ptr(), meminfo, null, libc::MS_BIND, null.cast()) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    let is_limited = |refused: AttachError| {
        let limited = CommitError::MemoryLimit { available: LEFT };
        let as_it_says = matches!(&refused, AttachError::NoMemory(error) if *error == limited);
        assert!(as_it_says, "{refused:?}");
    };
    // SAFETY: a pool of this program, that nobody uses.
    is_limited(unsafe { Pool::open(&path) }.unwrap_err());
    // Who looks at it needs a copy of the copy.
    is_limited(Observer::open(&path).map(drop).unwrap_err());
}

/// Does something with a pool in a file system, whose name goes before the next.
fn with_pool(directory: &str, does: impl FnOnce(Pool)) {
    let path = format!("{directory}/pool");
    let pool = Pool::builder().initial_size(1 << 20).create_named(&path);
    let pool = TestPool::of(pool.unwrap());
    does(*pool);
    assert_sound(*pool);
    Pool::unlink(&path).unwrap();
}

/// Leaves no memory in a file system, while something is done.
fn without_memory(directory: &str, does: impl FnOnce()) {
    with_memory(directory, 0, does);
}

/// Leaves so much memory in a file system, while something is done.
fn with_memory(directory: &str, left: u64, does: impl FnOnce()) {
    let path = format!("{directory}/filler");
    let mut file = File::create(&path).unwrap();
    let full = std::iter::repeat_with(|| file.write_all(&[1; 4096])).find_map(Result::err);
    assert_eq!(full.unwrap().kind(), ErrorKind::StorageFull);
    file.set_len(file.metadata().unwrap().len() - left).unwrap();
    does();
    std::fs::remove_file(&path).unwrap();
}

/// Who needs memory where there is none has that of what is free elsewhere in the pool, and of what the dead
/// had.
pub fn role_free_elsewhere() {
    /// Three slices.
    const RUN: usize = 48 << 10;
    let Some(directory) = small_file_system() else {
        return;
    };
    // To grow.
    with_pool(&directory.0, |pool| {
        let total = pool.stats().total;
        let runs: Vec<_> = (0..20).map(|_| allocate(pool, RUN)).collect();
        runs.iter().step_by(2).for_each(|&run| free(pool, run));
        without_memory(&directory.0, || free(pool, allocate(pool, 3 * RUN)));
        assert!(pool.stats().total > total);
        runs.iter()
            .skip(1)
            .step_by(2)
            .for_each(|&run| free(pool, run));
    });
    // For a table.
    with_pool(&directory.0, |pool| {
        let object = pool.create(1_u64).unwrap();
        pool.set_name("first", &object).unwrap();
        filled_by_the_dead(
            pool,
            1024,
            |_| true,
            || {
                testing::settle(pool);
                without_memory(&directory.0, || {
                    for number in 0..20 {
                        pool.set_name(&format!("name {number}"), &object).unwrap();
                    }
                });
            },
        );
    });
    // For slices that were free and gave their memory back.
    with_pool(&directory.0, |pool| {
        let first = allocate(pool, RUN);
        filled_by_the_dead(
            pool,
            1024,
            |_| true,
            || {
                testing::settle(pool);
                free(pool, first);
                pool.purge().unwrap();
                without_memory(&directory.0, || free(pool, allocate(pool, RUN)));
            },
        );
    });
}

pub fn role_refused() {
    const MIB: usize = 1 << 20;
    /// What is said of slices may be committed for the next growth.
    const TABLES: u64 = 128 << 10;
    let Some(directory) = small_file_system() else {
        return;
    };
    let file_of = |pool: Pool| File::from(pool.fd().try_clone_to_owned().unwrap());
    let refuses = |pool: Pool, size| {
        let memory = || file_of(pool).metadata().unwrap().blocks() * 512;
        let slices = || (pool.stats().total, pool.stats().committed);
        let (before, old) = (memory(), slices());
        let full = Err(AllocError::NoMemory(CommitError::Full));
        assert_eq!(pool.allocate(layout(size, 8)), full);
        assert_eq!(slices(), old);
        let after = memory();
        assert!(
            (before..=before + TABLES).contains(&after),
            "{before} bytes before, {after} after"
        );
    };
    // To grow: there is room for some of it.
    with_pool(&directory.0, |pool| refuses(pool, 16 * MIB));
    // For slices that gave theirs back: there is room for some of them.
    with_pool(&directory.0, |pool| {
        pool.grow_to(6 * MIB).unwrap();
        free(pool, allocate(pool, 5 * MIB));
        pool.purge().unwrap();
        with_memory(&directory.0, 9 * MIB as u64 / 2, || refuses(pool, 5 * MIB));
        free(pool, allocate(pool, 5 * MIB));
    });
}

/// One has died who was growing the pool: it had the memory, and had not said so. There is no more of it.
pub fn role_left_behind() {
    const MIB: u64 = 1 << 20;
    let Some(directory) = small_file_system() else {
        return;
    };
    with_pool(&directory.0, |pool| {
        let run = allocate(pool, 512 << 10);
        // The pool's first MiB begins at a multiple of that.
        let end = (address(run) - pool.base() as u64) / MIB * MIB + MIB;
        free(pool, run);
        let none = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(pool.fd(), none, end, 5 * MIB).unwrap();
        pool.grow_to(6 << 20).unwrap();
        free(pool, allocate(pool, 5 << 20));
    });
}
