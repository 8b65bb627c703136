//! Programs that were started separately, in a run that they find by its name.
//!
//! The other program is this one, executed anew: at other addresses, with another nonce, and with
//! definitions of its own (`role_peer`, `role_odd_peer`).

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shmkit::process::{
    Backoff, Config, Entry, JoinError, JoinHandle, Managed, Master, Peer, PeerError, Resource,
    ResourceError, ResourceId, Resources, Restart, ResultError, RunError, StartError, StartOptions,
    run,
};
use shmkit::{AttachError, HashMap, Pool};

use super::{loop_for_ever, program};

/// What travels: with names, an option, a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Empty,
    Square { side: f64, label: Option<String> },
}

/// How a job is to end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum End {
    Return,
    Panic,
    Exit,
    Abort,
    Kill,
}

// What the master's program knows of the peers' entries.
static AREA: Entry<Shape, f64> = Entry::external("area");
static ECHO: Entry<Vec<u8>, Vec<u8>> = Entry::external("echo");
static PID: Entry<(), u32> = Entry::external("pid");
static ENDS: Entry<End, u32> = Entry::external("ends");
static RELAY: Entry<u32, u32> = Entry::external("relay");
static HANGS: Entry<(), ()> = Entry::external("hangs");
static COUNTS: Entry<(String, u64), u64> = Entry::external("counts");
static NOBODYS: Entry<(), ()> = Entry::external("nobody's");
static OUTLIVES: Entry<(), ()> = Entry::external("outlives");
static USES: Entry<PathBuf, ()> = Entry::external("uses");
static KEEPS: Entry<String, ()> = Entry::external("keeps");

/// The peers' own.
mod theirs {
    use super::*;

    pub static AREA: Entry<Shape, f64> = Entry::new("area", |_, shape| match shape {
        Shape::Empty => 0.0,
        Shape::Square { side, .. } => side * side,
    });
    pub static ODD_AREA: Entry<(Shape, u8), f64> = Entry::new("area", |_, _| -1.0);
    pub static ECHO: Entry<Vec<u8>, Vec<u8>> = Entry::new("echo", |_, bytes| bytes);
    pub static PID: Entry<(), u32> = Entry::new("pid", |_, ()| std::process::id());
    pub static ENDS: Entry<End, u32> = Entry::new("ends", |worker, end| {
        // The second time it goes well.
        match end {
            _ if worker.restarts() > 0 => worker.restarts(),
            End::Return => 0,
            End::Panic => panic!("as asked"),
            End::Exit => std::process::exit(3),
            End::Abort => std::process::abort(),
            // SAFETY: a signal to this process.
            End::Kill => unsafe { libc::kill(libc::getpid(), libc::SIGKILL) as u32 },
        }
    });
    /// Goes through the master's program and back.
    pub static RELAY: Entry<u32, u32> = Entry::new("relay", |worker, depth| match depth {
        0 => 0,
        _ => {
            1 + worker
                .start(&HALF_WAY, &(depth - 1))
                .unwrap()
                .join()
                .unwrap()
        }
    });
    pub static HALF_WAY: Entry<u32, u32> = Entry::external("half way");
    pub static HANGS: Entry<(), ()> = Entry::new("hangs", |_, ()| loop_for_ever());
    /// Does not come back: what it has seen is its exit code.
    pub static OUTLIVES: Entry<(), ()> = Entry::new("outlives", |worker, ()| {
        println!("here");
        let stopped = worker.wait_stop(Duration::from_secs(60)) && worker.stop_requested();
        let file = Resource::File("/nonexistent/shmkit".into());
        let managed = worker.resources().manage(file);
        let over = matches!(managed, Err(ResourceError::RunOver));
        std::process::exit(if stopped && over { 18 } else { 1 });
    });
    pub static USES: Entry<PathBuf, ()> = Entry::new("uses", |worker, path| {
        let file = worker.resources().manage(Resource::File(path)).unwrap();
        std::fs::write(file.path(), "").unwrap();
        loop_for_ever()
    });
    pub static KEEPS: Entry<String, ()> = Entry::new("keeps", |_, name| {
        // SAFETY: the pool of the case, by its name.
        let pool = unsafe { Pool::open(&name) }.unwrap();
        let _kept = pool.create([7_u64; 1000]).unwrap();
        let here = pool.named::<AtomicU32>("here").unwrap();
        here.store(1, Ordering::Release);
        loop_for_ever()
    });
    /// In the second round what is left of the first one's use ends, and the second one's does not.
    pub static LEAVES_IT: Entry<(ResourceId, PathBuf, u32), ()> =
        Entry::new("leaves it", |worker, (id, path, round)| {
            static LEFT: Mutex<Option<(Resources, Managed)>> = Mutex::new(None);
            let used = worker.resources().get(id).unwrap();
            let left = LEFT.lock().unwrap().take();
            match left {
                None if round == 0 => {
                    *LEFT.lock().unwrap() = Some((worker.resources().clone(), used));
                }
                Some((resources, managed)) if round == 1 => {
                    drop(managed);
                    assert!(matches!(resources.get(id), Err(ResourceError::RunOver)));
                    let file = Resource::File(path.with_extension("other"));
                    let refused = resources.manage(file);
                    assert!(matches!(refused, Err(ResourceError::RunOver)));
                    std::fs::write(path.with_extension("go"), "").unwrap();
                    while !path.with_extension("done").exists() {
                        std::thread::yield_now();
                    }
                }
                _ => panic!("one peer has both rounds"),
            }
        });
    pub static COUNTS: Entry<(String, u64), u64> = Entry::new("counts", |_, (name, n)| {
        // SAFETY: the pool of the case, by its name.
        let pool = unsafe { Pool::open(&name) }.unwrap();
        let counted = pool.named::<HashMap<u64, u64>>("counted").unwrap();
        counted.insert(&n, n * n).unwrap();
        n * n
    });
}

