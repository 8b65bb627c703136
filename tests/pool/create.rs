//! Making pools: options, names, and creators that die.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use shmkit::{
    AttachError, ChangeError, CommitError, CreateError, NoSlot, Pool, PoolBuilder, SharedCell,
    UnlinkError,
};

use super::common::skip::skipped;
use super::common::{
    TestPool, allocate, assert_sound, fork, free, layout, leave, program, reap, refuse,
    role_succeeds, succeeded,
};

pub fn options() {
    let pool = TestPool::new();
    let stats = pool.stats();
    assert_eq!((stats.total, stats.maximum), (1 << 20, 984 << 30));
    assert!(!pool.huge_pages());
    let pool = TestPool::with(|b| {
        b.initial_size(3 << 20)
            .max_size(9 << 20)
            .huge_pages(true)
            .core_dumps(true)
    });
    let stats = pool.stats();
    assert_eq!((stats.total, stats.maximum), (3 << 20, 9 << 20));
    // Rounded: up, and down.
    let pool = TestPool::with(|b| b.initial_size(1).max_size((48 << 10) - 1));
    let stats = pool.stats();
    assert_eq!((stats.total, stats.maximum), (16 << 10, 32 << 10));
    // By default a small pool has from the start all that it can have.
    let small = TestPool::with(|b| b.max_size((48 << 10) - 1));
    let stats = small.stats();
    assert_eq!((stats.total, stats.maximum), (32 << 10, 32 << 10));
    let other = TestPool::new();
    assert_ne!(pool.uuid(), other.uuid());
    assert_ne!(pool.base(), other.base());
    assert_sound(*pool);
}

/// Pages of the pool's data that this process has mapped.
fn resident(pool: Pool) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", pool.base());
    let of_pool = maps.lines().skip_while(|line| !line.starts_with(&start));
    let rss = of_pool.skip(1).find_map(|line| line.strip_prefix("Rss:"));
    let kib = rss.unwrap().trim().strip_suffix("kB").unwrap().trim();
    kib.parse::<u64>().unwrap() << 10
}

pub fn prefaulted() {
    let lazy = TestPool::with(|b| b.initial_size(16 << 20));
    assert!(resident(*lazy) < 8 << 20);
    let eager = TestPool::with(|b| b.initial_size(16 << 20).prefault(true));
    assert!(resident(*eager) >= 16 << 20);
}

/// Not at the first touch of each page, when it is committed for somebody who needs it.
pub fn mapped_as_it_is_committed() {
    const SIZE: usize = 4 << 20;
    let pool = TestPool::with(|b| b.initial_size(SIZE));
    // First by growing, then where it was given back.
    for _ in 0..2 {
        let before = resident(*pool);
        let blocks = [(); 2].map(|()| allocate(*pool, SIZE));
        assert!(resident(*pool) >= before + SIZE as u64);
        blocks.into_iter().for_each(|block| free(*pool, block));
        pool.purge().unwrap();
    }
}

fn refused(options: impl FnOnce(PoolBuilder) -> PoolBuilder) -> CreateError {
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let error = options(Pool::builder()).create().unwrap_err();
    assert_eq!(descriptors(), before);
    error
}

pub fn invalid_sizes() {
    for (initial, max) in [
        (0, 1 << 20),
        (2 << 20, 1 << 20),
        (1, (16 << 10) - 1),
        (0, 0),
        (1 << 20, (984 << 30) + 1),
        (usize::MAX, usize::MAX),
        (1, usize::MAX),
    ] {
        match refused(|b| b.initial_size(initial).max_size(max)) {
            CreateError::InvalidSize { initial: i, max: m } => assert_eq!((i, m), (initial, max)),
            other => panic!("{initial}, {max}: {other:?}"),
        }
    }
    for max in [0, (16 << 10) - 1, usize::MAX] {
        let error = refused(|b| b.max_size(max));
        let invalid = matches!(error, CreateError::InvalidSize { max: m, .. } if m == max);
        assert!(invalid, "{max}: {error:?}");
    }
    let largest = TestPool::with(|b| b.max_size(984 << 30));
    assert_eq!(largest.stats().maximum, 984 << 30);
    let huge = refused(|b| b.initial_size(900 << 30));
    assert!(matches!(huge, CreateError::NoMemory(_)), "{huge:?}");
}

