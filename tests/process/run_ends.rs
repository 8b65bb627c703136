//! How a run ends, and what is different in a process while it is a master.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Deserializer, Serialize};
use shmkit::process::{
    Backoff, Config, Entry, JoinError, JoinHandle, Master, Restart, RunError, StartError,
    StartOptions, run,
};
use shmkit::{Handle, Pool, testing};

use super::forks::joined;
use super::managed::Scratch;
use super::masters::{FOR_EVER, SQUARE, UNIT};
use super::peers::{self, AREA, Peers, Shape, unique};
use super::{loop_for_ever, program};
use crate::common::skip::skipped;
use crate::common::{fork, leave, open_descriptors, quietly, reap, role_succeeds};

static LEAVES_SOME: Entry<(), ()> = Entry::new("leaves some", |worker, ()| {
    for _ in 0..3 {
        worker.start(&FOR_EVER, &()).unwrap().detach();
        worker.start(&POLITE, &()).unwrap().detach();
    }
});
static POLITE: Entry<(), ()> = Entry::new("polite", |worker, ()| {
    assert!(worker.wait_stop(Duration::from_secs(600)));
    assert!(worker.stop_requested());
    assert!(worker.start(&UNIT, &()).is_err());
});

pub fn the_rest_is_asked_then_killed() {
    let counts = Rc::new(Cell::new((0, 0)));
    let seen = Rc::clone(&counts);
    // Polite ones end at once; only the hung ones use the patience up.
    let config = Config::new()
        .patience(Duration::from_millis(500))
        .on_end(move |end| {
            let (ended, killed) = seen.get();
            seen.set(match &end.cause {
                Ok(()) => (ended + 1, killed),
                Err(JoinError::Signaled(9)) => (ended, killed + 1),
                Err(JoinError::NotStarted(_)) => (ended, killed),
                Err(other) => panic!("{other:?}"),
            });
        });
    run(&config, &LEAVES_SOME, ()).unwrap();
    let (ended, killed) = counts.get();
    // The first one, the polite ones and the hung ones, as far as they were started.
    assert!((1..=4).contains(&ended) && killed <= 3, "{ended} {killed}");
}

/// What was requested is not started any more, and who is killed is not started again.
pub fn nothing_is_started_at_the_end() {
    let causes = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&causes);
    let config = Config::new().patience(Duration::ZERO).on_end(move |end| {
        assert_eq!(end.restart_in, None);
        seen.borrow_mut().push(format!("{:?}", end.cause));
    });
    let mut master = Master::new(&config).unwrap();
    let again = StartOptions::new().restart(Restart::Always(Backoff::default()));
    drop(master.start_with(again, &FOR_EVER, &()).unwrap());
    assert_eq!(master.dispatch().unwrap().started, 1);
    drop(master.start(&FOR_EVER, &()).unwrap());
    master.finish().unwrap();
    let causes = causes.borrow();
    assert!(causes[0].contains("NotStarted"), "{causes:?}");
    assert!(causes[1].contains("Signaled(9)"), "{causes:?}");
    assert_eq!(causes.len(), 2);
}

static TELLS: Entry<(), ()> = Entry::new("tells", |worker, ()| {
    let hung = [(); 3].map(|()| worker.start(&FOR_EVER, &()).unwrap());
    worker.start(&UNIT, &()).unwrap().join().unwrap();
    println!("{}", std::process::id());
    use std::io::Write;
    std::io::stdout().flush().unwrap();
    drop(hung);
    loop_for_ever();
});

/// A run with a pid file, in a directory that the parent has chosen.
pub fn role_pid_file() {
    let config = Config::new().pid_file(std::env::var_os("SHMKIT_TEST_PID_FILE").unwrap());
    run(&config, &TELLS, ()).unwrap();
}

