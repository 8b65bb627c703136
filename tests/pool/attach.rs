//! Attaching: by name and by descriptor, and everything that is refused.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use shmkit::inspect::Observer;
use shmkit::process::scope;
use shmkit::sync::{LockError, Mutex};
use shmkit::{AttachError, Pool, RecoverySummary};

use super::common::skip::skipped;
use super::common::{
    TestPool, allocate, assert_sound, died, fill, free, program, succeeded, verify,
};
use super::create::name;

/// Attaches to what a file holds.
fn attach(fd: impl AsFd) -> Result<Pool, AttachError> {
    let fd = fd.as_fd().try_clone_to_owned().unwrap();
    // SAFETY: a pool of this program, or static garbage.
    unsafe { Pool::from_fd(fd) }
}

/// A pool's file with a few things in it, not mapped by anybody.
pub fn detached() -> File {
    let pool = TestPool::with(|b| b.max_size(8 << 20));
    let fd = pool.fd().try_clone_to_owned().unwrap();
    let kept = pool.create(41_u64).unwrap();
    pool.set_name("kept", &kept).unwrap();
    allocate(*pool, 100);
    allocate(*pool, 100_000);
    drop(kept);
    File::from(fd)
}

pub fn by_name_from_another_program() {
    let (name, _) = name("other");
    let pool = TestPool::of(Pool::builder().create_named(&name).unwrap());
    let counter = pool
        .named_or_create("counter", || AtomicU64::new(5))
        .unwrap();
    let output = program("role_by_name")
        .env("SHMKIT_TEST_NAME", &name)
        .output();
    succeeded(&output.unwrap());
    assert_eq!(counter.load(Ordering::Relaxed), 6);
    let made = pool.named::<[u32; 3]>("made there").unwrap();
    assert_eq!(*made, [1, 2, 3]);
    drop((made, counter));
    pool.recover();
    assert_sound(*pool);
    Pool::unlink(&name).unwrap();
}

pub fn role_by_name() {
    let name = std::env::var("SHMKIT_TEST_NAME").unwrap();
    // SAFETY: a pool of this program.
    let pool = unsafe { Pool::open(&name) }.unwrap();
    work_there(pool);
}

fn work_there(pool: Pool) {
    let counter = pool.named::<AtomicU64>("counter").unwrap();
    counter.fetch_add(1, Ordering::Relaxed);
    let made = pool.create([1_u32, 2, 3]).unwrap();
    pool.set_name("made there", &made).unwrap();
    let block = allocate(pool, 3 << 20);
    fill(block, 3 << 20);
    verify(block);
    free(pool, block);
}

pub fn by_descriptor_through_exec() {
    let pool = TestPool::new();
    let counter = pool
        .named_or_create("counter", || AtomicU64::new(5))
        .unwrap();
    let raw = pool.fd().as_raw_fd();
    let mut command = program("role_by_descriptor");
    command.env("SHMKIT_TEST_FD", raw.to_string());
    // SAFETY: clears a flag between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(raw, libc::F_SETFD, 0);
            Ok(())
        })
    };
    succeeded(&command.output().unwrap());
    assert_eq!(counter.load(Ordering::Relaxed), 6);
    assert_eq!(*pool.named::<[u32; 3]>("made there").unwrap(), [1, 2, 3]);
    drop(counter);
    pool.recover();
    assert_sound(*pool);
}

pub fn role_by_descriptor() {
    let raw = std::env::var("SHMKIT_TEST_FD").unwrap().parse().unwrap();
    // SAFETY: inherited for this purpose; a pool of this program.
    let pool = unsafe { Pool::from_fd(OwnedFd::from_raw_fd(raw)) }.unwrap();
    work_there(pool);
}

pub fn twice_in_one_process() {
    let pool = TestPool::new();
    assert!(attach(pool.fd()).unwrap() == *pool);
    let file = detached();
    let again = TestPool::of(attach(&file).unwrap());
    assert_eq!(*again.named::<u64>("kept").unwrap(), 41);
    assert!(attach(&file).unwrap() == *again);
    again.recover();
    assert_sound(*again);
}

pub fn memfd(content: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.write_all_at(content, 0).unwrap();
    file
}

