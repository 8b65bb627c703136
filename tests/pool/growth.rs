//! Pools that grow, and what stops them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shmkit::inspect::Observer;
use shmkit::process::scope;
use shmkit::{
    AllocError, AttachError, ChangeError, CommitError, CreateError, GrowError, HashMap, Pool,
};

use super::common::skip::skipped;
use super::common::{
    Random, TestPool, address, allocate, assert_sound, block_at, fill, free, layout, role_succeeds,
    verify,
};

pub fn four_gib_by_four_processes() {
    const GIB: usize = 1 << 30;
    const WORKERS: usize = 4;
    const WORDS: usize = 8192;
    let started = Instant::now();
    let pool = TestPool::with(|b| b.initial_size(1 << 20).max_size(8 * GIB));
    let table = pool.create([const { AtomicU64::new(0) }; WORDS]).unwrap();
    // Bytes so far, words so far, workers that are done.
    let counts = pool.create([const { AtomicU64::new(0) }; 3]).unwrap();
    let fixed = pool.stats().allocated;
    let worker = |pool: Pool, me: usize| {
        let mut random = Random::new(me as u64 + 1);
        while counts[0].load(Ordering::Relaxed) < 4 * GIB as u64 {
            let size = 300_000 + random.below(3 << 20);
            let block = allocate(pool, size);
            mark(block, size, me);
            counts[0].fetch_add(size as u64, Ordering::Relaxed);
            let i = counts[1].fetch_add(1, Ordering::Relaxed) as usize;
            table[i].store(address(block), Ordering::Release);
        }
        counts[2].fetch_add(1, Ordering::AcqRel);
        while counts[2].load(Ordering::Acquire) < WORKERS as u64 {
            std::thread::yield_now();
        }
        // What others made, in memory that was added by others.
        let end = counts[1].load(Ordering::Relaxed) as usize;
        let mut others = 0;
        for word in table[..end].iter().skip(me).step_by(WORKERS) {
            let block = block_at(word.load(Ordering::Acquire)).unwrap();
            others += usize::from(check_mark(block) != me);
        }
        others
    };
    scope(|s| {
        let (pool, worker) = (*pool, &worker);
        let workers = [0, 1, 2, 3].map(|me| s.spawn(move || worker(pool, me)).unwrap());
        for worker in workers {
            assert!(worker.join().unwrap() > 50);
        }
    });
    let full = pool.stats();
    assert!(full.allocated >= 4 * GIB, "{full:?}");
    scope(|s| {
        let (pool, table) = (*pool, &table);
        for me in 0..WORKERS {
            let child = s.spawn(move || {
                for word in table.iter().skip(me).step_by(WORKERS) {
                    if let Some(block) = block_at(word.load(Ordering::Acquire)) {
                        free(pool, block);
                    }
                }
            });
            child.unwrap();
        }
    });
    assert_eq!(pool.stats().allocated, fixed);
    pool.purge().unwrap();
    assert_sound(*pool);
    println!("  {} MiB in {:.1?}", full.total >> 20, started.elapsed());
}

/// Writes who made the block, its length, and a word a page.
fn mark(block: std::ptr::NonNull<u8>, size: usize, me: usize) {
    let words = block.cast::<[u64; 2]>();
    // SAFETY: a new block of `size` bytes, larger than a page.
    unsafe {
        words.write([size as u64, me as u64]);
        for page in (4096..size - 8).step_by(4096) {
            block.add(page).cast::<u64>().write((page ^ me) as u64);
        }
    }
}

fn check_mark(block: std::ptr::NonNull<u8>) -> usize {
    // SAFETY: a block that `mark` wrote and nobody changes.
    unsafe {
        let [size, me] = block.cast::<[u64; 2]>().read();
        for page in (4096..size as usize - 8).step_by(4096) {
            let word = block.add(page).cast::<u64>().read();
            assert_eq!(word, page as u64 ^ me, "at {page} of {block:?}");
        }
        me as usize
    }
}