pub fn a_killed_master_leaves_nothing() {
    use std::io::{BufRead, BufReader, Read};
    let path = std::env::temp_dir().join(format!("shmkit-pid-{}", std::process::id()));
    let mut role = program("role_pid_file");
    let mut master = role
        .env("SHMKIT_TEST_PID_FILE", &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(master.stdout.take().unwrap());
    output.read_line(&mut String::new()).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written.trim().parse(), Ok(master.id()));
    let config = Config::new().pid_file(&path);
    let refused = run(&config, &UNIT, ());
    assert!(
        matches!(refused, Err(RunError::AlreadyRunning { .. })),
        "{refused:?}"
    );

    master.kill().unwrap();
    master.wait().unwrap();
    // The stream ends when the last of the workers has closed it, by dying.
    assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert!(path.exists(), "the file is left");
    run(&config, &UNIT, ()).unwrap();
    assert!(!path.exists(), "the next run has removed it");
}

static ELSEWHERE: Entry<(), ()> = Entry::external("nobody's");

/// Who looks meanwhile, as a peer may, finds it requested.
pub fn what_is_requested_is_answered_before_there_is_no_run() {
    let requested = Rc::new(RefCell::new(Vec::new()));
    let found = Rc::new(RefCell::new(Vec::new()));
    let (looked_at, finds) = (Rc::clone(&requested), Rc::clone(&found));
    let config = Config::new().on_end(move |end| {
        let is_refused = matches!(end.cause, Err(JoinError::NotStarted(_)));
        for job in &*looked_at.borrow() {
            let job: &JoinHandle<()> = job;
            let over = job.wait_timeout(Duration::ZERO).ok();
            finds.borrow_mut().push((is_refused, over));
        }
    });
    let master = Master::new(&config).unwrap();
    let start = |_| master.start(&ELSEWHERE, &()).unwrap();
    requested.borrow_mut().extend((0..2).map(start));
    drop(master);
    let over = [true, false, true, true].map(|over| (true, Some(over)));
    assert_eq!(*found.borrow(), over);
}

static KEEPER: Entry<Handle<AtomicU32>, ()> = Entry::new("keeper", |_, here| {
    let here = here.open().unwrap();
    let _kept = here.pool().create([7_u64; 1000]).unwrap();
    here.store(1, Ordering::Release);
    loop_for_ever();
});

pub fn the_dead_are_recovered_before_they_have_ended() {
    let pool = Pool::builder().create().unwrap();
    let here = pool.create(AtomicU32::new(0)).unwrap();
    // Types are described once.
    drop(pool.create([7_u64; 1000]).unwrap());
    let allocated = Rc::new(Cell::new(0));
    let seen = Rc::clone(&allocated);
    let config = Config::new().on_end(move |_| seen.set(pool.stats().allocated));
    let before = pool.stats().allocated;
    let mut master = Master::new(&config).unwrap();
    let keeper = master.start(&KEEPER, &here.handle()).unwrap();
    master.dispatch().unwrap();
    while here.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    assert!(pool.stats().allocated > before);
    keeper.kill().unwrap();
    while !keeper.is_finished() {
        poll(&mut [PollFd::new(&master, PollFlags::IN)], None).unwrap();
        master.dispatch().unwrap();
    }
    assert_eq!(allocated.get(), before);
    master.finish().unwrap();
    drop(here);
    // SAFETY: the last handle was dropped above.
    unsafe { pool.unmap() };
}

/// It has the descriptors of processes that were alive when it was forked.
pub fn a_copy_of_a_master_does_not_keep_it_awake() {
    let mut master = Master::new(&Config::new()).unwrap();
    let hangs = master.start(&FOR_EVER, &()).unwrap();
    assert_eq!(master.dispatch().unwrap().started, 1);
    let (told, tell) = std::io::pipe().unwrap();
    let Some(child) = fork() else {
        drop(tell);
        super::sleep_on(&told);
        leave(true);
    };
    hangs.kill().unwrap();
    while !hangs.is_finished() {
        poll(&mut [PollFd::new(&master, PollFlags::IN)], None).unwrap();
        master.dispatch().unwrap();
    }
    // What has woken it is dealt with.
    master.dispatch().unwrap();
    let now = rustix::event::Timespec::default();
    let events = poll(&mut [PollFd::new(&master, PollFlags::IN)], Some(&now)).unwrap();
    drop(tell);
    assert_eq!(reap(child), 0);
    assert_eq!(events, 0);
    master.finish().unwrap();
}

