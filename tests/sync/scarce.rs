//! Deaths and waits when the system refuses the resources that handling them usually takes.

use std::alloc::{GlobalAlloc as _, Layout};
use std::cell::RefCell;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use shmkit::process::scope;
use shmkit::sync::{MutexGuard, Permit, ReadGuard};
use shmkit::{
    Array, LockError, Mutex, NoSlot, Pool, PrivateAlloc, Queue, RwLock, Semaphore, Shared, inspect,
};

use super::common::{fork, leave, reap, refuse};
use super::{LONG, shared, until};

/// A child that is dead and was not reaped is found dead by who cannot open its `/proc`.
pub fn a_death_is_seen_without_descriptors() {
    let mutex = shared(Mutex::new(1_u32));
    scope(|s| {
        let child = s.spawn::<_, ()>(|| {
            let _guard = mutex.lock();
            std::process::abort();
        });
        let child = child.unwrap();
        until("dead", || child.is_finished());
        let few = libc::rlimit {
            rlim_cur: 32,
            rlim_max: 32,
        };
        // SAFETY: reads the value.
        unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &few), 0) };
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        let locked = mutex.lock_timeout(LONG);
        assert!(matches!(locked, Err(LockError::OwnerDied(_))));
        drop((locked, files));
        assert!(child.join().is_err());
    });
}

/// A thread whose death the kernel would not mark can have no slot, and the pool's memory stays as it is.
pub fn who_can_have_no_slot_adds_none() {
    let pool = Pool::builder().create().unwrap();
    refuse(libc::SYS_get_robust_list, libc::EPERM);
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    let memory = || file.metadata().unwrap().blocks();
    let before = memory();
    assert_eq!(pool.purge(), Err(NoSlot));
    assert_eq!(memory(), before);
}

/// How often this thread has given the processor away to wait for something.
fn sleeps() -> i64 {
    let mut usage = MaybeUninit::uninit();
    // SAFETY: the call fills it in.
    unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init().ru_nvcsw
    }
}

/// Filters of system calls have words of their own for calls that they do not know.
pub fn waits_sleep_where_the_wait_is_refused() {
    let mutex = shared(Mutex::new(1_u32));
    for error in [libc::ENOSYS, libc::EPERM, libc::EINVAL] {
        refuse(libc::SYS_futex_waitv, error);
        let guard = mutex.lock().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| {
                let before = sleeps();
                let late = mutex.lock_timeout(Duration::from_millis(50));
                assert!(matches!(late, Err(LockError::TimedOut)));
                let slept = sleeps() - before;
                assert!(slept >= 10, "slept {slept} times");
            });
        });
        drop(guard);
    }
}

/// Services are hardened so that they cannot change their limits, and the same call tells these.
pub fn limits_need_not_be_told() {
    let pool = Pool::builder().create().unwrap();
    let object = pool.create(1_u32).unwrap();
    refuse(libc::SYS_prlimit64, libc::EPERM);
    // More than there is: the pool grows, in the middle of a change.
    let large = Array::filled_in(pool, 4 << 20, 1_u8).unwrap();
    assert_eq!(large.get(5), Ok(1));
    let other = Pool::builder().create().unwrap();
    assert_eq!(*other.create(2_u32).unwrap(), 2);
    let layout = Layout::new::<[u64; 8]>();
    // SAFETY: the block is freed where it came from, with the same layout.
    unsafe {
        let block = PrivateAlloc::new().alloc(layout);
        assert!(!block.is_null());
        PrivateAlloc::new().dealloc(block, layout);
    }
    drop((object, large));
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
}

/// Drops what it holds as one of the last things of its thread.
struct Late(RefCell<Option<Shared<u64>>>);

impl Drop for Late {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

thread_local! {
    static LATE: Late = const { Late(RefCell::new(None)) };
}

/// Nothing of a thread is left that uses a pool last when it has left it already.
pub fn a_handle_dropped_late_leaves_no_memory() {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    let used = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmData:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap()
    };
    let some_threads = || {
        for n in 0..100 {
            let thread = std::thread::spawn(move || {
                // Registered before the first use of the pool, so it ends after that.
                LATE.with(|late| late.0.replace(None));
                let object = pool.create(n).unwrap();
                LATE.with(|late| late.0.replace(Some(object)));
            });
            thread.join().unwrap();
        }
    };
    some_threads();
    let before = used();
    some_threads();
    let more = used() - before;
    assert!(more < 100, "{more} KiB");
}