pub fn not_a_pool() {
    let zeros = [0; 10_000];
    let contents = [
        &zeros[..],
        &zeros[..8],
        &zeros[..1],
        b"#!/bin/sh\n",
        b"shmkit\xf0\x02",
        b"nopool",
    ];
    for content in contents {
        let refused = attach(memfd(content));
        assert!(matches!(refused, Err(AttachError::NotAPool)), "{refused:?}");
    }
    let elf = File::open(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(attach(elf), Err(AttachError::NotAPool)));
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(matches!(attach(reader), Err(AttachError::NotAPool)));
    let directory = File::open("/dev/shm").unwrap();
    assert!(matches!(attach(directory), Err(AttachError::NotAPool)));
    // A pool that this process may not write.
    let file = detached();
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert!(matches!(attach(read_only), Err(AttachError::System(_))));
    let (name, path) = name("garbage");
    fs::write(&path, "no pool at all").unwrap();
    // SAFETY: static garbage.
    let refused = unsafe { Pool::open(&name) };
    fs::remove_file(&path).unwrap();
    assert!(matches!(refused, Err(AttachError::NotAPool)), "{refused:?}");
}

/// A copy of a pool's file, up to `len`, with holes where there is none, and where there are only zeros.
fn copy(original: &File, len: u64) -> File {
    use rustix::fs::{SeekFrom, seek};
    let made = memfd(&[]);
    made.set_len(len).unwrap();
    let mut at = 0;
    let mut buffer = [0; 4096];
    while let Ok(start) = seek(original, SeekFrom::Data(at)) {
        let end = seek(original, SeekFrom::Hole(start)).unwrap().min(len);
        at = start;
        while at < end {
            let step = buffer.len().min((end - at) as usize);
            let read = original.read_at(&mut buffer[..step], at).unwrap();
            if buffer[..read] != [0; 4096][..read] {
                made.write_all_at(&buffer[..read], at).unwrap();
            }
            at += read as u64;
        }
        if at >= len {
            break;
        }
    }
    made
}

pub fn truncated() {
    let file = detached();
    let whole = file.metadata().unwrap().len();
    let data = 40 << 30;
    assert_eq!(whole, data + (1 << 20));
    let lengths = [
        0,
        1,
        7,
        8,
        64,
        175,
        4095,
        4096,
        1 << 20,
        1 << 30,
        data,
        whole - 1,
    ];
    for len in lengths {
        match attach(copy(&file, len)) {
            Err(AttachError::Truncated { len: found, needed }) => {
                assert_eq!(found, len);
                assert!(needed > len && needed <= whole, "{len} of {needed}");
            }
            other => panic!("{len}: {other:?}"),
        }
    }
    let pool = TestPool::of(attach(copy(&file, whole)).unwrap());
    assert_eq!(*pool.named::<u64>("kept").unwrap(), 41);
}

/// Words of the header, by their places in `layout::header`.
const VERSION: u64 = 8;
const LAYOUT: u64 = 16;
const BASE: u64 = 24;
const MAX_SLICES: u64 = 32;
const MAX_SLOTS: u64 = 40;
const PID_NAMESPACE: u64 = 64;
const TIME_NAMESPACE: u64 = 72;
const FILE: u64 = 120;
const WATERMARKS: u64 = 128;
const EPOCH: u64 = 192;

/// What attaching says to a pool with one word of its header changed.
fn with_word(file: &File, at: u64, value: u64) -> AttachError {
    let mut old = [0; 8];
    file.read_exact_at(&mut old, at).unwrap();
    file.write_all_at(&value.to_ne_bytes(), at).unwrap();
    let outcome = attach(file);
    file.write_all_at(&old, at).unwrap();
    outcome.expect_err("the change is noticed")
}

pub fn other_version_or_layout() {
    let file = &detached();
    for version in [0, 1, 2, 3, u64::MAX] {
        match with_word(file, VERSION, version) {
            AttachError::OtherVersion { found } => assert_eq!(found, version),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        with_word(file, LAYOUT, 1),
        AttachError::OtherLayout
    ));
    assert!(matches!(with_word(file, 0, 1), AttachError::NotAPool));
    let other = with_word(file, PID_NAMESPACE, 1);
    assert!(matches!(other, AttachError::OtherPidNamespace), "{other:?}");
    let other = with_word(file, TIME_NAMESPACE, 1);
    assert!(
        matches!(other, AttachError::OtherTimeNamespace),
        "{other:?}"
    );
}