static DESCRIPTORS: Entry<(), Vec<PathBuf>> = Entry::new("descriptors", |_, ()| {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    // That of the directory itself is closed by now.
    let lead_to = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    lead_to.collect()
});

/// A worker's child that outlives all has no lock on the next run's files.
pub fn workers_have_no_descriptor_of_the_pid_file() {
    let dir = Scratch::new("descriptors");
    let config = dir.config().pid_file(dir.0.join("pid"));
    let open = run(&config, &DESCRIPTORS, ()).unwrap();
    let is_ours = |path: &PathBuf| path.starts_with(&dir.0);
    assert!(!open.is_empty() && !open.iter().any(is_ours), "{open:?}");
}

/// However many workers and peers there are.
pub fn a_worker_has_of_its_master_what_wakes_it() {
    // What is no file.
    let open = |links: Vec<PathBuf>| links.into_iter().filter(|link| !link.has_root());
    let own = std::fs::read_dir("/proc/self/fd").unwrap();
    let own = own.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let before: Vec<_> = open(own.collect()).collect();
    let name = unique("descriptors");
    let mut master = Master::new(&peers::config(&name)).unwrap();
    let peer = Peers::start(&name, &["role_peer"]);
    let area = master.start(&AREA, &Shape::Empty).unwrap();
    assert_eq!(joined(&mut master, area).unwrap(), 0.0);
    master.start(&FOR_EVER, &()).unwrap().detach();
    assert_eq!(master.dispatch().unwrap().started, 1);
    let theirs = master.start(&DESCRIPTORS, &()).unwrap();
    let theirs = open(joined(&mut master, theirs).unwrap());
    let new: Vec<_> = theirs.filter(|link| !before.contains(link)).collect();
    assert_eq!(new, [PathBuf::from("anon_inode:[eventfd]")]);
    master.finish().unwrap();
    assert_eq!(peer.codes(), [Some(0)]);
}

static ECHOES: Entry<(), ()> = Entry::new("echoes", |worker, ()| {
    while !worker.wait_stop(Duration::from_secs(60)) {}
});

pub fn a_forked_copy_of_a_master_ends_nothing() {
    let path = std::env::temp_dir().join(format!("shmkit-copy-{}", std::process::id()));
    let name = format!("test-copy-{}", std::process::id());
    let config = Config::new().pid_file(&path).name(&name);
    let mut master = Master::new(&config).unwrap();
    let waits = master.start(&ECHOES, &()).unwrap();
    assert_eq!(master.dispatch().unwrap().started, 1);
    let Some(child) = fork() else {
        let refused = matches!(master.dispatch(), Err(RunError::Forked))
            && matches!(master.start(&UNIT, &()), Err(StartError::Forked))
            && matches!(master.finish(), Err(RunError::Forked));
        leave(refused);
    };
    assert_eq!(reap(child), 0);
    master.dispatch().unwrap();
    assert!(path.exists() && !waits.is_finished());
    let control = format!("/dev/shm/shmkit.{name}.run");
    assert!(std::path::Path::new(&control).exists());
    master.finish().unwrap();
    assert!(!path.exists() && !std::path::Path::new(&control).exists());
}

/// However far it comes, with a name and without.
pub fn a_master_that_gets_no_memory_leaves_nothing() {
    let name = unique("no memory");
    for config in [Config::new(), Config::new().name(&name)] {
        let left = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            // Of files without a name.
            let pools = maps.lines().filter(|line| line.ends_with("(deleted)"));
            (open_descriptors(), pools.count())
        };
        let before = left();
        let mut granted = 0;
        loop {
            testing::refuse_commits(Some(granted));
            let made = Master::new(&config).map(drop);
            testing::refuse_commits(None);
            match made {
                Ok(()) => break,
                Err(RunError::Pool(_) | RunError::NoMemory(_)) => granted += 1,
                Err(other) => panic!("{other:?}"),
            }
            assert_eq!(left(), before, "after {granted}");
        }
        assert!(granted > 3);
    }
    peers::no_name_is_left(&name);
}