/// Guards belong to their pool: one does not keep its thread from leaving another, and what a thread forgot
/// does not outlive the mapping.
pub fn guards_of_one_pool_are_not_anothers() {
    let kept = shared(Mutex::new(1_u32));
    let guard = kept.lock().unwrap();
    for forgotten in [false, true] {
        let other = Pool::builder().max_size(4 << 20).create().unwrap();
        let mutex = other.create(Mutex::new(2_u32)).unwrap();
        if forgotten {
            std::mem::forget(mutex.lock().unwrap());
        }
        drop(mutex);
        // SAFETY: nothing refers to it any more.
        unsafe { other.unmap() };
        // The next words to be marked are put before those that were there.
        let next = Pool::builder().max_size(4 << 20).create().unwrap();
        assert_eq!(*next.create(3_u32).unwrap(), 3);
    }
    drop(guard);
    assert!(scope(|s| s.spawn(|| ()).unwrap().join()).is_ok());
    assert_eq!(*kept.lock().unwrap(), 1);
}

thread_local! {
    static GUARDS: RefCell<Vec<Guards>> = const { RefCell::new(Vec::new()) };
}

type Guards = (
    MutexGuard<'static, u32>,
    ReadGuard<'static, u32>,
    Permit<'static>,
);

/// How many threads have a slot.
fn slots(pool: Pool) -> usize {
    let all = inspect::participants(pool);
    all.iter().filter(|one| one.slot != 0).count()
}

/// Guards that a thread-local has are given back by its destructor, also if it was made before the thread's
/// first use of the pool: then it runs after shmkit's own.
pub fn guards_are_dropped_late() {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    let world = (Mutex::new(1_u32), RwLock::new(1_u32), Semaphore::new(1));
    let world: &'static Shared<_> =
        Box::leak(Box::new(pool.create(world).map_err(|e| e.cause).unwrap()));
    let before = slots(pool);
    for _ in 0..10 {
        let thread = std::thread::spawn(move || {
            GUARDS.with_borrow_mut(Vec::clear);
            let (mutex, lock, semaphore) = &**world;
            let guards = (
                mutex.lock().unwrap(),
                lock.read().unwrap(),
                semaphore.acquire().unwrap(),
            );
            GUARDS.with_borrow_mut(|all| all.push(guards));
        });
        thread.join().unwrap();
        assert!(world.0.try_lock().is_ok());
        assert!(world.1.try_write().is_ok());
        assert_eq!(world.2.available_permits(), 1);
    }
    // Their slots are free again.
    assert!(slots(pool) <= before + 1);
    assert!(scope(|s| s.spawn(|| ()).unwrap().join()).is_ok());
}

/// What a thread or a process is to push when it ends.
static LAST: OnceLock<Shared<Queue<u32>>> = OnceLock::new();

struct Pushes(u32);

impl Drop for Pushes {
    fn drop(&mut self) {
        // A failure is seen by what is missing.
        let _ = LAST.get().map(|last| last.try_push(self.0));
    }
}

thread_local! {
    static PUSHES: Pushes = const { Pushes(1) };
}

extern "C" fn push_at_exit() {
    drop(Pushes(2));
}

/// The destructor of a thread-local that was made before the thread's first use of the pool, and what `atexit`
/// was told, use the pool as all else does, though the thread has left it by then; and then it has left again.
pub fn pools_are_used_late() {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    let last = LAST.get_or_init(|| pool.create(Queue::bounded(32)).unwrap());
    let before = slots(pool);
    for _ in 0..10 {
        let thread = std::thread::spawn(|| {
            PUSHES.with(|_| ());
            last.push(0).unwrap();
        });
        thread.join().unwrap();
        assert_eq!([last.try_pop(), last.try_pop()], [Ok(0), Ok(1)]);
    }
    assert!(slots(pool) <= before + 1);
    let Some(child) = fork() else {
        last.push(0).unwrap();
        // SAFETY: a function of this program.
        if unsafe { libc::atexit(push_at_exit) } != 0 {
            leave(false);
        }
        // SAFETY: this process has one thread.
        unsafe { libc::exit(0) }
    };
    assert_eq!(reap(child), 0);
    assert_eq!([last.try_pop(), last.try_pop()], [Ok(0), Ok(2)]);
    pool.recover();
    assert!(slots(pool) <= before + 1);
    assert!(pool.check_quiescent().is_ok());
}