pub fn damaged_values() {
    let file = &detached();
    #[track_caller]
    fn damaged(file: &File, at: u64, value: u64, expected: &str) {
        match with_word(file, at, value) {
            AttachError::DamagedHeader { what } => assert_eq!(what, expected),
            other => panic!("{at} = {value:#x}: {other:?}"),
        }
    }
    for base in [0, 1 << 40, 0x2000_0000_1000, 0x5000_0000_0000, u64::MAX] {
        damaged(file, BASE, base, "its base address");
    }
    for slices in [0, 1 << 26, u64::MAX] {
        damaged(file, MAX_SLICES, slices, "its sizes");
    }
    damaged(file, MAX_SLICES, 63, "its watermarks");
    for slots in [0, 1, 4097, u64::MAX] {
        damaged(file, MAX_SLOTS, slots, "its sizes");
    }
    let limits = [2048, 4096, 1024, 1024, 16 << 20, 512];
    for (i, limit) in limits.into_iter().enumerate() {
        for value in [limit + 1, 1 << 32, u64::MAX] {
            damaged(file, WATERMARKS + 8 * i as u64, value, "its watermarks");
        }
    }
    // Within the limits, but more than there is memory for.
    damaged(file, WATERMARKS + 32, 1 << 20, "its watermarks");
    damaged(file, WATERMARKS + 40, 0, "its watermarks");
    // As many objects as there may be, but the file has no memory for them.
    damaged(file, WATERMARKS + 32, 16 << 20, "its watermarks");
    for epoch in [0, 1 << 62, u64::MAX] {
        damaged(file, EPOCH, epoch, "its epoch");
    }
    // As many slices as there may be, but the file has not grown to them.
    let short = with_word(file, WATERMARKS + 40, 512);
    assert!(matches!(short, AttachError::Truncated { .. }), "{short:?}");
    let pool = TestPool::of(attach(file).unwrap());
    assert_eq!(*pool.named::<u64>("kept").unwrap(), 41);
}

pub fn an_address_that_is_taken() {
    let file = detached();
    let mut base = [0; 8];
    file.read_exact_at(&mut base, BASE).unwrap();
    let base = usize::from_ne_bytes(base);
    // At the start, and the last page that the pool needs.
    for at in [base, base + (40 << 30) + (8 << 20) - 4096] {
        let wanted = std::ptr::with_exposed_provenance_mut(at);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping that replaces none.
        let taken = unsafe { libc::mmap(wanted, 4096, libc::PROT_READ, flags, -1, 0) };
        assert_eq!(taken, wanted);
        match attach(&file) {
            Err(AttachError::AddressTaken { base: from, end }) => {
                assert_eq!((from, end), (base, base + (40 << 30) + (8 << 20)));
            }
            other => panic!("{other:?}"),
        }
        // SAFETY: mapped above.
        assert_eq!(unsafe { libc::munmap(wanted, 4096) }, 0);
    }
    let pool = TestPool::of(attach(&file).unwrap());
    assert_eq!(*pool.named::<u64>("kept").unwrap(), 41);
}

/// What two threads answer that begin at the same moment.
fn at_once<A: Send, B: Send>(
    one: impl FnOnce() -> A + Send,
    other: impl FnOnce() -> B + Send,
) -> (A, B) {
    let together = &Barrier::new(2);
    thread::scope(|s| {
        let one = s.spawn(move || {
            together.wait();
            one()
        });
        together.wait();
        let other = other();
        (one.join().unwrap(), other)
    })
}

pub fn by_two_threads_at_once() {
    let file = detached();
    for _ in 0..500 {
        let (one, other) = at_once(|| attach(&file), || attach(&file));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.base(), other.base());
        // SAFETY: nothing refers to it, and the other thread has ended.
        unsafe { one.unmap() };
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    for _ in 0..500 {
        let (pool, observer) = at_once(|| attach(&file), || Observer::open(&path));
        let observer = observer.unwrap();
        // SAFETY: as above.
        unsafe { pool.unwrap().unmap() };
        assert!(observer.check().is_ok());
    }
    let pool = TestPool::of(attach(&file).unwrap());
    assert_eq!(*pool.named::<u64>("kept").unwrap(), 41);
}

