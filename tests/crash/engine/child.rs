//! Child processes: how the engine forks them, gets reports from them, waits for them and gets rid of them.
//!
//! Nothing here may outlive the test, and nothing here may end a process that the test did not start.
//! Three nets, each catching what the one before it lets through:
//!
//! 1. [`Child`] kills and reaps its process when dropped, so an unwinding harness leaves nothing.
//! 2. Every child asks for SIGKILL at its parent's death, so a harness that is itself killed leaves nothing.
//! 3. The harness is a child subreaper: what a dead child had forked becomes its own child, and [`sweep`]
//!    ends whatever it finds among its children that is not a live [`Child`].
//!
//! A child reports through its *board*, a shared page of its own: a text (its error or its panic), and its
//! progress (see [`progress`]). A page is cheaper than a pipe, and is still readable after a SIGKILL.
//!
//! Waiting is blocking `waitpid`, made to return now and then by a [`Ticker`] so that limits can be checked.

use std::cell::RefCell;
use std::io;
use std::panic::AssertUnwindSafe;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TEXT: usize = 4096 - 16;

/// What a child writes and its parent reads.
#[repr(C)]
struct Page {
    progress: AtomicU64,
    length: AtomicUsize,
    text: [AtomicU8; TEXT],
}

/// The board of this process, if it is a child.
static OWN: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// The children that [`sweep`] must leave alone.
    static LIVE: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
}

/// An owned shared mapping of one [`Page`].
struct Board(NonNull<Page>);

