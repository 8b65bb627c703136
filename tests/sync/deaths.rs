//! When deaths are noticed, and what the waiting threads do then.

use std::io::{PipeReader, PipeWriter, pipe};
use std::process;
use std::sync::Barrier as Threads;
use std::time::{Duration, Instant};

use shmkit::inspect::{self, Observer};
use shmkit::process::{Scope, ScopedJoinHandle, scope};
use shmkit::{Barrier, LockError, Mailbox, Mutex, Pool, RwLock, Semaphore, ShmSafe};

use super::{LONG, listen, tell, tell_and_hang, until};

/// Threads of a crowd that have nothing but memory.
const CROWD: usize = 200;

type Pipe = (PipeReader, PipeWriter);

/// A child with many threads, each with memory of the pool. The last to come does something more and tells.
fn crowd<'s>(
    s: &'s Scope<'s, '_>,
    pool: Pool,
    pipe: &'s Pipe,
    last: impl Fn() + Copy + Send + Sync + 's,
) -> ScopedJoinHandle<'s, ()> {
    let child = s.spawn(move || {
        let all = Threads::new(CROWD + 1);
        std::thread::scope(|threads| {
            for _ in 0..CROWD {
                threads.spawn(|| {
                    std::mem::forget(pool.create(1_u32));
                    all.wait();
                    all.wait();
                });
            }
            all.wait();
            threads.spawn(|| {
                std::mem::forget(pool.create(1_u32));
                last();
                tell_and_hang(&pipe.1);
            });
        });
    });
    child.unwrap()
}

/// How many others than this process still have memory of their own, which are the dead.
fn dead_with_memory(pool: Pool) -> usize {
    let all = inspect::participants(pool);
    let ours = |one: &&inspect::Participant| one.slot == 0 || one.process == process::id();
    let others = all.iter().filter(|one| !ours(one));
    others.filter(|one| one.spans > 0).count()
}

#[track_caller]
fn memory_is_left(pool: Pool) {
    assert_eq!(dead_with_memory(pool), CROWD + 1);
    pool.recover();
    assert_eq!(dead_with_memory(pool), 0);
}

/// The permit of the last of many dead is back before the memory of the first.
pub fn permits_come_before_memory() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let semaphore = pool.create(Semaphore::new(1)).unwrap();
    let pipe = pipe().unwrap();
    scope(|s| {
        let child = crowd(s, pool, &pipe, || {
            std::mem::forget(semaphore.acquire().unwrap());
        });
        listen(&pipe.0);
        child.kill().unwrap();
        drop(semaphore.acquire().unwrap());
        memory_is_left(pool);
        child.join().unwrap_err();
    });
}

/// A party of a barrier is missed before the memory of the dead is seen to.
pub fn broken_before_memory() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let barrier = pool.create(Barrier::new(3)).unwrap();
    let pipe = pipe().unwrap();
    scope(|s| {
        let child = crowd(s, pool, &pipe, || {
            let _ = barrier.wait();
        });
        let pid = child.id().pid();
        let barrier = &barrier;
        let killer = s.spawn(move || {
            until("two wait", || {
                format!("{:?}", **barrier).contains("arrived: 2")
            });
            // SAFETY: sends a signal to a child of this one's parent, which has not reaped it.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        });
        barrier.wait().unwrap_err();
        memory_is_left(pool);
        killer.unwrap().join().unwrap();
        child.join().unwrap_err();
    });
}

/// A limit ends a wait for the living although many are dead.
pub fn a_limit_comes_before_memory() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let semaphore = pool.create(Semaphore::new(1)).unwrap();
    let mutex = pool.create(Mutex::new(0_u32)).unwrap();
    let pipe = pipe().unwrap();
    scope(|s| {
        let living = s.spawn(|| {
            let _guard = mutex.lock().unwrap();
            tell_and_hang(&pipe.1);
        });
        listen(&pipe.0);
        let child = crowd(s, pool, &pipe, || {
            std::mem::forget(semaphore.acquire().unwrap());
        });
        listen(&pipe.0);
        child.kill().unwrap();
        until("the dead are found", || {
            let waited = mutex.lock_timeout(Duration::from_millis(10));
            assert!(matches!(waited, Err(LockError::TimedOut)));
            semaphore.available_permits() == 1
        });
        memory_is_left(pool);
        child.join().unwrap_err();
        let living = living.unwrap();
        living.kill().unwrap();
        living.join().unwrap_err();
    });
}