/// Files at the numbers that are free by now, and all that were written to.
fn written_to(by: impl FnOnce()) -> usize {
    let file = || rustix::fs::memfd_create(c"innocent", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let files = [(); 16].map(|()| file());
    by();
    let length = |file: &std::os::fd::OwnedFd| rustix::fs::fstat(file).unwrap().st_size;
    files.iter().filter(|file| length(file) > 0).count()
}

fn counters() -> Vec<PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_counter = |fd: &PathBuf| {
        std::fs::read_link(fd).is_ok_and(|link| link.to_string_lossy().contains("[eventfd]"))
    };
    open.map(|fd| fd.unwrap().path())
        .filter(is_counter)
        .collect()
}

pub fn who_wakes_a_master_that_is_gone_writes_nowhere_else() {
    let master = Master::new(&Config::new()).unwrap();
    let unit = master.start(&UNIT, &()).unwrap();
    let Some(child) = fork() else {
        drop(master);
        leave(written_to(|| unit.kill().unwrap()) == 0);
    };
    assert_eq!(reap(child), 0);
    drop(master);
    // Another thread may be about to write.
    let Some(child) = fork() else {
        let master = Master::new(&Config::new()).unwrap();
        let thread = std::thread::spawn(std::thread::park);
        let before = counters();
        drop(master);
        leave(!thread.is_finished() && before.len() == 1 && counters() == before);
    };
    assert_eq!(reap(child), 0);
}

/// A run's own pool does not take all of the address space where that is limited.
pub fn role_little_address_space() {
    let before = getrlimit(Resource::As);
    let current = Some(100 << 30);
    setrlimit(Resource::As, Rlimit { current, ..before }).unwrap();
    let pool = Pool::builder().max_size(1 << 30).create().unwrap();
    assert_eq!(run(&Config::new(), &SQUARE, 12).unwrap(), 144);
    // SAFETY: nothing was made in it, and nobody else has it.
    unsafe { pool.unmap() };
}

pub fn a_run_in_little_address_space() {
    role_succeeds("role_little_address_space");
}

pub fn a_panic_of_the_hook_comes_last() {
    let ends = std::rc::Rc::new(std::cell::Cell::new(0));
    let seen = std::rc::Rc::clone(&ends);
    let path = std::env::temp_dir().join(format!("shmkit-hook-{}", std::process::id()));
    let config = Config::new().pid_file(&path).on_end(move |end| {
        seen.set(seen.get() + 1);
        panic!("worker {} has ended", end.worker.number());
    });
    let mut master = Master::new(&config).unwrap();
    let unit = master.start(&UNIT, &()).unwrap();
    let message = super::panic_message(|| while master.dispatch().is_ok() {});
    assert_eq!(message, "worker 1 has ended");
    assert!(unit.is_finished());
    unit.try_join().unwrap().unwrap();
    // The master goes on; and what it cannot tell while it goes, is not told.
    master.start(&FOR_EVER, &()).unwrap().detach();
    assert_eq!(master.dispatch().unwrap().started, 1);
    quietly(|| drop(master));
    assert_eq!(ends.get(), 2);
    // A panic while another one goes on.
    ends.set(0);
    let mut master = Master::new(&config).unwrap();
    let units = [(); 2].map(|()| master.start(&UNIT, &()).unwrap());
    master.start(&FOR_EVER, &()).unwrap().detach();
    assert_eq!(master.dispatch().unwrap().started, 3);
    let message = super::panic_message(move || while master.dispatch().is_ok() {});
    assert!(message == "worker 1 has ended" || message == "worker 2 has ended");
    assert_eq!(ends.get(), 3);
    assert!(!path.exists());
    drop(units);
}

pub fn a_master_has_one_thread() {
    let (reader, writer) = std::io::pipe().unwrap();
    let thread = std::thread::spawn(move || super::listen(&reader));
    let refused = run(&Config::new(), &UNIT, ());
    assert!(
        matches!(refused, Err(RunError::MultiThreaded { tasks: 2 })),
        "{refused:?}"
    );
    super::tell(&writer);
    thread.join().unwrap();
}

