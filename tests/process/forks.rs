//! Forks that somebody else makes, and what other handlers of forks do.

use std::alloc::Layout;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use shmkit::{HandleError, Pool};

use super::{open_descriptors, role_succeeds};

/// From here on, this process makes no other: the kernel answers as it does when there are too many.
fn refuse_forks() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut lines = [
        // The number of the call is the first word.
        line(LOAD, 0, 0, 0),
        line(EQUAL, 1, 0, libc::SYS_clone as u32),
        line(EQUAL, 0, 1, libc::SYS_clone3 as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: lines.len() as u16,
        filter: lines.as_mut_ptr(),
    };
    // SAFETY: the program is read, and lives until then.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            + libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

pub fn role_failing_fork() {
    let pool = Pool::builder().create().unwrap();
    let object = pool.create(7_u64).unwrap();
    refuse_forks();
    // SAFETY: there is no child.
    assert_eq!(unsafe { libc::fork() }, -1);
    // The only handle: nothing that was meant for a child keeps the object.
    let handle = object.handle();
    drop(object);
    assert!(
        matches!(handle.open(), Err(HandleError::Gone)),
        "it is held"
    );
    // And so for what is made and let go of after another one.
    let object = pool.create(8_u64).unwrap();
    // SAFETY: there is no child.
    assert_eq!(unsafe { libc::fork() }, -1);
    let handle = object.handle();
    assert_eq!(*handle.open().unwrap(), 8);
    drop(object);
    assert!(
        matches!(handle.open(), Err(HandleError::Gone)),
        "it is held"
    );
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn a_fork_that_fails_holds_nothing() {
    role_succeeds("role_failing_fork");
}

static DIES: AtomicBool = AtomicBool::new(false);

/// In a child, before it comes to life in any pool.
extern "C" fn die() {
    if DIES.load(Ordering::Relaxed) {
        // SAFETY: no memory is passed.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// Forks by the system's own call; how the child has ended.
fn forked() -> i32 {
    // SAFETY: this is the only thread, and the child ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no memory is passed.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: the status is written to.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    status
}

pub fn role_killed_on_its_way() {
    // Before the first pool: so it is called before the pool's own handler.
    // SAFETY: the handler does nothing that a child may not.
    let done = unsafe { libc::pthread_atfork(None, None, Some(die)) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let kept = pool.create(1_u64).unwrap();
    let descriptors = open_descriptors();
    DIES.store(true, Ordering::Relaxed);
    for _ in 0..50 {
        let object = pool.create(7_u64).unwrap();
        let handle = object.handle();
        assert_eq!(forked(), libc::SIGKILL);
        drop(object);
        // What the child would have had.
        assert_eq!(*handle.open().unwrap(), 7);
        pool.recover();
        let opened = handle.open();
        assert!(matches!(opened, Err(HandleError::Gone)), "it is held");
    }
    assert_eq!(open_descriptors(), descriptors);
    // Nobody recovers: the next fork does, so that no more records are in use than at once.
    (0..50).for_each(|_| assert_eq!(forked(), libc::SIGKILL));
    assert!(open_descriptors() <= descriptors + 1);
    DIES.store(false, Ordering::Relaxed);
    (0..50).for_each(|_| assert_eq!(forked(), 0));
    pool.recover();
    assert_eq!(open_descriptors(), descriptors);
    assert_eq!(*kept, 1);
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn a_child_that_is_killed_on_its_way_holds_nothing() {
    role_succeeds("role_killed_on_its_way");
}

static POOL: OnceLock<Pool> = OnceLock::new();
const WORD: Layout = Layout::new::<u64>();

/// Uses the pool, which its process has not used before.
extern "C" fn use_pool() {
    if let Some(pool) = POOL.get() {
        pool.allocate(WORD).unwrap();
    }
}

pub fn role_first_use() {
    // Before the first pool: so it is called after the pool's own handler.
    // SAFETY: the handler stays, and may be called before any fork.
    let done = unsafe { libc::pthread_atfork(Some(use_pool), None, None) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    POOL.set(pool).unwrap();
    // SAFETY: this is the only thread.
    match unsafe { libc::fork() } {
        0 => {
            let used = pool.allocate(WORD).is_ok() && pool.create(9_u64).is_ok();
            // SAFETY: no memory is passed.
            unsafe { libc::_exit(i32::from(!used)) };
        }
        child => {
            let mut status = -1;
            // SAFETY: the status is written to.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!((waited, status), (child, 0));
        }
    }
    // The child has ended without a word, as by a kill.
    let recovered = pool.recover();
    assert_eq!((recovered.threads, recovered.processes), (1, 1));
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn a_pool_is_used_first_while_the_process_forks() {
    role_succeeds("role_first_use");
}
