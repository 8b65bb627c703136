//! What the test programs that fork share: the harness, and pools that are removed with their case.
//!
//! The cases of a program run in order, in one process or each in its own; arguments select the cases whose
//! names contain one of them: see [`pick`]. A case that needs a program of its own runs a copy of this one,
//! started with the argument `role:<its name>`.
#![allow(dead_code, reason = "each program uses a part of it")]

pub mod linear;
pub mod pick;
pub mod skip;

use std::alloc::Layout;
use std::env;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, ExitCode, Output};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::{JoinError, ScopedJoinHandle, scope};
use shmkit::{Pool, PoolBuilder, testing};

pub type Named = (&'static str, fn());

/// A table of functions by their names.
#[macro_export]
macro_rules! table {
    ($($module:ident: $($function:ident)+;)*) => {
        &[$($((stringify!($function), $module::$function)),+),*]
    };
}

/// Runs a role, or the cases that the argument picks, one after the other in this process.
pub fn run(cases: &[Named], roles: &[Named]) -> ExitCode {
    if plays_a_role(roles) {
        return ExitCode::SUCCESS;
    }
    run_each(cases, |case| {
        // Scoped threads may linger for a moment behind the end of their scope.
        while tasks() != 1 {
            std::thread::yield_now();
        }
        let before = open_descriptors();
        let outcome = catch_unwind(|| {
            case();
            assert_eq!(open_descriptors(), before, "descriptors left open");
            assert!(no_child_left(), "a child is left");
        });
        outcome.is_ok()
    })
}

/// As [`run_apart`], or a role.
pub fn run_apart_with(cases: &[Named], roles: &[Named]) -> ExitCode {
    if plays_a_role(roles) {
        return ExitCode::SUCCESS;
    }
    run_apart(cases)
}

/// Runs the cases that the arguments pick, each in a process of its own, with which its pools go.
pub fn run_apart(cases: &[Named]) -> ExitCode {
    run_each(cases, |case| {
        let Some(child) = fork() else {
            let outcome = catch_unwind(|| {
                case();
                assert!(no_child_left(), "a child is left");
            });
            leave(outcome.is_ok());
        };
        reap(child) == 0
    })
}

/// Plays the role that the first argument names, if it names one.
fn plays_a_role(roles: &[Named]) -> bool {
    let mut arguments = env::args().skip(1);
    let first = arguments.find(|argument| !argument.starts_with("--"));
    let Some(role) = first
        .as_deref()
        .and_then(|first| first.strip_prefix("role:"))
    else {
        return false;
    };
    let role = roles.iter().find(|(name, _)| *name == role);
    role.expect("a known role").1();
    true
}

/// Forks by the system's own call, while this process has one thread: the child, or `None` in the child.
pub fn fork() -> Option<libc::pid_t> {
    // SAFETY: by the above, the child may do what it likes.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", std::io::Error::last_os_error());
    (child != 0).then_some(child)
}

/// Ends a child at once, whose standard output writes whole lines, with 0 if all went well.
pub fn leave(well: bool) -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(i32::from(!well)) }
}

/// Waits for a child to end; its status, which is 0 if it left [well](leave).
#[track_caller]
pub fn reap(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: a child of ours; the status is this frame's.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Runs `f` with nothing printed on standard error, for panics that are meant.
pub fn quietly<T>(f: impl FnOnce() -> T) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    outcome.unwrap_or_else(|payload| resume_unwind(payload))
}

fn run_each(cases: &[Named], run: impl Fn(fn()) -> bool) -> ExitCode {
    let pick = pick::Pick::from_args();
    let (mut passed, mut failed) = (0, 0);
    for &(name, case) in cases.iter().filter(|(name, _)| pick.takes(name)) {
        if pick.list {
            println!("{name}: test");
            continue;
        }
        let started = Instant::now();
        let ok = run(case);
        *if ok { &mut passed } else { &mut failed } += 1;
        let word = if ok { "ok" } else { "FAILED" };
        println!("{name}: {word} ({:.2} s)", started.elapsed().as_secs_f64());
    }
    if !pick.list {
        println!("{passed} passed, {failed} failed");
    }
    ExitCode::from(u8::from(failed != 0))
}

/// This program, to be run in a role.
pub fn program(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.arg(format!("role:{role}"));
    command
}

/// The calls of this thread, and of those that it starts from now on, are answered with `error` if they
/// have that number.
pub fn refuse(number: i64, error: i32) {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(0x20, 0, 0, 0), // the number
        step(0x15, 0, 1, number as u32),
        step(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: both calls read what they are given.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &program), 0);
    }
}

/// Asserts that a role ran to its end. What it printed may say what it has skipped.
#[track_caller]
pub fn succeeded(output: &Output) {
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {text}", output.status);
}

/// Runs a role to its end.
#[track_caller]
pub fn role_succeeds(role: &str) -> Output {
    let output = program(role).output().unwrap();
    succeeded(&output);
    output
}

/// How many threads the process has.
pub fn tasks() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is there");
    tasks.count()
}

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Neither a zombie nor a living child.
pub fn no_child_left() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, options).err() == Some(rustix::io::Errno::CHILD)
}

/// A pool that is unmapped at the end of its scope, by the process that made it.
pub struct TestPool(Pool);

impl TestPool {
    pub fn new() -> Self {
        TestPool::with(|builder| builder)
    }

    pub fn with(options: impl FnOnce(PoolBuilder) -> PoolBuilder) -> Self {
        TestPool(options(Pool::builder()).create().unwrap())
    }

    pub fn of(pool: Pool) -> Self {
        TestPool(pool)
    }
}