/// A new thread that finds no slot free recovers all of the dead: those that come after it find theirs free.
pub fn a_new_thread_recovers_all_of_the_dead() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let mutex = pool.create(Mutex::new(0_u32)).unwrap();
    let pipe = pipe().unwrap();
    scope(|s| {
        let child = crowd(s, pool, &pipe, || ());
        listen(&pipe.0);
        child.kill().unwrap();
        until("dead", || child.is_finished());
        assert_eq!(dead_with_memory(pool), CROWD + 1);
        std::thread::scope(|threads| {
            threads.spawn(|| drop(mutex.lock().unwrap()));
        });
        assert_eq!(dead_with_memory(pool), 0);
        child.join().unwrap_err();
    });
}

/// What a thread of a process takes, which ends before the process is killed.
#[derive(ShmSafe)]
struct World {
    semaphore: Semaphore,
    mutex: Mutex<u32>,
    lock: RwLock<u32>,
    mailbox: Mailbox<u64>,
}

/// Has a thread of a child take something, end, and the child killed: who then only tries, again and again,
/// has it. Nobody else looks for the dead meanwhile.
fn tried(what: &str, take: fn(&World), try_it: fn(&World) -> bool) {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    let world = World {
        semaphore: Semaphore::new(1),
        mutex: Mutex::new(0),
        lock: RwLock::new(0),
        mailbox: Mailbox::new(4),
    };
    let world = pool.create(world).map_err(|error| error.cause).unwrap();
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s.spawn(|| {
            std::thread::scope(|threads| {
                threads.spawn(|| take(&world)).join().unwrap();
            });
            tell_and_hang(&writer);
        });
        listen(&reader);
        assert!(!try_it(&world));
        let child = child.unwrap();
        child.kill().unwrap();
        until(what, || try_it(&world));
        child.join().unwrap_err();
    });
}

pub fn tries_find_the_dead() {
    use std::mem::forget;
    tried(
        "a permit",
        |world| forget(world.semaphore.acquire().unwrap()),
        |world| world.semaphore.try_acquire().is_ok(),
    );
    tried(
        "no time for a permit",
        |world| forget(world.semaphore.acquire().unwrap()),
        |world| world.semaphore.acquire_timeout(Duration::ZERO).is_ok(),
    );
    tried(
        "a mutex",
        |world| forget(world.mutex.lock().unwrap()),
        |world| !matches!(world.mutex.try_lock(), Err(LockError::WouldBlock)),
    );
    tried(
        "no time for a mutex",
        |world| forget(world.mutex.lock().unwrap()),
        |world| {
            let now = world.mutex.lock_timeout(Duration::ZERO);
            !matches!(now, Err(LockError::TimedOut))
        },
    );
    tried(
        "to read what was written",
        |world| forget(world.lock.write().unwrap()),
        |world| !matches!(world.lock.try_read(), Err(LockError::WouldBlock)),
    );
    tried(
        "no time to read what was written",
        |world| forget(world.lock.write().unwrap()),
        |world| {
            let now = world.lock.read_timeout(Duration::ZERO);
            !matches!(now, Err(LockError::TimedOut))
        },
    );
    tried(
        "to write what was written",
        |world| forget(world.lock.write().unwrap()),
        |world| !matches!(world.lock.try_write(), Err(LockError::WouldBlock)),
    );
    tried(
        "to write what was read",
        |world| forget(world.lock.read().unwrap()),
        |world| world.lock.try_write().is_ok(),
    );
    tried(
        "a receiver",
        |world| forget(world.mailbox.receiver().unwrap()),
        |world| world.mailbox.receiver().is_ok(),
    );
}

/// The process lives on after the thread that used the pool first; its death is found at once all the same.
pub fn a_process_without_its_first_thread() {
    /// So many that to ask the system about all of them takes a second.
    const SLOTS: usize = 320;
    let (to_child, from_parent) = (pipe().unwrap(), pipe().unwrap());
    let name = format!("first-thread-{}", process::id());
    // SAFETY: this process has one thread, and no pool yet.
    let child = unsafe { libc::fork() };
    if child == 0 {
        listen(&to_child.0);
        let theirs = name.clone();
        let user = std::thread::spawn(move || {
            // SAFETY: made by a program of the same build.
            let pool = unsafe { Pool::open(&theirs) }.unwrap();
            let mutex = pool.named::<Mutex<u32>>("mutex").unwrap();
            std::mem::forget(mutex.lock().unwrap());
            let all = Threads::new(SLOTS);
            std::thread::scope(|threads| {
                for _ in 0..SLOTS {
                    threads.spawn(|| {
                        drop(pool.create(1_u32));
                        all.wait();
                    });
                }
            });
            std::mem::forget(mutex);
        });
        user.join().unwrap();
        tell_and_hang(&from_parent.1);
    }
    assert!(child > 0);
    let pool = Pool::builder()
        .max_participants(2 * SLOTS)
        .create_named(&name)
        .unwrap();
    let mutex = pool.named_or_create("mutex", || Mutex::new(1_u32)).unwrap();
    tell(&to_child.1);
    listen(&from_parent.0);
    let waited = mutex.lock_timeout(Duration::from_millis(50));
    assert!(matches!(waited, Err(LockError::TimedOut)));
    drop(waited);
    let processes = Observer::open(&name).unwrap().processes();
    let theirs = processes.iter().find(|one| one.process == child as u32);
    assert!(theirs.unwrap().alive);
    // SAFETY: a child of this process, not reaped yet.
    unsafe { libc::kill(child, libc::SIGKILL) };
    let began = Instant::now();
    let orphaned = matches!(mutex.lock(), Err(LockError::OwnerDied(_)));
    let took = began.elapsed();
    // SAFETY: as above; the status is not asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Pool::unlink(&name).unwrap();
    assert!(orphaned && took < Duration::from_millis(300), "{took:?}");
}