impl Board {
    fn new() -> io::Result<Board> {
        // SAFETY: a new anonymous mapping at an address the kernel chooses disturbs nothing.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast())
            .map(Board)
            .ok_or_else(|| io::Error::other("mapped at null"))
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is a whole, zeroed `Page` of atomics, and lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and `page` lends nothing beyond `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Page>()) };
    }
}

impl Page {
    /// Posts `text`, unless something is posted already: the first cause is the one to know.
    fn post(&self, text: &str) {
        if self.length.load(Ordering::Relaxed) != 0 {
            return;
        }
        for (to, from) in self.text.iter().zip(text.bytes()) {
            to.store(from, Ordering::Relaxed);
        }
        // Release pairs with the Acquire in `read`.
        self.length.store(text.len().min(TEXT), Ordering::Release);
    }

    fn read(&self) -> String {
        let length = self.length.load(Ordering::Acquire).min(TEXT);
        let bytes: Vec<u8> = self.text[..length]
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Says how far the operation has come, for `verify` to read in `Crash::progress`.
///
/// An operation calls this where a caller would have been told of success ("what was acknowledged stays").
/// The mark is kept outside the arena, and is a crash point of its own. Without effect outside a victim.
pub fn progress(mark: u64) {
    // SAFETY: `OWN` is null or this process's board, which a child never unmaps.
    if let Some(page) = unsafe { OWN.load(Ordering::Relaxed).as_ref() } {
        page.progress.store(mark, Ordering::Release);
    }
}

/// Sends the panics of children to their boards, and leaves those of the main process as they are.
pub fn route_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // SAFETY: as in `progress`.
        match unsafe { OWN.load(Ordering::Relaxed).as_ref() } {
            Some(page) => page.post(&format!("panic: {info}")),
            None => default(info),
        }
    }));
}

/// How a child is forked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// `fork`, with the `pthread_atfork` handlers of whoever registered some. They may write to the arena.
    Library,
    /// glibc's `_Fork`: no handlers. For survivors, whose coming must not change what the victim sees.
    Bare,
}

unsafe extern "C" {
    /// Since glibc 2.34: `fork` without handlers. (musl has it too.)
    fn _Fork() -> libc::pid_t;
}

/// How a process ended, or that it did not in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It exited with this status.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is stopped by this signal (a traced child only).
    Stop(i32),
    /// Nothing happened within the limit.
    Never,
}

/// A child process, killed and reaped when dropped.
pub struct Child {
    pid: i32,
    board: Board,
    reaped: bool,
}

impl Child {
    /// Forks a child that runs `body` and exits with 0; with 1 and the text posted if it returns an error; with
    /// 101 and the message posted if it panics.
    pub fn fork(how: Fork, body: impl FnOnce() -> Result<(), String>) -> io::Result<Child> {
        use std::io::Write as _;
        io::stdout().flush()?;
        let board = Board::new()?;
        // SAFETY: getpid has no preconditions.
        let parent = unsafe { libc::getpid() };
        // SAFETY: this process has one thread, so the child's copy of every lock and heap is in order.
        let pid = unsafe {
            match how {
                Fork::Library => libc::fork(),
                Fork::Bare => _Fork(),
            }
        };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => child_main(parent, &board, body),
            _ => {
                LIVE.with_borrow_mut(|live| live.push(pid));
                Ok(Child {
                    pid,
                    board,
                    reaped: false,
                })
            }
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The last mark it gave to [`progress`].
    pub fn progress(&self) -> u64 {
        self.board.page().progress.load(Ordering::Acquire)
    }

    /// What it posted; empty if nothing.
    pub fn text(&self) -> String {
        self.board.page().read()
    }

    /// Where it is in the kernel, for a report.
    pub fn place(&self) -> String {
        let at = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid));
        format!("(system call {})", at.unwrap_or_default().trim())
    }

    /// Whether it sleeps, as who waits for a lock does.
    pub fn sleeps(&self) -> bool {
        self.state() == Some('S')
    }

    /// Whether it has ended. It is not reaped.
    pub fn has_ended(&self) -> bool {
        self.state() == Some('Z')
    }

    fn state(&self) -> Option<char> {
        self.stat().first()?.chars().next()
    }

    /// How long it has had a processor.
    fn run_time(&self) -> Duration {
        let stat = self.stat();
        let ticks = stat
            .iter()
            .skip(11)
            .take(2)
            .flat_map(|field| field.parse::<u64>());
        // SAFETY: sysconf has no preconditions.
        let each_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Duration::from_millis(ticks.sum::<u64>() * 1000 / each_second)
    }

    /// The fields of its `stat`, from its state on; none if it is gone.
    fn stat(&self) -> Vec<String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        fields.split_ascii_whitespace().map(String::from).collect()
    }

    /// Waits until it ends or stops. Needs a [`Ticker`] for `limit` to be kept.
    ///
    /// Who is about to run when that is over gets a processor for as long once more: on a busy machine it may not
    /// hang, but wait for its turn.
    pub fn wait(&mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let mut enough = None;
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place, and the pid is that of our own unreaped child.
            let got = unsafe { libc::waitpid(self.pid, &mut status, libc::__WALL) };
            if got == self.pid {
                return self.interpret(status);
            }
            let error = io::Error::last_os_error();
            assert_eq!(
                error.kind(),
                io::ErrorKind::Interrupted,
                "waitpid {}: {error}",
                self.pid
            );
            if Instant::now() > deadline {
                let is_runnable = matches!(self.state(), Some('R' | 'D'));
                let run_time = self.run_time();
                if !is_runnable || run_time > *enough.get_or_insert(run_time + limit) {
                    return Ended::Never;
                }
            }
        }
    }

    fn interpret(&mut self, status: i32) -> Ended {
        if libc::WIFSTOPPED(status) {
            return Ended::Stop(libc::WSTOPSIG(status));
        }
        self.reaped = true;
        LIVE.with_borrow_mut(|live| live.retain(|&pid| pid != self.pid));
        if libc::WIFEXITED(status) {
            Ended::Exit(libc::WEXITSTATUS(status))
        } else {
            Ended::Signal(libc::WTERMSIG(status))
        }
    }

    /// Sends SIGKILL and waits until the process is a zombie, which keeps its pid from being used again.
    pub fn kill(&self) {
        if self.reaped {
            return;
        }
        // SAFETY: the pid is that of our own child, unreaped and therefore not anyone else's.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        loop {
            // SAFETY: all-zero is a valid siginfo_t.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let flags = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
            // SAFETY: `info` is a valid place.
            let got = unsafe { libc::waitid(libc::P_PID, self.pid as u32, &mut info, flags) };
            if got == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
    }

    /// Kills and reaps it.
    pub fn end(&mut self) {
        self.kill();
        while !self.reaped {
            self.wait(Duration::from_secs(60));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// The child's side of [`Child::fork`].
fn child_main(parent: i32, board: &Board, body: impl FnOnce() -> Result<(), String>) -> ! {
    OWN.store(board.0.as_ptr(), Ordering::Relaxed);
    LIVE.with_borrow_mut(Vec::clear);
    // SAFETY: neither call has preconditions.
    let orphan = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::getppid() != parent
    };
    let status = if orphan {
        1
    } else {
        match std::panic::catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => 0,
            Ok(Err(text)) => {
                board
                    .page()
                    .post(if text.is_empty() { "failed" } else { &text });
                1
            }
            Err(_) => 101,
        }
    };
    // SAFETY: ends this process; the parent's exit handlers and buffers are not ours to run.
    unsafe { libc::_exit(status) }
}

/// Makes this process the heir of its descendants, so that [`sweep`] sees them.
pub fn adopt_orphans() {
    // SAFETY: prctl with this option reads no memory.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

fn children() -> Vec<i32> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Exempts the children there are now (helpers that a case's setup started) from [`sweep`].
pub fn keep_children() {
    LIVE.with_borrow_mut(|live| *live = children());
}

/// Ends the children of this process that are neither a live [`Child`] nor kept: orphans of dead victims.
pub fn sweep() {
    for pid in children() {
        if LIVE.with_borrow(|live| live.contains(&pid)) {
            continue;
        }
        // SAFETY: an unreaped child of ours, so the pid is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: a null status is allowed.
        while unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

/// Ends every child, kept ones too. The last act of a process of the harness.
pub fn sweep_all() {
    LIVE.with_borrow_mut(Vec::clear);
    sweep();
}

/// The processors this process may use, before [`stay_here`].
static ALLOWED: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Keeps this process and its children on the processor it is on: a tracer and its tracee take turns, and changing
/// processors at each turn costs more than twice the time.
pub fn stay_here() {
    // SAFETY: all-zero is a valid (empty) cpu_set_t, twice.
    let (mut all, mut one): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    // SAFETY: the sets are valid places of the size given; what sched_getcpu answers is below the size of a set on
    // any machine for which the sets are large enough, and on others sched_getaffinity has failed.
    unsafe {
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut all) == -1 {
            return;
        }
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
    }
    ALLOWED.get_or_init(|| all);
}

/// Gives a survivor, which may start processes of its own, all processors again.
pub fn roam() {
    if let Some(all) = ALLOWED.get() {
        // SAFETY: a valid set of the size given.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), all) };
    }
}

/// While it lives, blocking calls of this process are interrupted twenty times a second.
pub struct Ticker(());

extern "C" fn tick(_signal: i32) {}

impl Ticker {
    pub fn start() -> Ticker {
        // SAFETY: all-zero is a valid sigaction: empty mask and, on purpose, no SA_RESTART.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = tick as extern "C" fn(i32) as usize;
        // SAFETY: the handler does nothing, which is safe in any context.
        unsafe { libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()) };
        Self::set(50_000);
        Ticker(())
    }

    fn set(microseconds: i64) {
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: `timer` is valid, and the old value is not asked for. Forked children do not inherit it.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        Self::set(0);
    }
}