impl Deref for TestPool {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.0
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        // The threads of a scope that is over may still be ending, and leave the pool as they do.
        let began = Instant::now();
        while tasks() > 1 {
            // A case that fails may leave threads that go on. The pool stays for them.
            if std::thread::panicking() {
                return;
            }
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(10), "a case left a thread");
            std::thread::yield_now();
        }
        // SAFETY: cases declare their pool before everything that refers to it, and there is no
        // other thread.
        unsafe { self.0.unmap() };
    }
}

#[track_caller]
pub fn assert_sound(pool: Pool) {
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
}

/// Blocks that are allocated, of all sizes.
pub fn blocks(pool: Pool) -> usize {
    let stats = pool.stats();
    stats.runs.allocated + stats.classes.iter().map(|c| c.allocated).sum::<usize>()
}

pub fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[track_caller]
pub fn allocate(pool: Pool, size: usize) -> NonNull<u8> {
    pool.allocate(layout(size, 8)).unwrap().cast()
}

/// Frees a block that nobody uses: the tests keep to that.
#[track_caller]
pub fn free(pool: Pool, block: NonNull<u8>) {
    // SAFETY: by the above.
    unsafe { pool.deallocate(block) }.unwrap();
}

/// Tries to free what may be no block: refused or not, nobody uses it.
pub fn try_free(pool: Pool, block: NonNull<u8>) -> Result<(), shmkit::FreeError> {
    // SAFETY: misuse that happened before the call is refused by contract.
    unsafe { pool.deallocate(block) }
}

/// The byte that a block of this address is filled with.
fn byte_of(address: usize) -> u8 {
    (address >> 4).wrapping_mul(0x9e37_79b9) as u8 | 1
}

/// Fills a block with a pattern of its own: its length, then a byte over and over.
pub fn fill(block: NonNull<u8>, size: usize) {
    assert!(size >= 8);
    // SAFETY: the caller's block, of `size` bytes, seen by nobody else yet.
    unsafe {
        block.cast::<u64>().write(size as u64);
        let rest = block.add(8);
        rest.write_bytes(byte_of(block.addr().get()), size - 8);
    }
}

/// Compares a block with what [`fill`] made it.
#[track_caller]
pub fn verify(block: NonNull<u8>) {
    let address = block.addr().get();
    // SAFETY: a block that was filled, and that its filler has handed to us.
    let content = unsafe {
        let size = block.cast::<u64>().read() as usize;
        std::slice::from_raw_parts(block.add(8).as_ptr(), size - 8)
    };
    assert!(
        content.iter().all(|&byte| byte == byte_of(address)),
        "the block at {address:#x} was written by somebody else"
    );
}

/// A block by its address, as mailbox words hold it.
pub fn block_at(address: u64) -> Option<NonNull<u8>> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(address as usize))
}

pub fn address(block: NonNull<u8>) -> u64 {
    block.as_ptr().expose_provenance() as u64
}

/// Has a child fill the pool with blocks of so many bytes, without its growing. Those of them are freed that
/// `frees` names by their numbers. Then the child is killed, and nobody has looked until `then`.
pub fn filled_by_the_dead(pool: Pool, size: usize, frees: fn(usize) -> bool, then: impl FnOnce()) {
    let stage = TestPool::new();
    let blocks = stage.create([const { AtomicU64::new(0) }; 8192]).unwrap();
    let is_full = stage.create(AtomicU64::new(0)).unwrap();
    scope(|s| {
        let (blocks, is_full) = (&blocks, &is_full);
        let child = s.spawn(move || {
            // With a slot, which takes memory.
            free(pool, allocate(pool, size));
            testing::refuse_commits(Some(0));
            let one = || pool.allocate(layout(size, 16)).ok();
            for (block, word) in std::iter::from_fn(one).zip(blocks.iter()) {
                word.store(block.cast::<u8>().addr().get() as u64, Ordering::Relaxed);
            }
            is_full.store(1, Ordering::Release);
            loop {
                std::thread::yield_now();
            }
        });
        let child = child.unwrap();
        while is_full.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        for (number, word) in blocks.iter().enumerate() {
            let address = word.load(Ordering::Relaxed);
            if address != 0 && frees(number) {
                free(pool, block_at(address).unwrap());
            }
        }
        child.kill().unwrap();
        while !child.is_finished() {
            std::thread::yield_now();
        }
        then();
        died(child);
    });
}

/// A small random number generator (xorshift64*, Vigna 2016): repeatable.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}

/// Has the kernel kill this process so many nanoseconds from now, at whatever instruction it is then.
pub fn die_in(nanoseconds: i64) {
    let mut timer = std::ptr::null_mut();
    // SAFETY: system calls with structures of this function's, for which zeros are valid.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        assert_eq!(
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer),
            0
        );
        let mut after: libc::itimerspec = std::mem::zeroed();
        after.it_value.tv_nsec = nanoseconds;
        assert_eq!(
            libc::timer_settime(timer, 0, &after, std::ptr::null_mut()),
            0
        );
    }
}

/// Seconds that a storm lasts: from the environment, or the default.
pub fn storm_time(default: Duration) -> Duration {
    env::var("SHMKIT_STORM_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(default, Duration::from_secs)
}

/// Kills a worker that does not end by itself.
#[track_caller]
pub fn killed(worker: ScopedJoinHandle<'_, ()>) {
    worker.kill().unwrap();
    died(worker);
}

/// Waits for a worker that gets SIGKILL.
#[track_caller]
pub fn died(worker: ScopedJoinHandle<'_, ()>) {
    match worker.join() {
        Err(JoinError::Signaled(libc::SIGKILL)) => {}
        other => panic!("a worker ended by itself: {other:?}"),
    }
}
