//! Forks that the program makes by other means, and what other fork handlers do.

use std::alloc::Layout;
use std::io::{PipeReader, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shmkit::process::{
    Backoff, Config, Entry, JoinError, JoinHandle, Master, Restart, RunError, SpawnError,
    StartOptions, Wire, scope,
};
use shmkit::{HandleError, Pool};

use super::masters::{FOR_EVER, SQUARE};
use super::role_succeeds;
use crate::common::{TestPool, fork, leave, open_descriptors, reap, refuse};

pub fn role_failing_fork() {
    let pool = Pool::builder().create().unwrap();
    let object = pool.create(7_u64).unwrap();
    // As when there are too many processes.
    refuse(libc::SYS_clone, libc::EAGAIN);
    refuse(libc::SYS_clone3, libc::EAGAIN);
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
    // And of a child of ours.
    let object = pool.create(9_u64).unwrap();
    let refused = scope(|s| s.spawn(|| ()).err());
    assert!(matches!(refused, Some(SpawnError::Fork(_))), "{refused:?}");
    let handle = object.handle();
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
/// What a child that dies reads a byte from before, if that is a descriptor.
static DIES_AFTER: AtomicI32 = AtomicI32::new(-1);

/// In a child, before it comes to life in any pool.
extern "C" fn die() {
    if DIES.load(Ordering::Relaxed) {
        let mut byte = 0_u8;
        // SAFETY: the byte is written to.
        unsafe {
            libc::read(
                DIES_AFTER.load(Ordering::Relaxed),
                (&raw mut byte).cast(),
                1,
            );
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    }
}

/// Forks by the system's own call, and does something; how the child has ended.
fn forked_with(meanwhile: impl FnOnce()) -> i32 {
    let Some(child) = fork() else { leave(true) };
    meanwhile();
    reap(child)
}

fn forked() -> i32 {
    forked_with(|| ())
}

pub fn role_killed_on_its_way() {
    // Before the first pool: so it is called before the pool's own handler.
    // SAFETY: the handler does nothing that a child may not.
    let done = unsafe { libc::pthread_atfork(None, None, Some(die)) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let kept = pool.create(1_u64).unwrap();
    let (go, let_go) = rustix::pipe::pipe().unwrap();
    DIES_AFTER.store(go.as_raw_fd(), Ordering::Relaxed);
    let descriptors = open_descriptors();
    DIES.store(true, Ordering::Relaxed);
    for _ in 0..50 {
        let object = pool.create(7_u64).unwrap();
        let handle = object.handle();
        let killed = forked_with(|| {
            drop(object);
            // What the child would have.
            assert_eq!(*handle.open().unwrap(), 7);
            assert_eq!(rustix::io::write(&let_go, &[1]), Ok(1));
        });
        assert_eq!(killed, libc::SIGKILL);
        pool.recover();
        let opened = handle.open();
        assert!(matches!(opened, Err(HandleError::Gone)), "it is held");
    }
    assert_eq!(open_descriptors(), descriptors);
    DIES_AFTER.store(-1, Ordering::Relaxed);
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

/// What a child reads a byte from before it lives, if that is a descriptor.
static LATE_BY: AtomicI32 = AtomicI32::new(-1);

/// What it writes a byte to before that, if that is a descriptor.
static LATE_IS_TOLD: AtomicI32 = AtomicI32::new(-1);

/// In a child, before it comes to life in any pool. It does not outlive a parent that fails, unless it is to tell of
/// itself.
extern "C" fn be_late() {
    let (tell, mut byte) = (LATE_IS_TOLD.load(Ordering::Relaxed), 0_u8);
    // SAFETY: the byte is written to.
    unsafe {
        if tell < 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        libc::write(tell, (&raw const byte).cast(), 1);
        libc::read(LATE_BY.load(Ordering::Relaxed), (&raw mut byte).cast(), 1);
    }
}

/// Forks a child that is on its way until it is let go, and leaves well if `is_well` then.
fn fork_late(is_well: impl FnOnce() -> bool) -> (libc::pid_t, OwnedFd) {
    let (go, let_go) = rustix::pipe::pipe().unwrap();
    LATE_BY.store(go.as_raw_fd(), Ordering::Relaxed);
    let child = fork().unwrap_or_else(|| leave(is_well()));
    LATE_BY.store(-1, Ordering::Relaxed);
    (child, let_go)
}

pub fn role_late() {
    // Before the first pool: so it is called before the pool's own handler.
    // SAFETY: the handler does nothing that a child may not.
    let done = unsafe { libc::pthread_atfork(None, None, Some(be_late)) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let base = pool.base();
    drop(pool.create(7_u64).unwrap());
    let (dies, _go) = fork_late(|| false);
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
    // Another at the same place, where the next child has the same record.
    let pool = Pool::builder().base(base).create().unwrap();
    let kept = pool.create(8_u64).unwrap();
    let (late, go) = fork_late(|| *kept == 8);
    // A child has nothing of what its parent has for those that are on their way.
    let descriptors = open_descriptors();
    let child = fork().unwrap_or_else(|| leave(open_descriptors() == descriptors - 2));
    assert_eq!(reap(child), 0);
    // What was for one of them is not taken from the other.
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::kill(dies, libc::SIGKILL) }, 0);
    assert_eq!(reap(dies), libc::SIGKILL);
    pool.recover();
    assert_eq!(rustix::io::write(go, &[1]), Ok(1));
    assert_eq!(reap(late), 0);
    pool.recover();
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn a_child_on_its_way_is_no_other() {
    role_succeeds("role_late");
}

pub fn role_orphan() {
    // SAFETY: as in `role_late`.
    let done = unsafe { libc::pthread_atfork(None, None, Some(be_late)) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let kept = pool.create(7_u64).unwrap();
    let [(go, let_go), (late, is_late), (said, says)] =
        [(); 3].map(|()| rustix::pipe::pipe().unwrap());
    let parent = fork().unwrap_or_else(|| {
        LATE_BY.store(go.as_raw_fd(), Ordering::Relaxed);
        LATE_IS_TOLD.store(is_late.as_raw_fd(), Ordering::Relaxed);
        // SAFETY: this process's own standard error.
        assert_eq!(unsafe { libc::dup2(says.as_raw_fd(), 2) }, 2);
        fork();
        leave(false)
    });
    drop((is_late, says));
    assert_eq!(rustix::io::read(&late, &mut [0; 1]), Ok(1));
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::kill(parent, libc::SIGKILL) }, 0);
    assert_eq!(reap(parent), libc::SIGKILL);
    pool.recover();
    assert_eq!(rustix::io::write(let_go, &[1]), Ok(1));
    let mut text = String::new();
    std::fs::File::from(said).read_to_string(&mut text).unwrap();
    assert_eq!((&*text, *kept), ("", 7));
    assert!(pool.check().is_ok(), "{}", pool.check());
}

/// It ends, and says nothing.
pub fn a_child_on_its_way_whose_parent_is_dead() {
    role_succeeds("role_orphan");
}

/// Who is about to return once it has forked.
static RETURNS: AtomicI32 = AtomicI32::new(0);

/// From which its child reads that the fork has returned.
static RETURNED: AtomicI32 = AtomicI32::new(0);

/// In its child, before that comes to life: waits until it goes on without the child, and has ended or sleeps.
extern "C" fn await_return() {
    let mut byte = 0_u8;
    // SAFETY: the byte is written to.
    unsafe { libc::read(RETURNED.load(Ordering::Relaxed), (&raw mut byte).cast(), 1) };
    let stat = format!("/proc/{}/stat", RETURNS.load(Ordering::Relaxed));
    let runs = |line: String| {
        line.rsplit(") ")
            .next()
            .is_some_and(|line| line.starts_with('R'))
    };
    while std::fs::read_to_string(&stat).is_ok_and(runs) {
        std::thread::yield_now();
    }
}

pub fn role_returns_at_once() {
    // SAFETY: the handler does nothing that a child may not.
    let done = unsafe { libc::pthread_atfork(None, None, Some(await_return)) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let kept = pool.create(7_u64).unwrap();
    let (returned, has_returned) = rustix::pipe::pipe().unwrap();
    let _adopts = Adopts::begin();
    let copy = scope(|s| {
        let child = s.spawn(|| {
            // SAFETY: no memory is passed.
            RETURNS.store(unsafe { libc::getpid() }, Ordering::Relaxed);
            RETURNED.store(returned.as_raw_fd(), Ordering::Relaxed);
            let copy = fork().unwrap_or_else(|| leave(*kept == 7));
            assert_eq!(rustix::io::write(&has_returned, &[1]), Ok(1));
            copy
        });
        child.unwrap().join().unwrap()
    });
    assert_eq!(reap(copy), 0);
    pool.recover();
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn who_returns_at_once_leaves_its_child_alive() {
    role_succeeds("role_returns_at_once");
}

/// It goes to the background as `daemon` has it, while others look for the dead.
pub fn who_becomes_a_daemon_lives() {
    const DAEMONS: u32 = 100;
    let pool = Pool::builder().create().unwrap();
    let lived = pool.create(AtomicU32::new(0)).unwrap();
    for _ in 0..DAEMONS {
        let first = fork().unwrap_or_else(|| {
            if fork().is_none() {
                lived.fetch_add(1, Ordering::Relaxed);
            }
            leave(true);
        });
        assert_eq!(reap(first), 0);
        pool.recover();
    }
    let begun = Instant::now();
    while lived.load(Ordering::Relaxed) < DAEMONS {
        assert!(begun.elapsed().as_secs() < 20, "{lived:?} of {DAEMONS}");
        std::thread::yield_now();
    }
    drop(lived);
    // They are others' children: the kernel's mark tells of their ends.
    while pool.stats().processes > 1 {
        assert!(begun.elapsed().as_secs() < 20, "{}", pool.check());
        pool.recover();
    }
    assert!(pool.check().is_ok(), "{}", pool.check());
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
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
    let Some(child) = fork() else {
        leave(pool.allocate(WORD).is_ok() && pool.create(9_u64).is_ok());
    };
    assert_eq!(reap(child), 0);
    // The child has ended without a word, as by a kill.
    let recovered = pool.recover();
    assert_eq!((recovered.threads, recovered.processes), (1, 1));
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn a_pool_is_used_first_while_the_process_forks() {
    role_succeeds("role_first_use");
}

/// Sleeps on the master until a job has ended.
pub fn joined<R: Wire>(master: &mut Master, mut job: JoinHandle<R>) -> Result<R, JoinError> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        match job.try_join() {
            Ok(result) => return result,
            Err(again) => job = again,
        }
        poll(&mut [PollFd::new(&*master, PollFlags::IN)], None).unwrap();
        master.dispatch().unwrap();
    }
    panic!("it does not end");
}

/// Who hangs is killed, when that is asked for and at the end.
fn hung_are_killed(mut master: Master) {
    let hung = master.start(&FOR_EVER, &()).unwrap();
    assert_eq!(master.dispatch().unwrap().started, 1);
    hung.kill().unwrap();
    let killed = joined(&mut master, hung);
    assert!(matches!(killed, Err(JoinError::Signaled(libc::SIGKILL))));
    master.start(&FOR_EVER, &()).unwrap().detach();
    assert_eq!(master.dispatch().unwrap().started, 1);
    master.finish().unwrap();
}

pub fn role_unwatched() {
    let mut master = Master::new(&Config::new()).unwrap();
    // As when the whole system has no file left, but for good.
    refuse(libc::SYS_pidfd_open, libc::ENFILE);
    let square = master.start(&SQUARE, &12).unwrap();
    assert_eq!(joined(&mut master, square).unwrap(), 144);
    hung_are_killed(master);
    // Where it is refused from the start, there is no master.
    let refused = Master::new(&Config::new()).map(drop);
    assert!(matches!(refused, Err(RunError::System(_))), "{refused:?}");
}

pub fn who_cannot_be_watched_is_looked_at() {
    role_succeeds("role_unwatched");
}

pub fn role_unsignalled() {
    // As by a filter that knows the older call alone.
    refuse(libc::SYS_pidfd_send_signal, libc::ENOSYS);
    hung_are_killed(Master::new(&Config::new()).unwrap());
}

pub fn who_gets_no_signal_by_descriptor_is_killed_by_number() {
    role_succeeds("role_unsignalled");
}

static FLAKY: Entry<(), u32> = Entry::new("flaky", |worker, ()| match worker.restarts() {
    0 => std::process::abort(),
    restarts => restarts,
});

pub fn a_restart_that_is_refused_is_tried_again() {
    let wait = Duration::from_millis(1);
    let again = StartOptions::new().restart(Restart::OnCrash(Backoff::new(wait).times(1)));
    let always = StartOptions::new().restart(Restart::Always(Backoff::new(wait).times(2)));
    // A job that gets no process is over, whatever its policy.
    let config = Config::new().on_end(|end| {
        let is_refused = matches!(end.cause, Err(JoinError::NotStarted(_)));
        assert!(!is_refused || end.restart_in.is_none(), "{end:?}");
    });
    let mut master = Master::new(&config).unwrap();
    let flaky = master.start_with(again, &FLAKY, &()).unwrap();
    while master.dispatch().unwrap().ended == 0 {
        poll(&mut [PollFd::new(&master, PollFlags::IN)], None).unwrap();
    }
    // No descriptor, and so no process.
    let before = getrlimit(Resource::Nofile);
    let current = Some(3);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    let refused = Instant::now();
    while refused.elapsed() < 10 * wait {
        assert_eq!(master.dispatch().unwrap().started, 0);
    }
    // What was never started stays so, and says it.
    let never = master.start_with(always, &SQUARE, &2).unwrap();
    let never = joined(&mut master, never);
    assert!(matches!(never, Err(JoinError::NotStarted(_))), "{never:?}");
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(joined(&mut master, flaky).unwrap(), 1);
    // Who has other threads is told at once.
    let flaky = master.start_with(always, &FLAKY, &()).unwrap();
    assert_eq!(master.dispatch().unwrap().started, 1);
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || told.recv());
    let refused = joined(&mut master, flaky);
    let says = "the master could not start the process: this process has 2 threads";
    let why = refused.unwrap_err().to_string();
    assert!(why.starts_with(says), "{why}");
    drop(tell);
    thread.join().unwrap().unwrap_err();
    master.finish().unwrap();
}

/// The thread that forks in vain, while that lasts.
static IN_VAIN: AtomicI32 = AtomicI32::new(0);
/// Bytes that let another thread fork, tell that it has, and let its child live.
static PIPES: OnceLock<[(OwnedFd, OwnedFd); 3]> = OnceLock::new();
const BEGIN: usize = 0;
const DONE: usize = 1;
const LIVE: usize = 2;

fn tell(pipe: usize) {
    let told = rustix::io::write(&PIPES.get().unwrap()[pipe].1, &[1]);
    assert_eq!(told, Ok(1));
}

fn await_told(pipe: usize) {
    let read = rustix::io::read(&PIPES.get().unwrap()[pipe].0, &mut [0; 1]);
    assert_eq!(read, Ok(1));
}

/// In a child, before it comes to life in any pool.
extern "C" fn await_life() {
    await_told(LIVE);
}

/// After the pool's own handler, in the process that forks.
extern "C" fn let_another_fork() {
    // SAFETY: no memory is passed.
    if IN_VAIN.load(Ordering::Relaxed) == unsafe { libc::gettid() } {
        tell(BEGIN);
        await_told(DONE);
    }
}

pub fn role_fork_at_once() {
    PIPES
        .set([0; 3].map(|_| rustix::pipe::pipe().unwrap()))
        .unwrap();
    // SAFETY: the handler does nothing that a child may not.
    let done = unsafe { libc::pthread_atfork(None, None, Some(await_life)) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let kept = pool.create(7_u64).unwrap();
    // SAFETY: the handler stays, and may be called after any fork.
    let done = unsafe { libc::pthread_atfork(None, Some(let_another_fork), None) };
    assert_eq!(done, 0);
    let other = std::thread::spawn(|| {
        await_told(BEGIN);
        // SAFETY: the child ends at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no memory is passed.
            unsafe { libc::_exit(0) };
        }
        tell(DONE);
        child
    });
    // SAFETY: no memory is passed.
    IN_VAIN.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    // This thread's calls alone.
    refuse(libc::SYS_clone, libc::EAGAIN);
    refuse(libc::SYS_clone3, libc::EAGAIN);
    scope(|s| {
        // SAFETY: there is no child.
        let refused = unsafe { s.spawn_with_threads(|| 1) }.map(drop);
        assert!(matches!(refused, Err(SpawnError::Fork(_))), "{refused:?}");
    });
    tell(LIVE);
    let child = other.join().unwrap();
    assert_eq!(reap(child), 0);
    assert_eq!(*kept, 7);
    pool.recover();
    assert!(pool.check().is_ok(), "{}", pool.check());
}

pub fn two_threads_that_fork_at_once() {
    role_succeeds("role_fork_at_once");
}

/// Has who is left behind by a child become a child of this process, for as long as this lives.
struct Adopts;

impl Adopts {
    fn begin() -> Adopts {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        Adopts
    }
}

impl Drop for Adopts {
    fn drop(&mut self) {
        rustix::process::set_child_subreaper(None).unwrap();
    }
}

/// What a copy of a child waits for.
static LATE: Mutex<Option<PipeReader>> = Mutex::new(None);

/// Forks: the copy's pid, once it lives. It comes back later, or panics.
fn forks(panics: bool) -> libc::pid_t {
    let (lives, live) = std::io::pipe().unwrap();
    if let Some(copy) = fork() {
        super::listen(&lives);
        return copy;
    }
    std::panic::set_hook(Box::new(|_| ()));
    super::tell(&live);
    super::listen(LATE.lock().unwrap().as_ref().unwrap());
    assert!(!panics);
    666
}

static FORKS: Entry<bool, libc::pid_t> = Entry::new("forks", |_, panics| forks(panics));

pub fn what_a_copy_returns_is_no_result() {
    let _adopts = Adopts::begin();
    for (panics, code) in [(false, 0), (true, 101)] {
        let (late, let_go) = std::io::pipe().unwrap();
        *LATE.lock().unwrap() = Some(late);
        let comes_back = |copy| {
            super::tell(&let_go);
            assert_eq!(reap(copy), code << 8);
        };
        let mut master = Master::new(&Config::new()).unwrap();
        let forks = master.start(&FORKS, &panics).unwrap();
        let copy = joined(&mut master, forks).unwrap();
        // The next job has the same place.
        let square = master.start(&SQUARE, &12).unwrap();
        while !square.is_finished() {
            poll(&mut [PollFd::new(&master, PollFlags::IN)], None).unwrap();
            master.dispatch().unwrap();
        }
        comes_back(copy);
        assert_eq!(joined(&mut master, square).unwrap(), 144);
        master.finish().unwrap();

        let (pids, pid) = std::io::pipe().unwrap();
        scope(|s| {
            let child = s.spawn(|| {
                let copy = self::forks(panics);
                rustix::io::write(&pid, &copy.to_ne_bytes()).unwrap();
                copy
            });
            let child = child.unwrap();
            let mut copy = [0; 4];
            (&pids).read_exact(&mut copy).unwrap();
            let copy = libc::pid_t::from_ne_bytes(copy);
            while !child.is_finished() {
                std::thread::yield_now();
            }
            comes_back(copy);
            assert_eq!(child.join().unwrap(), copy);
        });
    }
    *LATE.lock().unwrap() = None;
}

pub fn a_copy_does_not_go_on_from_the_hook() {
    let master_itself = std::process::id();
    let ended = std::rc::Rc::new(std::cell::Cell::new(None));
    let seen = std::rc::Rc::clone(&ended);
    let config = Config::new().on_end(move |end| {
        if end.worker.number() == 1 {
            seen.set(fork().map(reap));
        }
    });
    let mut master = Master::new(&config).unwrap();
    // The second one, so that the master has looked after the copy.
    let [_, square] = [(); 2].map(|()| {
        let square = master.start(&SQUARE, &12).unwrap();
        let result = joined(&mut master, square);
        if std::process::id() != master_itself {
            leave(false);
        }
        result.unwrap()
    });
    assert_eq!((square, ended.get()), (144, Some(0)));
    master.finish().unwrap();
}

/// What it inherits would be nobody's.
pub fn a_child_without_a_record_ends() {
    let pool = TestPool::with(|b| b.max_participants(1));
    let kept = pool.create(7_u64).unwrap();
    let status = forked();
    assert!(libc::WIFEXITED(status));
    assert_eq!((libc::WEXITSTATUS(status), *kept), (70, 7));
}