/// Whoever looks at a pool has it where it is, as has who takes part; the last one takes it away.
pub fn observers_share_a_place() {
    let file = detached();
    let look = |file: &File| Observer::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let (one, other) = (look(&file).unwrap(), look(&file).unwrap());
    let objects = one.objects().len();
    assert_eq!(other.objects().len(), objects);
    // SAFETY: nothing in it is opened.
    match unsafe { other.into_copy() } {
        Err(AttachError::AddressTaken { base, .. }) => assert_eq!(base, one.info().base),
        other => panic!("{other:?}"),
    }
    let pool = attach(&file).unwrap();
    let made = pool.create(5_u64).unwrap();
    assert_eq!(one.objects().len(), objects + 1);
    let other = look(&file).unwrap();
    drop(one);
    drop(made);
    // SAFETY: nothing refers to it but the observer, who keeps the mapping.
    unsafe { pool.unmap() };
    assert_eq!(other.objects().len(), objects);
    assert!(other.check().is_ok());
    // A copy of it is another pool, beside which it does not fit.
    // SAFETY: nothing in it is opened.
    let copy = TestPool::of(unsafe { other.into_copy() }.unwrap());
    for refused in [look(&file).map(drop), attach(&file).map(drop)] {
        assert!(
            matches!(refused, Err(AttachError::AddressTaken { .. })),
            "{refused:?}"
        );
    }
    let base = copy.base();
    drop(copy);
    drop(look(&file).unwrap());
    // It is gone: what is another's fits there.
    let next = TestPool::with(|b| b.base(base).max_size(8 << 20));
    assert_sound(*next);
}

/// A file into which a longer pool is written while it is looked at: what is mapped is too short for that.
pub fn another_pool_in_a_file_that_is_looked_at() {
    let file = detached();
    let look = || Observer::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let base = look().unwrap().info().base;
    let longer = {
        let pool = TestPool::with(|b| b.base(base).max_size(1 << 30));
        File::from(pool.fd().try_clone_to_owned().unwrap())
    };
    let one = look().unwrap();
    let mut header = [0; 4096];
    longer.read_exact_at(&mut header, 0).unwrap();
    file.write_all_at(&header, 0).unwrap();
    let refused = look().map(drop);
    assert!(
        matches!(refused, Err(AttachError::AddressTaken { .. })),
        "{refused:?}"
    );
    drop(one);
    drop(look().unwrap());
    let next = TestPool::with(|b| b.base(base).max_size(8 << 20));
    assert_sound(*next);
}

/// Forks a child that makes new namespaces for its children; what a child of it answers. `None` if this user may
/// not make one.
fn in_another_namespace(
    kind: libc::c_int,
    before: impl FnOnce(),
    inside: impl FnOnce() -> i32,
) -> Option<i32> {
    const REFUSED: i32 = 77;
    // SAFETY: the child does what it is told to, in a process with one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        before();
        // SAFETY: changes what this child's own children see; the grandchild exits at once.
        let code = unsafe {
            if libc::unshare(kind) != 0 && libc::unshare(libc::CLONE_NEWUSER | kind) != 0 {
                REFUSED
            } else {
                let grandchild = libc::fork();
                if grandchild == 0 {
                    libc::_exit(inside());
                }
                let mut status = 0;
                libc::waitpid(grandchild, &mut status, 0);
                libc::WEXITSTATUS(status)
            }
        };
        // SAFETY: ends the child without the harness's destructors.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status));
    let code = libc::WEXITSTATUS(status);
    if code == REFUSED {
        skipped("pools in other PID namespaces: this user may not make one");
        return None;
    }
    Some(code)
}

/// Absent from the `libc` crate.
const CLONE_NEWTIME: libc::c_int = 0x80;