static SUB_MASTER: Entry<u64, u64> = Entry::new("sub-master", |worker, n| {
    let inner = run(&Config::new(), &SQUARE, n).unwrap();
    let outer = worker.start(&SQUARE, &n).unwrap().join().unwrap();
    let scoped = shmkit::process::scope(|s| {
        s.spawn(|| worker.start(&SQUARE, &n).unwrap().join().unwrap())
            .unwrap()
            .join()
            .unwrap()
    });
    assert!(inner == outer && outer == scoped);
    inner
});

pub fn a_worker_is_a_master_or_has_children() {
    assert_eq!(run(&Config::new(), &SUB_MASTER, 7).unwrap(), 49);
}

static THREE: Entry<(), ()> = Entry::new("three", |worker, ()| {
    for n in 0..3 {
        print!("{n}");
        worker.start(&UNIT, &()).unwrap().join().unwrap();
    }
});

pub fn role_prints() {
    print!("before,");
    let config = Config::new().on_end(|_| print!("end,"));
    run(&config, &THREE, ()).unwrap();
    let mut master = Master::new(&Config::new()).unwrap();
    for _ in 0..2 {
        print!("between,");
        master.start(&UNIT, &()).unwrap().detach();
        assert_eq!(master.dispatch().unwrap().started, 1);
    }
    master.finish().unwrap();
}

/// What is printed in the master is printed by no worker that it forks later.
pub fn a_masters_output_is_flushed_once() {
    let output = super::role_succeeds("role_prints");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.matches("before,").count(), 1, "{printed}");
    assert_eq!(printed.matches("end,").count(), 4, "{printed}");
    assert_eq!(printed.matches("between,").count(), 2, "{printed}");
    assert!(printed.contains("012"), "{printed}");
}

/// Handles may be sent to other threads, which safe code may start beside a master.
pub fn a_master_is_dropped_beside_a_thread_that_waits() {
    let Some(child) = fork() else {
        let mut master = Master::new(&Config::new()).unwrap();
        let handle = master.start(&FOR_EVER, &()).unwrap();
        while master.workers() == 0 {
            master.dispatch().unwrap();
        }
        let (tell, told) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            handle.wait_timeout(Duration::from_secs(60))
        });
        let stat = format!("/proc/self/task/{}/stat", told.recv().unwrap());
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            std::thread::yield_now();
        }
        drop(master);
        leave(waits.join().unwrap().unwrap());
    };
    assert_eq!(reap(child), 0);
}

thread_local! {
    static MASTER: Cell<Option<Master>> = const { Cell::new(None) };
}

/// A result that ends the run where it is read.
#[derive(Serialize, Deserialize)]
struct Ends(#[serde(deserialize_with = "end")] u8);

fn end<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
    drop(MASTER.take());
    u8::deserialize(from)
}

static ENDS: Entry<(), Ends> = Entry::new("ends the run", |_, ()| Ends(7));

pub fn a_master_is_dropped_within_a_join() {
    let Some(child) = fork() else {
        let mut master = Master::new(&Config::new()).unwrap();
        let ends = master.start(&ENDS, &()).unwrap();
        while !ends.is_finished() {
            master.dispatch().unwrap();
        }
        MASTER.set(Some(master));
        let read = matches!(ends.try_join(), Ok(Ok(Ends(7))));
        leave(read && MASTER.take().is_none());
    };
    assert_eq!(reap(child), 0);
}

pub fn a_control_pool_that_was_opened_stays_when_its_master_is_dropped() {
    let Some(child) = fork() else {
        let name = unique("opened");
        let master = Master::new(&peers::config(&name)).unwrap();
        // SAFETY: the pool made just now.
        let pool = unsafe { Pool::open(format!("{name}.run")) }.unwrap();
        drop(master);
        leave(pool.check().is_ok());
    };
    assert_eq!(reap(child), 0);
}

