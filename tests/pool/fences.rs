//! Fences on all threads at once: who takes part, and what is without them.

use std::fs;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use shmkit::inspect::Observer;
use shmkit::{AttachError, HashMap, Pool};

use super::attach::{attach, detached, passed_on, succeeds_with};
use super::common::skip::skipped;
use super::common::{TestPool, assert_sound, fork, leave, reap};
use super::create::name;
use super::damaged_maps::SUCCESSOR;
use super::damaged_words::word;

/// Calls `membarrier`; its answer, -1 for an error.
fn membarrier(command: libc::c_int) -> i64 {
    // SAFETY: no memory is handed over.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

/// What the kernel says where a container does not allow a call.
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// Has the kernel answer `membarrier` so, in this process. False if it cannot.
fn answer_membarrier(answer: u32) -> bool {
    let code = |operation: u32, yes: u8, no: u8, value: u32| libc::sock_filter {
        code: operation as u16,
        jt: yes,
        jf: no,
        k: value,
    };
    let number = libc::SYS_membarrier as u32;
    let mut filter = [
        // The call's number is the first word of what there is to look at.
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, whose instructions are this frame's.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    }
}

/// Runs `case` in a child that is answered so if it calls `membarrier`; how that ended. `None` where all are refused it,
/// or nobody can be.
fn with_membarrier(answer: u32, case: impl FnOnce()) -> Option<i32> {
    /// What a child says that could not be refused it.
    const NOT_REFUSED: i32 = 2;
    let query = libc::MEMBARRIER_CMD_QUERY;
    if membarrier(query) & i64::from(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED) <= 0 {
        return None;
    }
    let Some(child) = fork() else {
        if !answer_membarrier(answer) {
            // SAFETY: ends this process.
            unsafe { libc::_exit(NOT_REFUSED) };
        }
        leave(catch_unwind(AssertUnwindSafe(case)).is_ok());
    };
    let status = reap(child);
    (libc::WEXITSTATUS(status) != NOT_REFUSED).then_some(status)
}

/// What a test lacks where [`with_membarrier`] is none.
const NOT_REFUSED: &str =
    "pools of processes that are refused membarrier: no process can be, or all are";

/// Fills the map, so that it grows, and takes away what was there, so that it shrinks, from table to table.
fn turn_over(map: &HashMap<u64, u64>, keys: std::ops::Range<u64>) {
    for key in keys.clone() {
        map.insert(&key, !key).unwrap();
    }
    for key in keys.clone() {
        assert_eq!(map.remove(&key).as_deref(), Some(&!key));
    }
    assert!(keys.into_iter().all(|key| map.get(&key).is_none()));
}

pub fn without_a_fence_on_all_threads() {
    let file = detached();
    let (name, path) = name("fenced");
    let ended = with_membarrier(REFUSED, || {
        let refused = attach(&file);
        assert!(
            matches!(refused, Err(AttachError::NoBarrier)),
            "{refused:?}"
        );
        // A copy is nobody else's.
        let observer = Observer::open(&format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        // SAFETY: checked, and no more.
        let copy = TestPool::of(unsafe { observer.into_copy() }.unwrap());
        assert_sound(*copy);
        let pool = Pool::builder().create_named(&name).unwrap();
        let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
        turn_over(&map, 0..20_000);
        pool.set_name("map", &map).unwrap();
    });
    // SAFETY: a pool of this program.
    let pool = unsafe { Pool::open(&name) };
    let _ = fs::remove_file(path);
    match ended {
        None => return skipped(NOT_REFUSED),
        Some(status) => assert_eq!(status, 0),
    }
    // Who has the fence does without, too.
    let pool = TestPool::of(pool.unwrap());
    let map = pool.named::<HashMap<u64, u64>>("map").unwrap();
    turn_over(&map, 10_000..40_000);
    drop(map);
    pool.recover();
    assert_eq!(pool.stats().retired.held_back, 0);
    assert_sound(*pool);
}

/// Nobody knows then who looks at them.
pub fn tables_stay_where_the_fence_is_refused() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    let taken = || {
        turn_over(&map, 0..20_000);
        pool.recover();
        pool.stats().allocated
    };
    let (first, second) = (taken(), taken());
    assert!(second < first + 50_000, "{first}, then {second} bytes");
    let ended = with_membarrier(REFUSED, || {
        let third = taken();
        assert!(third > second + 500_000, "{second}, then {third} bytes");
    });
    match ended {
        None => skipped(NOT_REFUSED),
        Some(status) => assert_eq!(status, 0),
    }
    drop(map);
    pool.recover();
    assert_sound(*pool);
}

/// Who retires a table dies at the fence: nobody finds the table any more, and who recovers him retires it, if he is
/// granted the fence.
pub fn deaths_at_the_fence() {
    const KEYS: std::ops::Range<u64> = 0..20_000;
    for is_granted in [true, false] {
        let pool = TestPool::new();
        let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
        let taken = || {
            turn_over(&map, KEYS);
            pool.recover();
            pool.stats().allocated
        };
        let before = (taken(), taken()).1;
        // A table of some size, and no other.
        let root = || word(std::ptr::from_ref(&*map).expose_provenance()) as usize;
        let mut key = 0;
        while key < KEYS.end || word(root() + SUCCESSOR) != 0 {
            map.insert(&key, !key).unwrap();
            key += 1;
        }
        let table = root();
        let died = with_membarrier(libc::SECCOMP_RET_KILL_PROCESS, || {
            for key in key..10 * KEYS.end {
                map.insert(&key, !key).unwrap();
            }
        });
        let Some(died) = died else {
            return skipped(NOT_REFUSED);
        };
        assert!(libc::WIFSIGNALED(died) && libc::WTERMSIG(died) == libc::SIGSYS);
        assert_ne!(root(), table, "unlinked before the fence");
        if is_granted {
            pool.recover();
        } else {
            let recovered = with_membarrier(REFUSED, || assert_eq!(pool.recover().threads, 1));
            assert_eq!(recovered, Some(0));
        }
        for key in 0..10 * KEYS.end {
            if let Some(value) = map.remove(&key) {
                assert_eq!(*value, !key);
            }
        }
        let more = taken().saturating_sub(before);
        assert_eq!(more < 50_000, is_granted, "{more}");
        assert_eq!(more > 500_000, !is_granted, "{more}");
        drop(map);
        pool.recover();
        assert_sound(*pool);
    }
}

/// Every process that has a pool takes part in fences on all threads: who makes it, who is forked, who opens it.
pub fn all_take_part_in_fences() {
    if registrations().is_none() {
        return skipped("who takes part in fences on all threads: the kernel does not tell");
    }
    let takes_part = || registrations() == Some(true);
    let pool = TestPool::new();
    assert!(takes_part());
    let Some(child) = fork() else {
        leave(takes_part());
    };
    assert_eq!(reap(child), 0);
    succeeds_with(*pool, "role_takes_part");
}

pub fn role_takes_part() {
    assert_eq!(registrations(), Some(false), "not before");
    passed_on();
    assert_eq!(registrations(), Some(true));
}

/// Whether this process takes part in fences on all threads; `None` if the kernel does not tell (before 6.3).
fn registrations() -> Option<bool> {
    /// `MEMBARRIER_CMD_GET_REGISTRATIONS`.
    const GET: libc::c_int = 1 << 9;
    let registered = membarrier(GET);
    let asked = libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
    (registered >= 0).then_some(registered & i64::from(asked) != 0)
}