pub fn another_pid_namespace() {
    let file = detached();
    let attaches = || {
        let outcome = attach(&file);
        i32::from(!matches!(outcome, Err(AttachError::OtherPidNamespace)))
    };
    let code = in_another_namespace(libc::CLONE_NEWPID, || (), attaches);
    assert!(matches!(code, None | Some(0)), "{code:?}");
}

/// `/proc` is that of an outer namespace there. Who waits for a killed one goes on all the same, before that is
/// reaped.
pub fn a_namespace_whose_proc_is_anothers() {
    let goes_on = || {
        let pool = TestPool::new();
        let lock = pool.create(Mutex::new(1_u64)).unwrap();
        let next = scope(|s| {
            let lock = &lock;
            let holder = s.spawn(move || {
                std::mem::forget(lock.lock().unwrap());
                // SAFETY: ends this process.
                unsafe { libc::raise(libc::SIGKILL) };
            });
            let holder = holder.unwrap();
            while !holder.is_finished() {
                thread::yield_now();
            }
            let next = s.spawn(|| match lock.lock_timeout(Duration::from_secs(20)) {
                Err(LockError::OwnerDied(orphan)) => *orphan.into_guard(),
                _ => 0,
            });
            let next = next.unwrap().join();
            died(holder);
            next.unwrap()
        });
        i32::from(next != 1)
    };
    let code = in_another_namespace(libc::CLONE_NEWPID, || (), goes_on);
    assert!(matches!(code, None | Some(0)), "{code:?}");
}

/// Whom the pool's numbers or times mean nothing to does not take part: it would take living holders for dead, or
/// be taken for dead itself.
pub fn a_child_in_another_namespace() {
    for kind in [libc::CLONE_NEWPID, CLONE_NEWTIME] {
        let file = detached();
        // What it inherits would be nobody's.
        let takes_part = || {
            let pool = attach(&file).unwrap();
            std::mem::forget(pool.create(1_u64).unwrap());
        };
        let code = in_another_namespace(kind, takes_part, || 0);
        assert!(matches!(code, None | Some(70)), "{kind:#x}: {code:?}");
        // One that has the pool, and has not taken part yet.
        let has = Cell::new(None);
        let looks = || has.set(Some(attach(&file).unwrap()));
        let comes = || i32::from(has.get().unwrap().create(1_u64).is_ok());
        let code = in_another_namespace(kind, looks, comes);
        assert!(matches!(code, None | Some(0)), "{kind:#x}: {code:?}");
        let pool = TestPool::of(attach(&file).unwrap());
        assert!(pool.check().is_ok());
    }
}

/// Makes a time namespace that began later, and changes to it. False if this user may not.
fn change_times() -> bool {
    // SAFETY: changes what this process sees, which has one thread.
    unsafe {
        if libc::unshare(CLONE_NEWTIME) != 0 {
            return false;
        }
        fs::write("/proc/self/timens_offsets", "boottime 100000 0").unwrap();
        let times = File::open("/proc/self/ns/time_for_children").unwrap();
        libc::setns(times.as_raw_fd(), CLONE_NEWTIME) == 0
    }
}

/// Start times mean others to who has changed to another time namespace: he takes nobody for dead for that,
/// nor is he taken for dead.
pub fn a_process_that_changes_its_time_namespace() {
    const REFUSED: i32 = 77;
    let pool = TestPool::of(Pool::builder().create().unwrap());
    let held = pool.create(Mutex::new(1_u64)).unwrap();
    let guard = held.lock().unwrap();
    let (mut told, mut tell) = std::io::pipe().unwrap();
    let (mut go, mut let_go) = std::io::pipe().unwrap();
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let mut changed = || {
            if !change_times() {
                return REFUSED;
            }
            let nobody_died = pool.recover() == RecoverySummary::default();
            let is_held = matches!(held.try_lock(), Err(LockError::WouldBlock));
            let lives = thread::scope(|s| {
                let thread = s.spawn(|| {
                    // With a slot, until the parent has looked.
                    let block = allocate(*pool, 100);
                    tell.write_all(&[1]).unwrap();
                    go.read_exact(&mut [0]).unwrap();
                    free(*pool, block);
                });
                thread.join().is_ok()
            });
            i32::from(!(nobody_died && is_held && lives))
        };
        let code = changed();
        // SAFETY: ends the child without the harness's destructors.
        unsafe { libc::_exit(code) };
    }
    drop(tell);
    // Nothing comes from who was refused, or has failed.
    let uses = told.read(&mut [0]).unwrap() == 1;
    let recovered = pool.recover();
    if uses {
        assert_eq!(recovered, RecoverySummary::default());
        let_go.write_all(&[1]).unwrap();
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, REFUSED) => skipped("pools in other time namespaces: this user may not make one"),
        ended => assert_eq!(ended, (true, 0)),
    }
    drop(guard);
}

