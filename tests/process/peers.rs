//! Programs that were started separately, in a run that they find by its name.
//!
//! The other program is this one, executed anew: at other addresses, with another nonce, and with
//! definitions of its own (`role_peer`, `role_odd_peer`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmkit::process::{
    Backoff, Config, Entry, JoinError, Managed, Peer, PeerError, Resource, ResourceError,
    ResourceId, Resources, Restart, RunError, StartError, StartOptions, run,
};
use shmkit::{AttachError, CreateError, HashMap, Pool};

use super::{loop_for_ever, program};

/// What travels: with names, an option, a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Shape {
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
pub static AREA: Entry<Shape, f64> = Entry::external("area");
static ECHO: Entry<Vec<u8>, Vec<u8>> = Entry::external("echo");
static PID: Entry<(), u32> = Entry::external("pid");
static ENDS: Entry<End, u32> = Entry::external("ends");
static RELAY: Entry<u32, u32> = Entry::external("relay");
static HANGS: Entry<(), ()> = Entry::external("hangs");
pub static COUNTS: Entry<(String, u64), u64> = Entry::external("counts");
static NOBODYS: Entry<(), ()> = Entry::external("nobody's");
static OUTLIVES: Entry<(), ()> = Entry::external("outlives");
pub static ASKS: Entry<u32, u32> = Entry::external("asks");
pub static USES: Entry<PathBuf, ()> = Entry::external("uses");
pub static KEEPS: Entry<String, ()> = Entry::external("keeps");
pub static POLITE: Entry<PathBuf, ()> = Entry::external("polite");

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
    pub static ASKS: Entry<u32, u32> = Entry::new("asks", |_, n| {
        println!("here");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        n
    });
    pub static USES: Entry<PathBuf, ()> = Entry::new("uses", |worker, path| {
        let file = worker.resources().manage(Resource::File(path)).unwrap();
        std::fs::write(file.path(), "").unwrap();
        loop_for_ever()
    });
    /// Goes on for a while when it is asked to end: until the master has looked.
    pub static POLITE: Entry<PathBuf, ()> = Entry::new("polite", |worker, path| {
        std::fs::write(&path, "").unwrap();
        assert!(worker.wait_stop(Duration::from_secs(600)));
        worker.resources().manage(Resource::File(path)).unwrap();
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

pub const RUN: &str = "SHMKIT_TEST_RUN";

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
    let peer = attached()
        .define(&theirs::AREA)
        .define(&theirs::ECHO)
        .define(&theirs::PID)
        .define(&theirs::ENDS)
        .define(&theirs::RELAY)
        .define(&theirs::HANGS)
        .define(&theirs::OUTLIVES)
        .define(&theirs::ASKS)
        .define(&theirs::USES)
        .define(&theirs::KEEPS)
        .define(&theirs::POLITE)
        .define(&theirs::COUNTS)
        .define(&theirs::LEAVES_IT);
    match peer.serve() {
        Ok(_) => {}
        Err(PeerError::MasterDied) => std::process::exit(17),
        Err(error) => panic!("{error:?}"),
    }
}

pub fn role_odd_peer() {
    attached().define(&theirs::ODD_AREA).serve().unwrap();
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
    let polled = peer.start(&NOBODYS, &()).unwrap();
    match peer.start(&OUTLIVES, &()).unwrap().join() {
        Err(JoinError::NoSuchRun) => {}
        other => panic!("{other:?}"),
    }
    // Who only looks is told as well.
    assert!(polled.is_finished());
    match polled.try_join() {
        Ok(Err(JoinError::NoSuchRun)) => {}
        other => panic!("{other:?}"),
    }
    assert!(peer.stop_requested());
    let refused = peer.start(&OUTLIVES, &());
    assert!(matches!(refused, Err(StartError::Stopping)));
    std::process::exit(19);
}

/// Tells that it is about to be requested, and waits until it is to be.
#[derive(Serialize, Deserialize)]
struct Late(#[serde(serialize_with = "late")] u8);

fn late<S: serde::Serializer>(byte: &u8, to: S) -> Result<S::Ok, S::Error> {
    println!("here");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    to.serialize_u8(*byte)
}

/// Requests one job while there is a master, and one when there is none any more.
pub fn role_late_peer() {
    static LATE: Entry<Late, ()> = Entry::external("late");
    let peer = attached();
    let early = peer.start(&NOBODYS, &()).unwrap();
    let late = peer.start(&LATE, &Late(0)).unwrap();
    let limit = Duration::from_secs(10);
    assert!(early.wait_timeout(limit).unwrap(), "it is requested still");
    assert!(matches!(early.join(), Err(JoinError::NotStarted(_))));
    let waited = late.wait_timeout(limit);
    assert!(matches!(waited, Err(JoinError::NoSuchRun)), "{waited:?}");
}

pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test-peers-{}-{count}-{what}", std::process::id())
}

pub fn command(role: &str, run: &str) -> Command {
    let mut command = program(role);
    command.env(RUN, run).stdin(Stdio::null());
    command
}

/// Peers that were started, and are waited for at the end.
pub struct Peers(pub Vec<Child>);

impl Peers {
    pub fn start(run: &str, roles: &[&str]) -> Peers {
        let start = |role: &&str| command(role, run).spawn().unwrap();
        Peers(roles.iter().map(start).collect())
    }

    /// Waits for the end of all; their exit codes, where they were not killed.
    pub fn codes(mut self) -> Vec<Option<i32>> {
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

pub fn config(name: &str) -> Config {
    Config::new().name(name).define(&HALF_WAY)
}

#[track_caller]
pub fn no_name_is_left(name: &str) {
    assert!(!Path::new(&format!("/dev/shm/shmkit.{name}.run")).exists());
}

pub static CALLS: Entry<(), ()> = Entry::new("calls", |worker, ()| {
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
    assert!(!waits.wait_timeout(Duration::from_millis(20)).unwrap());
    waits.detach();
});

/// A run without a name has no peers.
pub fn what_nobody_can_define_is_refused() {
    static STARTS: Entry<(), bool> = Entry::new("starts", |worker, ()| {
        let refused = worker.start(&NOBODYS, &()).unwrap().join();
        matches!(refused, Err(JoinError::NotStarted(_)))
    });
    assert!(run(&Config::new(), &STARTS, ()).unwrap());
    let refused = run(&Config::new(), &NOBODYS, ());
    assert!(
        matches!(refused, Err(RunError::First(JoinError::NotStarted(_)))),
        "{refused:?}"
    );
}

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
    for bad in ["a/b", "", "/tmp/"] {
        // SAFETY: no name that a pool can have.
        let refused = unsafe { Peer::attach(bad) };
        assert!(
            matches!(&refused, Err(PeerError::Attach(AttachError::InvalidName { name })) if name == bad),
            "{bad:?}: {refused:?}"
        );
        let refused = run(&config(bad), &DISAGREES, ());
        assert!(
            matches!(&refused, Err(RunError::Pool(CreateError::InvalidName { name })) if name == bad),
            "{bad:?}: {refused:?}"
        );
    }
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
    Pool::unlink(format!("{name}.run")).unwrap();
    // SAFETY: nothing of it is in use: the handles above were dropped.
    unsafe { pool.unmap() };
}