pub fn grow_to() {
    let pool = TestPool::with(|b| b.max_size(64 << 20));
    pool.grow_to(10 << 20).unwrap();
    assert_eq!(pool.stats().total, 10 << 20);
    pool.grow_to(5 << 20).unwrap();
    assert_eq!(pool.stats().total, 10 << 20, "never smaller");
    pool.grow_to((10 << 20) + 1).unwrap();
    assert_eq!(pool.stats().total, (10 << 20) + (16 << 10));
    assert_eq!(
        pool.grow_to((64 << 20) + 1),
        Err(GrowError::AboveMaximum { max: 64 << 20 })
    );
    assert!(matches!(
        pool.grow_to(usize::MAX),
        Err(GrowError::AboveMaximum { .. })
    ));
    // Seen by others at once.
    scope(|s| {
        let pool = *pool;
        let child = s.spawn(move || pool.grow_to(64 << 20).unwrap());
        child.unwrap().join().unwrap();
    });
    assert_eq!(pool.stats().total, 64 << 20);
    let block = allocate(*pool, 60 << 20);
    fill(block, 60 << 20);
    free(*pool, block);
    assert_sound(*pool);
}

pub fn more_than_there_is_memory() {
    let pool = TestPool::new();
    let block = allocate(*pool, 1000);
    fill(block, 1000);
    let before = pool.stats();
    match pool.grow_to(900 << 30) {
        Err(GrowError::NoMemory(CommitError::MemoryLimit { available })) => {
            assert!(available < 900 << 30);
        }
        other => panic!("{other:?}"),
    }
    match pool.allocate(layout(900 << 30, 8)) {
        Err(AllocError::NoMemory(CommitError::MemoryLimit { .. })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.stats(), before);
    verify(block);
    free(*pool, block);
    assert_sound(*pool);
}

pub fn a_memory_limit() {
    role_succeeds("role_memory_limit");
}

/// Fills a control group with a memory limit: refused, where more would have this process killed.
pub fn role_memory_limit() {
    const LIMIT: usize = 64 << 20;
    const MIB: usize = 1 << 20;
    let pool = TestPool::with(|b| b.max_size(1 << 30));
    let Some(group) = Group::with_limit(LIMIT) else {
        return;
    };
    let fill_up = || {
        let mut taken = Vec::new();
        loop {
            match pool.allocate(layout(MIB, 8)) {
                Ok(block) => {
                    fill(block.cast(), MIB);
                    taken.push(block.cast());
                }
                Err(AllocError::NoMemory(CommitError::MemoryLimit { .. })) => break taken,
                other => panic!("{other:?}"),
            }
        }
    };
    let give_back = |taken: Vec<_>| {
        for block in taken {
            verify(block);
            free(*pool, block);
        }
        pool.purge().unwrap();
    };
    let all = fill_up();
    assert!((32..64).contains(&all.len()), "{} MiB", all.len());
    give_back(all);
    // What was given back is had again as far as there is memory: somebody else has some of it.
    let other = std::hint::black_box(vec![1_u8; 32 * MIB]);
    let some = fill_up();
    assert!((8..32).contains(&some.len()), "{} MiB", some.len());
    assert_eq!(other[LIMIT / 3], 1);
    give_back(some);
    assert_sound(*pool);
    drop(other);
    // In small steps too, something is left for page tables and for this process.
    for _ in 0..3 {
        let map = pool.create(HashMap::<u64, [u64; 100]>::new()).unwrap();
        let refused = (0..).find_map(|key| map.insert(&key, [key; 100]).err());
        let cause = refused.unwrap().cause;
        let limited = matches!(
            cause,
            ChangeError::Alloc(AllocError::NoMemory(CommitError::MemoryLimit { .. }))
        );
        assert!(limited, "{cause}");
        drop(map);
        pool.recover();
        pool.purge().unwrap();
    }
    // Nor is more copied than there is room for.
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    fill(allocate(*pool, 32 * MIB), 32 * MIB);
    drop(pool);
    let observer = Observer::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    // SAFETY: nothing in it is opened.
    let refused = unsafe { observer.into_copy() };
    let limited = matches!(
        refused,
        Err(AttachError::NoMemory(CommitError::MemoryLimit { .. }))
    );
    assert!(limited, "{refused:?}");
    drop(group);
}

/// A control group with this process alone, until it is dropped.
struct Group {
    own: PathBuf,
    parent: PathBuf,
}

impl Group {
    fn with_limit(bytes: usize) -> Option<Group> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let parent = |root: &str, controllers: &str| {
            let mut lines = groups.lines();
            let of = |line: &str| {
                let (has, path) = line.split_once(':')?.1.split_once(':')?;
                (has == controllers).then(|| PathBuf::from(format!("{root}{path}")))
            };
            lines.find_map(of)
        };
        let made = [
            ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "", "memory.max"),
        ]
        .into_iter()
        .find_map(|(root, controllers, limit)| {
            let parent = parent(root, controllers)?;
            let own = parent.join(format!("shmkit-test-{}", std::process::id()));
            std::fs::create_dir(&own).ok()?;
            let group = Group { own, parent };
            std::fs::write(group.own.join(limit), bytes.to_string()).ok()?;
            group.take_in(&group.own).then_some(group)
        });
        if made.is_none() {
            skipped("a limit of memory: this user may not make a control group");
        }
        made
    }

    fn take_in(&self, group: &Path) -> bool {
        let pid = std::process::id().to_string();
        std::fs::write(group.join("cgroup.procs"), pid).is_ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.take_in(&self.parent);
        let _ = std::fs::remove_dir(&self.own);
    }
}