/// A pool that grows is as long as it says at every moment.
pub fn while_it_grows() {
    let (name, _) = name("growing");
    let builder = Pool::builder().initial_size(16 << 10).max_size(512 << 20);
    let pool = TestPool::of(builder.create_named(&name).unwrap());
    let done = AtomicU64::new(0);
    thread::scope(|s| {
        s.spawn(|| {
            for slices in 2..32_768 {
                pool.grow_to(slices << 14).unwrap();
            }
            done.store(1, Ordering::Relaxed);
        });
        while done.load(Ordering::Relaxed) == 0 {
            Observer::open(&name).unwrap();
        }
    });
    Pool::unlink(&name).unwrap();
}

/// To a copy, what was never written to is a hole.
pub fn a_copy_gets_what_it_lacks() {
    let original = detached();
    let memory =
        |file: &File| std::os::linux::fs::MetadataExt::st_blocks(&file.metadata().unwrap());
    let copied = copy(&original, original.metadata().unwrap().len());
    assert!(memory(&copied) < memory(&original) / 2);
    let pool = TestPool::of(attach(&copied).unwrap());
    assert!(memory(&copied) >= memory(&original));
    assert_eq!(*pool.named::<u64>("kept").unwrap(), 41);
    // It lies there now: what is given back stays so.
    let lies_in = |file: &File| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, FILE).unwrap();
        word
    };
    assert_ne!(lies_in(&copied), lies_in(&original));
    pool.purge().unwrap();
    let purged = memory(&copied);
    drop(pool);
    let pool = TestPool::of(attach(&copied).unwrap());
    assert!(memory(&copied) <= purged);
    assert_sound(*pool);
    // Of the tables as well, most may never have been written to.
    let new = TestPool::with(|b| b.max_size(8 << 20));
    let all = std::sync::Barrier::new(100);
    std::thread::scope(|s| {
        for _ in 0..100 {
            s.spawn(|| {
                new.create(0_u8).unwrap();
                all.wait();
            });
        }
    });
    let original = File::from(new.fd().try_clone_to_owned().unwrap());
    drop(new);
    let copied = copy(&original, original.metadata().unwrap().len());
    let pool = TestPool::of(attach(&copied).unwrap());
    assert!(memory(&copied) >= memory(&original));
    assert_sound(*pool);
}

/// Each process does so for itself.
pub fn who_attaches_leaves_it_out_of_dumps() {
    let file = detached();
    let pool = TestPool::of(attach(&file).unwrap());
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (_, mapping) = smaps.split_once(&format!("{:x}-", pool.base())).unwrap();
    let flags = mapping.lines().find(|line| line.starts_with("VmFlags"));
    assert!(flags.unwrap().contains(" dd"), "{flags:?}");
}

/// Nobody removes its name, whichever way it came.
pub fn a_pool_that_others_made_is_in_use() {
    use shmkit::inspect::{Removable, RemoveError, remove};
    let (name, path) = name("descriptor");
    drop(TestPool::of(Pool::builder().create_named(&name).unwrap()));
    let by_descriptor = || attach(File::options().read(true).write(true).open(&path).unwrap());
    // SAFETY: a pool of this program.
    let by_name = || unsafe { Pool::open(&name) };
    let ways: [&dyn Fn() -> Result<Pool, AttachError>; 2] = [&by_descriptor, &by_name];
    for comes in ways {
        let pool = TestPool::of(comes().unwrap());
        let refused = remove(&name, Removable::Pool);
        assert!(
            matches!(refused, Err(RemoveError::InUse { .. })),
            "{refused:?}"
        );
        drop(pool);
    }
    remove(&name, Removable::Pool).unwrap();
}