static CHANGES: Entry<i32, ()> = Entry::new("changes its credentials", |worker, fd| {
    const OTHER: libc::uid_t = 65534;
    // SAFETY: changes numbers of this process.
    assert_eq!(unsafe { libc::setresuid(OTHER, OTHER, OTHER) }, 0);
    let hung = worker.start(&FOR_EVER, &()).unwrap();
    // SAFETY: the pipe's end, which this process has from its master.
    let mut pipe = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    pipe.write_all(b"!").unwrap();
    let limit = Duration::from_secs(60);
    let since = std::time::Instant::now();
    let stops = worker.wait_stop(limit) && since.elapsed() < limit;
    let joined = hung.wait_timeout(limit);
    assert!(stops && !matches!(joined, Ok(false)), "{stops} {joined:?}");
    pipe.write_all(b"told").unwrap();
});

/// The kernel does not end it with its master.
pub fn a_worker_with_other_credentials_is_told() {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return skipped("workers with other credentials: this user may not change them");
    }
    let (mut reader, writer) = std::io::pipe().unwrap();
    let Some(master) = fork() else {
        drop(reader);
        let ended = run(&Config::new(), &CHANGES, writer.as_raw_fd());
        leave(ended.is_ok());
    };
    drop(writer);
    reader.read_exact(&mut [0]).unwrap();
    let pid = nix::unistd::Pid::from_raw(master);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(reap(master), 9);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "told");
}

static OUTLIVES: Entry<i32, ()> = Entry::new("outlives", |worker, fd| {
    // SAFETY: changes numbers of this process.
    assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
    // SAFETY: the pipe's end, which this process has from its master.
    let mut pipe = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    pipe.write_all(b"!").unwrap();
    while !worker.wait_stop(Duration::from_secs(60)) {}
});

/// Who drops its master waits for what it may not kill.
pub fn a_worker_that_may_not_be_killed_is_asked() {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return skipped("workers with other credentials: this user may not change them");
    }
    let Some(child) = fork() else {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut master = Master::new(&Config::new()).unwrap();
        let worker = master.start(&OUTLIVES, &writer.as_raw_fd()).unwrap();
        worker.detach();
        master.dispatch().unwrap();
        reader.read_exact(&mut [0]).unwrap();
        // SAFETY: changes numbers of this process, and ends it if it waits for ever.
        unsafe {
            assert_eq!(libc::setresuid(65533, 65533, 65533), 0);
            libc::alarm(20);
        }
        drop(master);
        leave(true);
    };
    assert_eq!(reap(child), 0);
}

static LOCKS: Entry<(), u32> = Entry::new("locks", |_, ()| {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _out = std::io::stdout().lock();
        tell.send(()).unwrap();
        loop_for_ever();
    });
    told.recv().unwrap();
    7
});
static ENDS_ALL_THE_SAME: Entry<(), u32> = Entry::new("ends all the same", |worker, ()| {
    let locks = worker.start(&LOCKS, &()).unwrap();
    assert!(locks.wait_timeout(Duration::from_secs(60)).unwrap());
    locks.join().unwrap()
});

/// A thread ends with its process, whatever it has locked.
pub fn who_has_locked_the_output_is_not_waited_for() {
    assert_eq!(run(&Config::new(), &ENDS_ALL_THE_SAME, ()).unwrap(), 7);
}

/// What a pipe holds.
const PIPE: usize = 1 << 16;

static FILLS: Entry<(), ()> = Entry::new("fills", |_, ()| {
    std::thread::spawn(loop_for_ever);
    let mut out = std::io::stdout();
    out.write_all(&[b'.'; PIPE]).unwrap();
    // Stays in the buffer.
    out.write_all(b"end").unwrap();
});

pub fn role_fills() {
    run(&Config::new(), &FILLS, ()).unwrap();
}

/// Who reads late gets all of it, whatever threads the worker has.
pub fn who_reads_the_output_is_waited_for() {
    let mut command = program("role_fills");
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    while rustix::io::ioctl_fionread(&output).unwrap() < PIPE as u64 {
        std::thread::yield_now();
    }
    // Longer than threads are waited for.
    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_millis(500) {
        std::thread::yield_now();
    }
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(said.ends_with(".end"), "{}", said.len());
    assert!(child.wait().unwrap().success());
}