pub fn a_limit_of_file_sizes() {
    role_succeeds("role_file_size");
}

/// Where there is not so much address space, who makes a pool is told so, and so is who attaches one.
pub fn role_address_space() {
    let pool = Pool::builder().create().unwrap();
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    // SAFETY: nothing was made in it, and nobody else has it.
    unsafe { pool.unmap() };
    let current = Some(64 << 30);
    let before = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current, ..before }).unwrap();
    let names_the_limit = |why: &std::io::Error| {
        assert_eq!(why.kind(), std::io::ErrorKind::OutOfMemory);
        assert!(why.to_string().contains("RLIMIT_AS"), "{why}");
    };
    match Pool::builder().create() {
        Err(CreateError::System(why)) => names_the_limit(&why),
        other => panic!("{other:?}"),
    }
    // SAFETY: a pool of this program, that nobody uses.
    match unsafe { Pool::from_fd(file.into()) } {
        Err(AttachError::System(why)) => names_the_limit(&why),
        other => panic!("{other:?}"),
    }
    // There is room for a small one.
    drop(TestPool::with(|b| b.max_size(1 << 30)));
}

pub fn a_limit_of_address_space() {
    role_succeeds("role_address_space");
}

/// Lets this process make files of so many bytes; what the limit was.
fn limit_files(bytes: Option<u64>) -> Option<u64> {
    let before = getrlimit(Resource::Fsize);
    let current = bytes;
    setrlimit(Resource::Fsize, Rlimit { current, ..before }).unwrap();
    before.current
}

pub fn role_file_size() {
    const MORE: usize = 3 << 20;
    let too_large = CommitError::System(libc::EFBIG);
    let pool = TestPool::of(Pool::builder().create().unwrap());
    let kept = pool.create(5_u64).unwrap();
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    let (before, len) = (pool.stats().total, file.metadata().unwrap().len());
    let unlimited = limit_files(Some(len + MORE as u64));
    match pool.grow_to(1 << 30) {
        Err(GrowError::NoMemory(error)) => assert_eq!(error, too_large),
        other => panic!("{other:?}"),
    }
    assert_eq!(file.metadata().unwrap().len(), len);
    let mut taken = Vec::new();
    let error = loop {
        match pool.allocate(layout(50_000, 8)) {
            Ok(block) => {
                fill(block.cast(), 50_000);
                taken.push(block.cast());
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error, AllocError::NoMemory(too_large));
    // To the last slice that fits.
    assert_eq!(pool.stats().total, before + MORE);
    assert_sound(*pool);
    for limit in [0, 1 << 20] {
        limit_files(Some(limit));
        let name = format!("limited-{}", std::process::id());
        for refused in [
            Pool::builder().create(),
            Pool::builder().create_named(&name),
        ] {
            match refused {
                Err(CreateError::NoMemory(error)) => {
                    assert_eq!(error, too_large);
                    assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(!std::fs::exists(format!("/dev/shm/shmkit.{name}")).unwrap());
    }
    for block in taken.drain(..) {
        verify(block);
        free(*pool, block);
    }
    // What the file is long enough for is had again, also after it was given back.
    pool.purge().unwrap();
    free(*pool, allocate(*pool, MORE / 2));
    limit_files(unlimited);
    pool.grow_to(16 << 20).unwrap();
    assert_eq!(*kept, 5);
    assert_sound(*pool);
    drop(kept);
    drop(pool);
    // Nor is there room for a copy.
    let observer = Observer::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    limit_files(Some(1 << 20));
    // SAFETY: nothing in it is opened.
    match unsafe { observer.into_copy() } {
        Err(AttachError::System(error)) => assert_eq!(error.raw_os_error(), Some(libc::EFBIG)),
        other => panic!("{other:?}"),
    }
}