/// A process that has unmapped the pool, and left a guard behind, has no word there that the system could
/// mark. Its end is found out about all the same.
pub fn a_process_that_has_unmapped_the_pool() {
    let pipe = pipe().unwrap();
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    let mutex = pool.create(Mutex::new(1_u32)).unwrap();
    scope(|s| {
        let child = s.spawn::<_, ()>(|| {
            std::mem::forget(mutex.lock().unwrap());
            // SAFETY: nothing of this process is used any more: it is killed.
            unsafe { pool.unmap() };
            tell_and_hang(&pipe.1);
        });
        listen(&pipe.0);
        assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
        let child = child.unwrap();
        child.kill().unwrap();
        assert!(matches!(
            mutex.lock_timeout(LONG),
            Err(LockError::OwnerDied(_))
        ));
        assert!(child.join().is_err());
    });
}

/// How many reads this thread has asked the system for.
fn reads() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("syscr: "));
    line.unwrap().parse().unwrap()
}

/// Processes live on after the threads that used the pool first. Another of theirs that uses it tells of their
/// end from then on, so nobody who waits has to ask the system about each of them again and again.
pub fn processes_without_their_first_threads() {
    const CHILDREN: usize = 20;
    let (to_child, from_parent) = (pipe().unwrap(), pipe().unwrap());
    let name = format!("first-threads-{}", process::id());
    let lock = |name: &str| {
        // SAFETY: made by a program of the same build.
        let pool = unsafe { Pool::open(name) }.unwrap();
        drop(pool.named::<Mutex<u32>>("mutex").unwrap().lock().unwrap());
        pool
    };
    let child = || {
        // SAFETY: this process has one thread, and no pool yet.
        let child = unsafe { libc::fork() };
        if child == 0 {
            listen(&to_child.0);
            std::thread::scope(|threads| {
                threads.spawn(|| lock(&name)).join().unwrap();
            });
            lock(&name);
            tell_and_hang(&from_parent.1);
        }
        assert!(child > 0);
        child
    };
    let children: [_; CHILDREN] = std::array::from_fn(|_| child());
    let pool = Pool::builder().create_named(&name).unwrap();
    let mutex = pool.named_or_create("mutex", || Mutex::new(1_u32)).unwrap();
    for _ in children {
        tell(&to_child.1);
        listen(&from_parent.0);
    }
    let guard = mutex.lock().unwrap();
    let asked = std::thread::scope(|threads| {
        let waits = || {
            let before = reads();
            let waited = mutex.lock_timeout(Duration::from_millis(300));
            assert!(matches!(waited, Err(LockError::TimedOut)));
            drop(waited);
            reads() - before
        };
        threads.spawn(waits).join().unwrap()
    });
    drop(guard);
    for child in children {
        // SAFETY: a child of this process, not reaped yet; the status is not asked for.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
    Pool::unlink(&name).unwrap();
    // There is the slow check, of some of them, each 100 ms.
    assert!(asked < 400, "{asked} reads");
}

/// What the system marks when the thread ends is in a list, which does not lead to where the pool was.
pub fn a_thread_that_has_unmapped_the_pool() {
    let [pool, other] = [(); 2].map(|()| Pool::builder().create().unwrap());
    let mutex = pool.create(Mutex::new(1_u32)).unwrap();
    // So the process does not leave the pool.
    std::mem::forget(mutex.lock().unwrap());
    std::mem::forget(mutex);
    // SAFETY: what refers to it is used no more.
    unsafe { pool.unmap() };
    assert_eq!(*other.create(2_u32).unwrap(), 2);
}