pub fn invalid_participants() {
    for count in [0, 4096, usize::MAX] {
        match refused(|b| b.max_participants(count)) {
            CreateError::InvalidParticipants { count: found } => assert_eq!(found, count),
            other => panic!("{other:?}"),
        }
    }
    for count in [1, 4095] {
        TestPool::with(|b| b.max_participants(count));
    }
}

pub fn bases() {
    for base in [
        0,
        4096,
        1 << 40,
        0x1fff << 32,
        0x2000_0000_1000,
        0x2080_0000_0000,
        0x5000_0000_0000,
        usize::MAX,
    ] {
        match refused(|b| b.base(base)) {
            CreateError::InvalidBase { base: found } => assert_eq!(found, base),
            other => panic!("{base:#x}: {other:?}"),
        }
    }
    for base in [0x2000_0000_0000, 0x4f00_0000_0000] {
        let pool = TestPool::with(|b| b.base(base));
        assert_eq!(pool.base(), base);
        let block = allocate(*pool, 100);
        assert!((base..base + (1 << 40)).contains(&block.addr().get()));
        free(*pool, block);
        match refused(|b| b.base(base)) {
            CreateError::AddressTaken { base: found } => assert_eq!(found, Some(base)),
            other => panic!("{other:?}"),
        }
    }
}

pub fn participants_are_limited() {
    let pool = TestPool::with(|b| b.max_participants(2));
    let shared = *pool;
    free(shared, allocate(shared, 8));
    let (go, gone) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|s| {
        let second = s.spawn(|| {
            free(shared, allocate(shared, 8));
            go.wait();
            gone.wait();
        });
        go.wait();
        let third = s.spawn(|| shared.allocate(layout(8, 8)).err());
        let refused = third.join().unwrap();
        assert_eq!(refused, Some(shmkit::AllocError::NoSlot(NoSlot)));
        gone.wait();
        // The scope alone would not wait for the thread to leave the pool.
        second.join().unwrap();
    });
    // Whoever ends makes room, however often.
    for _ in 0..20 {
        let next = std::thread::spawn(move || free(shared, allocate(shared, 8)));
        next.join().unwrap();
    }
    assert_sound(shared);
}

pub fn forty_eight_pools() {
    let pools: Vec<_> = (0..48).map(|_| TestPool::new()).collect();
    let refused = Pool::builder().create().unwrap_err();
    assert!(matches!(refused, CreateError::AddressTaken { base: None }));
    assert!(refused.to_string().contains("48"), "{refused}");
    drop(pools);
    TestPool::new();
}

/// What lies in a pool's granule is taken for a part of it: so no memory of a process does, wherever the kernel places that.
pub fn private_memory_is_no_pools() {
    const LEGACY_LAYOUT: libc::c_ulong = 0x0020_0000;
    let mut command = program("role_legacy_layout");
    // SAFETY: a system call between fork and exec. Refused, the layout is the usual one.
    unsafe {
        command.pre_exec(|| {
            libc::personality(LEGACY_LAYOUT);
            Ok(())
        })
    };
    succeeded(&command.output().unwrap());
}

pub fn role_legacy_layout() {
    // Too large for the heap's other place.
    let cells: Vec<_> = (0..100_000).map(|_| SharedCell::<u64>::new()).collect();
    let base = std::ptr::from_ref(&cells[0]).addr() & !((1 << 40) - 1);
    match Pool::builder().max_size(1 << 20).base(base).create() {
        Err(CreateError::AddressTaken { .. }) => {}
        Err(CreateError::InvalidBase { .. }) => return skipped("the legacy layout of memory"),
        other => panic!("{other:?}"),
    }
    let small = |_| Pool::builder().max_size(1 << 20).create();
    let pools: Vec<_> = (0..48).map_while(|i| small(i).ok()).collect();
    assert!(pools.len() > 40);
    let refused = cells[0].set(1).unwrap_err();
    assert_eq!(refused.cause, ChangeError::NotInPool);
}