/// The master's program has this one, for its peers.
static HALF_WAY: Entry<u32, u32> = Entry::new("half way", |worker, depth| {
    worker.start(&RELAY, &depth).unwrap().join().unwrap()
});

const RUN: &str = "SHMKIT_TEST_RUN";

/// In a peer: the run, once it is there.
fn attached() -> Peer {
    let name = std::env::var(RUN).unwrap();
    loop {
        // SAFETY: the run of the case, by its name.
        match unsafe { Peer::attach(&name) } {
            Ok(peer) => return peer,
            Err(PeerError::Attach(AttachError::NotFound { .. })) => std::thread::yield_now(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub fn role_peer() {
    std::panic::set_hook(Box::new(|_| ()));
    let mut peer = attached();
    peer.define(&theirs::AREA)
        .define(&theirs::ECHO)
        .define(&theirs::PID)
        .define(&theirs::ENDS)
        .define(&theirs::RELAY)
        .define(&theirs::HANGS)
        .define(&theirs::OUTLIVES)
        .define(&theirs::USES)
        .define(&theirs::KEEPS)
        .define(&theirs::COUNTS)
        .define(&theirs::LEAVES_IT);
    match peer.serve() {
        Ok(_) => {}
        Err(PeerError::MasterDied) => std::process::exit(17),
        Err(error) => panic!("{error:?}"),
    }
}

pub fn role_odd_peer() {
    let mut peer = attached();
    peer.define(&theirs::ODD_AREA);
    peer.serve().unwrap();
}

/// Starts something itself, and serves nothing.
pub fn role_asking_peer() {
    static HALF_WAY: Entry<u32, u32> = Entry::external("half way");
    let peer = attached();
    // A peer that joins runs nothing else meanwhile, so each step of a relay takes another one.
    for n in 0..4 {
        assert_eq!(peer.start(&HALF_WAY, &n).unwrap().join().unwrap(), n);
    }
    let shape = Shape::Square {
        side: 2.0,
        label: None,
    };
    assert_eq!(peer.start(&AREA, &shape).unwrap().join().unwrap(), 4.0);
}

/// Joins and kills, when it is no peer any more, what it has started as one.
pub fn role_leaving_peer() {
    static HALF_WAY: Entry<u32, u32> = Entry::external("half way");
    let mut open = Vec::new();
    for _ in 0..3 {
        let peer = attached();
        // SAFETY: the run of the case.
        let again = unsafe { Peer::attach(&std::env::var(RUN).unwrap()) };
        assert!(matches!(again, Err(PeerError::Already)));
        let half_way = peer.start(&HALF_WAY, &0).unwrap();
        let waits = peer.start(&NOBODYS, &()).unwrap();
        drop(peer);
        assert_eq!(half_way.join().unwrap(), 0);
        waits.kill().unwrap();
        assert!(matches!(waits.join(), Err(JoinError::Signaled(9))));
        open.push(super::open_descriptors());
    }
    assert_eq!(open[0], open[2], "the next one has the doorbell's number");
}

pub fn what_a_dropped_peer_started_is_joined() {
    let name = unique("dropped");
    let peers = Peers::start(&name, &["role_peer"]);
    let leaving = Peers::start(&name, &["role_leaving_peer"]);
    run(&config(&name), &WAITS_FOR, leaving.0[0].id()).unwrap();
    assert_eq!(leaving.codes(), [Some(0)]);
    assert_eq!(peers.codes(), [Some(0)]);
}

/// Two jobs of one peer, at the same place: the first leaves a use to a thread.
static LEAVES_A_USE: Entry<(), ()> = Entry::new("leaves a use", |worker, ()| {
    let path = std::env::temp_dir().join(unique("left"));
    let managed = worker.resources().manage(Resource::File(path.clone()));
    let managed = managed.unwrap();
    std::fs::write(&path, "").unwrap();
    let leaves = |round| {
        let argument = (managed.id(), path.clone(), round);
        worker.start(&LEAVES_IT, &argument).unwrap()
    };
    leaves(0).join().unwrap();
    let second = leaves(1);
    let [go, done] = ["go", "done"].map(|what| path.with_extension(what));
    while !go.exists() && !second.is_finished() {
        std::thread::yield_now();
    }
    drop(managed);
    // The master has looked at what is used.
    worker.start(&NOTHING, &()).unwrap().join().unwrap();
    let kept = path.exists();
    std::fs::write(&done, "").unwrap();
    second.join().unwrap();
    assert!(kept, "the second one uses it");
    [go, done]
        .iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
});
static NOTHING: Entry<(), ()> = Entry::new("nothing", |_, ()| ());
static LEAVES_IT: Entry<(ResourceId, PathBuf, u32), ()> = Entry::external("leaves it");

pub fn a_thread_that_a_job_left_uses_nothing() {
    let name = unique("uses");
    let peers = Peers::start(&name, &["role_peer"]);
    run(&config(&name), &LEAVES_A_USE, ()).unwrap();
    assert_eq!(peers.codes(), [Some(0)]);
}

/// Joins what does not end while there is a master.
pub fn role_waiting_peer() {
    let peer = attached();
    match peer.start(&OUTLIVES, &()).unwrap().join() {
        Err(JoinError::NoSuchRun) => {}
        other => panic!("{other:?}"),
    }
    assert!(peer.stop_requested());
    let refused = peer.start(&OUTLIVES, &());
    assert!(matches!(refused, Err(StartError::Stopping)));
    std::process::exit(19);
}

fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test-peers-{}-{count}-{what}", std::process::id())
}

fn command(role: &str, run: &str) -> Command {
    let mut command = program(role);
    command.env(RUN, run).stdin(Stdio::null());
    command
}

/// Peers that were started, and are waited for at the end.
struct Peers(Vec<Child>);

impl Peers {
    fn start(run: &str, roles: &[&str]) -> Peers {
        let start = |role: &&str| command(role, run).spawn().unwrap();
        Peers(roles.iter().map(start).collect())
    }

    /// Waits for the end of all; their exit codes, where they were not killed.
    fn codes(mut self) -> Vec<Option<i32>> {
        let codes = self.0.iter_mut().map(|peer| peer.wait().unwrap().code());
        codes.collect()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for peer in &mut self.0 {
            let _ = peer.kill();
            let _ = peer.wait();
        }
    }
}

fn config(name: &str) -> Config {
    let mut config = Config::new();
    config.name(name).define(&HALF_WAY);
    config
}

#[track_caller]
fn no_name_is_left(name: &str) {
    assert!(!Path::new(&format!("/dev/shm/shmkit.{name}.run")).exists());
}

static CALLS: Entry<(), ()> = Entry::new("calls", |worker, ()| {
    let squares = [0.5, 1.0, 3.0].map(|side| {
        let label = Some(format!("of {side}"));
        worker.start(&AREA, &Shape::Square { side, label }).unwrap()
    });
    let areas = squares.map(|square| square.join().unwrap());
    assert_eq!(areas, [0.25, 1.0, 9.0]);
    assert_eq!(
        worker.start(&AREA, &Shape::Empty).unwrap().join().unwrap(),
        0.0
    );
    for length in [0, 40, 48, 49, 100_000] {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
        let echoed = worker.start(&ECHO, &bytes).unwrap().join().unwrap();
        assert_eq!(echoed, bytes, "{length} bytes");
    }
    // Another process, and no child of the master's.
    let pid = worker.start(&PID, &()).unwrap().join().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(1)
        .unwrap();
    // SAFETY: asks for a number.
    let master = unsafe { libc::getppid() };
    assert_ne!(pid, std::process::id());
    // The case is both the master and the parent that started the peers.
    assert_eq!(parent.parse::<i32>().unwrap(), master);
    // Peers start what the master's program has, and each other's.
    assert_eq!(worker.start(&RELAY, &3).unwrap().join().unwrap(), 3);
});

pub fn peers_run_jobs_by_name() {
    let name = unique("calls");
    let peers = Peers::start(&name, &["role_peer"; 5]);
    run(&config(&name), &CALLS, ()).unwrap();
    assert_eq!(peers.codes(), [Some(0); 5]);
    no_name_is_left(&name);
}

pub fn peers_start_and_join() {
    let name = unique("asks");
    let peers = Peers::start(&name, &["role_peer", "role_peer", "role_peer", "role_peer"]);
    let asking = Peers::start(&name, &["role_asking_peer"]);
    run(&config(&name), &WAITS_FOR, asking.0[0].id()).unwrap();
    assert_eq!(asking.codes(), [Some(0)]);
    assert_eq!(peers.codes(), [Some(0); 4]);
}

/// Serves until that process is gone, or a zombie.
static WAITS_FOR: Entry<u32, ()> = Entry::new("waits for a process", |_, pid| {
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
    };
    while runs() {
        std::thread::yield_now();
    }
});

static ENDINGS: Entry<(), ()> = Entry::new("endings", |worker, ()| {
    let end = |end| worker.start(&ENDS, &end).unwrap().join();
    assert_eq!(end(End::Return).unwrap(), 0);
    match end(End::Panic) {
        Err(JoinError::Panicked(message)) => assert_eq!(message, "as asked"),
        other => panic!("{other:?}"),
    }
    // The status is its parent's, which has not asked for it.
    assert!(matches!(end(End::Exit), Err(JoinError::Exited(3))));
    assert!(matches!(end(End::Abort), Err(JoinError::Signaled(6))));
    assert!(matches!(end(End::Kill), Err(JoinError::Signaled(9))));
    // Once more, by another peer.
    let restart = Restart::OnCrash(Backoff::new(Duration::from_millis(1)));
    let options = StartOptions::new().restart(restart);
    let again = |end| worker.start_with(options, &ENDS, &end).unwrap().join();
    assert_eq!(again(End::Panic).unwrap(), 1);
    assert_eq!(again(End::Kill).unwrap(), 1);
    // One that hangs is killed.
    let hangs = worker.start(&HANGS, &()).unwrap();
    hangs.kill().unwrap();
    assert!(matches!(hangs.join(), Err(JoinError::Signaled(9))));
    let area = worker.start(&AREA, &Shape::Empty).unwrap().join();
    assert_eq!(area.unwrap(), 0.0);
});

pub fn every_end_of_a_peer_has_its_cause() {
    let name = unique("ends");
    let peers = Peers::start(&name, &["role_peer"; 6]);
    run(&config(&name), &ENDINGS, ()).unwrap();
    let ended: Vec<_> = peers.codes();
    let in_order = ended.iter().filter(|code| **code == Some(0)).count();
    // Exit, abort, two kills; and what hung, if a peer had it by then.
    assert!((1..=2).contains(&in_order), "{ended:?}");
    no_name_is_left(&name);
}

static DISAGREES: Entry<(), ()> = Entry::new("disagrees", |worker, ()| {
    // It waits for a program that has it, and the only one has another.
    match worker.start(&AREA, &Shape::Empty).unwrap().join() {
        Err(JoinError::OtherTypes(name)) => assert_eq!(name, "area"),
        other => panic!("{other:?}"),
    }
    // What nobody has waits until the end, and what is killed while it waits is over.
    let killed = worker.start(&NOBODYS, &()).unwrap();
    killed.kill().unwrap();
    assert!(matches!(killed.join(), Err(JoinError::Signaled(9))));
    let waits = worker.start(&NOBODYS, &()).unwrap();
    assert!(!waits.wait(Duration::from_millis(20)).unwrap());
    waits.detach();
});

pub fn who_disagrees_is_refused() {
    let name = unique("odd");
    let peers = Peers::start(&name, &["role_odd_peer"]);
    run(&config(&name), &DISAGREES, ()).unwrap();
    assert_eq!(peers.codes(), [Some(0)]);
    // SAFETY: there is none of that name.
    let none = unsafe { Peer::attach(&name) };
    assert!(matches!(
        none,
        Err(PeerError::Attach(AttachError::NotFound { .. }))
    ));
    // SAFETY: no name that a pool can have.
    let bad = unsafe { Peer::attach("a/b") };
    assert!(matches!(
        bad,
        Err(PeerError::Attach(AttachError::InvalidName { .. }))
    ));
    let pool = Pool::builder()
        .max_size(1 << 20)
        .create_named(&format!("{name}.run"))
        .unwrap();
    // SAFETY: the pool made just now.
    let other = unsafe { Peer::attach(&name) };
    assert!(matches!(other, Err(PeerError::NotARun)));
    pool.set_name("shmkit run", &pool.create(1_u64).unwrap())
        .unwrap();
    // SAFETY: as above.
    let other = unsafe { Peer::attach(&name) };
    assert!(matches!(other, Err(PeerError::OtherVersion)));
    // A name in use is one for a run, too.
    let running = run(&config(&name), &DISAGREES, ());
    assert!(
        matches!(running, Err(RunError::AlreadyRunning { .. })),
        "{running:?}"
    );
    Pool::unlink(&format!("{name}.run")).unwrap();
    // SAFETY: nothing of it is in use: the handles above were dropped.
    unsafe { pool.unmap() };
}

static FOR_EVER: Entry<(), ()> = Entry::new("for ever", |_, ()| loop_for_ever());

pub fn role_named_master() {
    let name = std::env::var(RUN).unwrap();
    run(&config(&name), &FOR_EVER, ()).unwrap();
}

pub fn peers_outlive_their_master_by_little() {
    let name = unique("orphans");
    let mut master = command("role_named_master", &name).spawn().unwrap();
    let peers = Peers::start(&name, &["role_peer"; 2]);
    // Both take part: they hold its pool, and the master has their descriptors.
    let seen = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", master.id())).unwrap();
        let links = descriptors.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links
            .filter(|link| link.to_string_lossy().contains("pidfd"))
            .count()
    };
    let began = Instant::now();
    // The first worker's, and theirs.
    while seen() < 3 {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
    // A second run of the name is refused while it is on.
    let second = run(&config(&name), &CALLS, ());
    assert!(
        matches!(second, Err(RunError::AlreadyRunning { .. })),
        "{second:?}"
    );
    master.kill().unwrap();
    master.wait().unwrap();
    assert_eq!(peers.codes(), [Some(17); 2]);
    no_name_is_left(&name);
    // And the next one starts.
    let peers = Peers::start(&name, &["role_peer"; 5]);
    run(&config(&name), &CALLS, ()).unwrap();
    assert_eq!(peers.codes(), [Some(0); 5]);
}

pub fn who_waits_for_a_dead_master_is_told() {
    let name = unique("told");
    let mut master = command("role_named_master", &name).spawn().unwrap();
    let mut serves = command("role_peer", &name);
    let mut serves = Peers(vec![serves.stdout(Stdio::piped()).spawn().unwrap()]);
    let waits = Peers::start(&name, &["role_waiting_peer"]);
    let output = serves.0[0].stdout.take().unwrap();
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert_eq!(line, "here\n");
    master.kill().unwrap();
    master.wait().unwrap();
    assert_eq!(serves.codes(), [Some(18)]);
    assert_eq!(waits.codes(), [Some(19)]);
    // Neither came to look after the name.
    let _ = Pool::unlink(&format!("{name}.run"));
}

/// A peer writes to what it finds at the number that the run names, so it looks what that is.
pub fn a_doorbell_is_a_pipe() {
    let name = unique("doorbell");
    let master = Master::new(&config(&name)).unwrap();
    let writes = |fd: &i32| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        // SAFETY: asks for flags.
        let flags = unsafe { libc::fcntl(*fd, libc::F_GETFL) };
        link.is_ok_and(|link| link.to_string_lossy().starts_with("pipe:"))
            && flags & libc::O_ACCMODE == libc::O_WRONLY
    };
    // The last one that was made.
    let doorbell = (3..64).rfind(writes).unwrap();
    let path = std::env::temp_dir().join(&name);
    std::fs::write(&path, "precious").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    // SAFETY: the master goes on to own the number, at which there is another file from now on.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), doorbell) }, doorbell);
    let asked = command("role_asking_peer", &name).output().unwrap();
    assert!(!asked.status.success());
    assert!(
        String::from_utf8_lossy(&asked.stderr).contains("Unreachable"),
        "{asked:?}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    drop(master);
    no_name_is_left(&name);
}

static LEAVES: Entry<PathBuf, ()> = Entry::new("leaves a peer at work", |worker, path| {
    worker.start(&USES, &path).unwrap().detach();
    while !path.exists() {
        std::thread::yield_now();
    }
});

pub fn what_a_killed_peer_used_is_removed() {
    let name = unique("used");
    let path = std::env::temp_dir().join(&name);
    let peers = Peers::start(&name, &["role_peer"]);
    run(&config(&name), &LEAVES, path.clone()).unwrap();
    assert!(!path.exists());
    assert_eq!(peers.codes(), [None], "killed");
}

static KILLS_KEEPER: Entry<String, ()> = Entry::new("kills a keeper", |worker, name| {
    // SAFETY: the pool of the case, by its name.
    let pool = unsafe { Pool::open(&name) }.unwrap();
    let here = pool.named::<AtomicU32>("here").unwrap();
    let before = pool.stats().allocated;
    let keeper = worker.start(&KEEPS, &name).unwrap();
    while here.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    assert!(pool.stats().allocated > before);
    keeper.kill().unwrap();
    assert!(matches!(keeper.join(), Err(JoinError::Signaled(9))));
    assert_eq!(pool.stats().allocated, before);
});

/// In the pools that the master has, and before the join answers.
pub fn what_a_killed_peer_held_is_free() {
    let name = unique("kept");
    let mut builder = Pool::builder();
    let pool = builder.max_size(16 << 20).create_named(&name).unwrap();
    let here = pool.named_or_create("here", || AtomicU32::new(0)).unwrap();
    // Types are described once.
    drop(pool.create([7_u64; 1000]).unwrap());
    let peers = Peers::start(&name, &["role_peer"]);
    run(&config(&name), &KILLS_KEEPER, name.clone()).unwrap();
    assert_eq!(peers.codes(), [None], "killed");
    Pool::unlink(&name).unwrap();
    drop(here);
    // SAFETY: the handle was dropped, and no other thread has used it.
    unsafe { pool.unmap() };
}

/// Jobs that are on their way at once.
const JOBS: u64 = 200;

static STORM: Entry<String, u64> = Entry::new("storm of peers", |worker, name| {
    let restart = Restart::OnCrash(Backoff::new(Duration::from_millis(1)));
    let options = StartOptions::new().restart(restart);
    let mut done = 0;
    let (began, limit) = (Instant::now(), storm_time());
    while began.elapsed() < limit {
        let start = |n| {
            worker
                .start_with(options, &COUNTS, &(name.clone(), n))
                .unwrap()
        };
        let handles: Vec<JoinHandle<u64>> = (done..done + JOBS).map(start).collect();
        for (n, handle) in (done..).zip(handles) {
            match handle.join() {
                Ok(square) => assert_eq!(square, n * n),
                Err(JoinError::NoResult(ResultError::Lost)) => panic!("restarts are on"),
                Err(error) => panic!("{error}"),
            }
        }
        done += JOBS;
    }
    done
});

fn storm_time() -> Duration {
    let seconds = std::env::var("SHMKIT_STORM_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    Duration::from_millis(seconds.map_or(1500, |seconds: u64| 1000 * seconds))
}

/// Kills peers at random, which are replaced, until the run is over.
pub fn role_storm() {
    let run = std::env::var(RUN).unwrap();
    // SAFETY: the pool of the case.
    let pool = unsafe { Pool::open(&run) }.unwrap();
    let over = pool.named::<AtomicU32>("over").unwrap();
    let mut peers = Peers::start(&run, &["role_peer"; 3]);
    let (mut random, mut kills) = (0x9e37_79b9_7f4a_7c15_u64, 0_u32);
    while over.load(Ordering::Acquire) == 0 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let began = Instant::now();
        let pause = Duration::from_micros(random % 20_000);
        while began.elapsed() < pause && over.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let victim = &mut peers.0[random as usize % 3];
        victim.kill().unwrap();
        victim.wait().unwrap();
        *victim = command("role_peer", &run).spawn().unwrap();
        kills += 1;
    }
    println!("{kills}");
}

pub fn peers_killed_at_random() {
    let name = unique("storm");
    let pool = Pool::builder()
        .max_size(64 << 20)
        .create_named(&name)
        .unwrap();
    let counted = pool
        .named_or_create("counted", HashMap::<u64, u64>::new)
        .unwrap();
    let over = pool.named_or_create("over", || AtomicU32::new(0)).unwrap();
    let storm = command("role_storm", &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let done = run(&config(&name), &STORM, name.clone()).unwrap();
    over.store(1, Ordering::Release);
    let output = storm.wait_with_output().unwrap();
    assert!(output.status.success());
    let kills: u32 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(kills > 0);
    assert_eq!(counted.len() as u64, done);
    for n in 0..done {
        assert_eq!(counted.get_copied(&n), Some(n * n));
    }
    pool.recover();
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    println!("peers_killed_at_random: {kills} kills, {done} jobs");
    Pool::unlink(&name).unwrap();
    drop((counted, over));
    // SAFETY: the handles were dropped, and no other thread has used it.
    unsafe { pool.unmap() };
}