/// A name for a test's own pool, and where its file is.
pub fn name(of: &str) -> (String, String) {
    let name = format!("test-{}-{of}", std::process::id());
    let path = format!("/dev/shm/shmkit.{name}");
    (name, path)
}

pub fn created_open_and_unlinked() {
    let (name, path) = name("created");
    let pool = TestPool::of(Pool::builder().create_named(&name).unwrap());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // SAFETY: our own pool.
    let again = unsafe { Pool::open(&name) }.unwrap();
    assert!(again == *pool, "the same handle");
    Pool::unlink(&name).unwrap();
    assert!(!fs::exists(&path).unwrap());
    // The pool lives on without its name.
    free(*pool, allocate(*pool, 5 << 20));
    // SAFETY: as above.
    match unsafe { Pool::open(&name) } {
        Err(AttachError::NotFound { path: found }) => assert_eq!(found, path),
        other => panic!("{other:?}"),
    }
    match Pool::unlink(&name) {
        Err(UnlinkError::NotFound { path: found }) => assert_eq!(found, path),
        other => panic!("{other:?}"),
    }
    let again = TestPool::of(Pool::builder().create_named(&name).unwrap());
    assert_ne!(again.uuid(), pool.uuid());
    Pool::unlink(&name).unwrap();
}

pub fn invalid_names() {
    let long = "x".repeat(201);
    let names = [
        "",
        ".",
        "..",
        "a/b",
        "/",
        "/dev/shm/",
        "/dev/shm/..",
        "a\0b",
        &long,
    ];
    for invalid in names {
        match Pool::builder().create_named(invalid) {
            Err(CreateError::InvalidName { name }) => assert_eq!(name, invalid),
            other => panic!("{invalid:?}: {other:?}"),
        }
        // SAFETY: there is no such pool.
        match unsafe { Pool::open(invalid) } {
            Err(AttachError::InvalidName { name }) => assert_eq!(name, invalid),
            other => panic!("{invalid:?}: {other:?}"),
        }
        match Pool::unlink(invalid) {
            Err(UnlinkError::InvalidName { name }) => assert_eq!(name, invalid),
            other => panic!("{invalid:?}: {other:?}"),
        }
    }
    let nowhere = Pool::builder().create_named("/no/such/directory/pool");
    match nowhere {
        Err(CreateError::System(why)) => {
            assert!(why.to_string().contains("/no/such/directory"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

/// Who may not make a file in memory is told so; a pool with a name needs none.
pub fn role_no_files_in_memory() {
    refuse(libc::SYS_memfd_create, libc::EPERM);
    match Pool::builder().create() {
        Err(CreateError::System(why)) => {
            assert_eq!(why.kind(), std::io::ErrorKind::PermissionDenied);
            assert!(why.to_string().contains("memfd_create"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let name = format!("no-memfd-{}", std::process::id());
    let pool = Pool::builder().create_named(&name);
    Pool::unlink(&name).unwrap();
    drop(TestPool::of(pool.unwrap()));
}

pub fn without_files_in_memory() {
    role_succeeds("role_no_files_in_memory");
}

pub fn a_taken_name() {
    let (name, path) = name("taken");
    fs::write(&path, "something else").unwrap();
    let taken = Pool::builder().create_named(&name);
    match taken {
        Err(CreateError::NameTaken { path: found }) => assert_eq!(found, path),
        other => panic!("{other:?}"),
    }
    for (name, path) in [(&*name, &*path), ("/dev/shm", "/dev/shm")] {
        match Pool::unlink(name) {
            Err(UnlinkError::NotAPool { path: found }) => assert_eq!(found, path),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    fs::remove_file(&path).unwrap();
    let pool = TestPool::of(Pool::builder().create_named(&name).unwrap());
    let taken = Pool::builder().create_named(&name);
    assert!(matches!(taken, Err(CreateError::NameTaken { .. })));
    Pool::unlink(&name).unwrap();
    assert_sound(*pool);
}

fn shm_files() -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir("/dev/shm").unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// Makes a named pool as soon as a line comes.
pub fn role_create() {
    let name = std::env::var("SHMKIT_TEST_NAME").unwrap();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    Pool::builder()
        .initial_size(32 << 20)
        .create_named(&name)
        .unwrap();
    println!("made");
}

pub fn a_creator_killed_at_any_time() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let (name, path) = name("killed");
    let (mut unfinished, mut finished) = (0, 0);
    // Killed later and later: at first before the pool has its name, at last after that.
    for step in 0.. {
        let mut creator = program("role_create")
            .env("SHMKIT_TEST_NAME", &name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(creator.stdout.take().unwrap());
        output.read_line(&mut String::new()).unwrap();
        creator.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let until = Instant::now() + Duration::from_micros(50 * step);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        creator.kill().unwrap();
        creator.wait().unwrap();
        // SAFETY: a pool of this program, if there is one.
        match unsafe { Pool::open(&name) } {
            Err(AttachError::NotFound { .. }) => {
                unfinished += 1;
                assert!(!fs::exists(&path).unwrap());
            }
            Ok(pool) => {
                let pool = TestPool::of(pool);
                finished += 1;
                assert_eq!(pool.stats().total, 32 << 20);
                assert_sound(*pool);
                Pool::unlink(&name).unwrap();
            }
            Err(other) => panic!("a half-made pool is found: {other:?}"),
        }
        if unfinished >= 10 && finished >= 3 {
            break;
        }
    }
    let prefix = format!("shmkit.test-{}", std::process::id());
    let left = shm_files();
    let left = left
        .iter()
        .find(|f| f.to_string_lossy().starts_with(&prefix));
    assert_eq!(left, None);
}

/// Where the system does not tell what is needed, nothing of a pool is left.
pub fn without_proc() {
    let directory = std::env::temp_dir().join(format!("shmkit-no-proc-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let Some(child) = fork() else {
        let root = std::ffi::CString::new(directory.to_str().unwrap()).unwrap();
        let earlier = Pool::builder().create().unwrap();
        // SAFETY: system calls of a child that has one thread.
        let changed = unsafe {
            (libc::chroot(root.as_ptr()) == 0)
                || (libc::unshare(libc::CLONE_NEWUSER) == 0 && libc::chroot(root.as_ptr()) == 0)
        };
        let refused = || {
            let created = Pool::builder().create();
            matches!(created, Err(CreateError::System(why)) if why.to_string().contains("/proc"))
        };
        // Nor does who has a pool from before begin to use it.
        let unused = || {
            let used = earlier.purge();
            used.is_err_and(|why| why.to_string().contains("the system refused"))
        };
        let of_none = |pool: Option<Pool>| pool.is_none_or(|pool| pool == earlier);
        let left = || (0x20..0x50).any(|granule| !of_none(Pool::containing(granule << 40)));
        if !changed {
            skipped("pools without /proc: this user may not change the root");
        }
        leave(!changed || ((0..2).all(|_| refused()) && unused() && !left()));
    };
    let status = reap(child);
    std::fs::remove_dir(directory).unwrap();
    assert_eq!(status, 0);
}

/// Neither a descriptor nor one of the 48 places.
pub fn without_memory_nothing_is_left() {
    for _ in 0..49 {
        let refused = Pool::builder().initial_size(900 << 30).create();
        let limited = matches!(
            refused,
            Err(CreateError::NoMemory(CommitError::MemoryLimit { .. }))
        );
        assert!(limited, "{refused:?}");
    }
}

/// What others have mapped would end them where they touch it.
pub fn a_pool_without_a_name_is_not_cut_off() {
    let pool = TestPool::new();
    let refused = rustix::fs::ftruncate(pool.fd(), 0);
    assert_eq!(refused, Err(rustix::io::Errno::PERM));
    assert_sound(*pool);
}
