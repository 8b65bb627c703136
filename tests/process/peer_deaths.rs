//! Peers whose master dies, masters whose peers die, and a storm of both.

use std::cell::Cell;
use std::io::{BufRead, BufReader, pipe};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, WaitId, WaitIdOptions, getrlimit, setrlimit, waitid};
use shmkit::process::{
    Backoff, Entry, JoinError, JoinHandle, Master, Peer, PeerError, Restart, ResultError, RunError,
    StartOptions, run,
};
use shmkit::{HashMap, Pool};

use super::forks::joined;
use super::peers::{
    AREA, ASKS, CALLS, COUNTS, KEEPS, POLITE, Peers, RUN, Shape, USES, command, config,
    no_name_is_left, unique,
};
use super::{listen, loop_for_ever, tell};
use crate::common::skip::skipped;
use crate::common::{fork, leave, reap, storm_time};

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
    // Neither came to look after the name. Who comes next does.
    let Some(child) = fork() else {
        // SAFETY: the run of the case.
        let late = unsafe { Peer::attach(&name) };
        leave(matches!(late, Err(PeerError::MasterDied)));
    };
    assert_eq!(reap(child), 0);
    no_name_is_left(&name);
}

/// The master's process goes on, with a thread that keeps the control pool.
pub fn who_waits_for_a_master_that_is_gone_is_told() {
    let Some(child) = fork() else {
        let name = unique("gone");
        let master = Master::new(&config(&name)).unwrap();
        let mut late = command("role_late_peer", &name);
        late.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut late = late.spawn().unwrap();
        let mut line = String::new();
        let output = late.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let thread = std::thread::spawn(std::thread::park);
        drop(master);
        // It is to go on.
        drop(late.stdin.take());
        leave(late.wait().unwrap().success() && !thread.is_finished());
    };
    assert_eq!(reap(child), 0);
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

/// Of a namespace whose `/proc` is that of an outer one: there, the master's number is somebody else's. True
/// if a peer refuses to look there.
fn refuses_another_proc(name: &str) -> bool {
    let (go, let_go) = pipe().unwrap();
    let (attach, let_attach) = pipe().unwrap();
    let Some(master) = fork() else {
        let Some(peer) = fork() else {
            listen(&attach);
            // SAFETY: the pool is this program's.
            let refused = unsafe { Peer::attach(name) };
            leave(matches!(refused, Err(PeerError::Unreachable(_))));
        };
        listen(&go);
        let master = Master::new(&config(name)).unwrap();
        tell(&let_attach);
        let refused = reap(peer) == 0;
        drop(master);
        leave(refused);
    };
    // What a peer would take for the doorbell, whatever its number is.
    let others = (0..64).map(|_| pipe().unwrap()).collect::<Vec<_>>();
    tell(&let_go);
    let refused = reap(master) == 0;
    drop(others);
    refused
}

pub fn a_doorbell_is_not_looked_for_in_another_proc() {
    const REFUSED: i32 = 77;
    let name = unique("proc");
    let first = fork().unwrap_or_else(|| {
        let kind = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        // SAFETY: changes what this child's children see; no memory is written.
        let code = unsafe {
            if libc::unshare(kind) != 0 && libc::unshare(libc::CLONE_NEWUSER | kind) != 0 {
                REFUSED
            } else {
                let init = fork().unwrap_or_else(|| {
                    let (none, proc) = (std::ptr::null(), c"proc".as_ptr());
                    let private = libc::MS_REC | libc::MS_PRIVATE;
                    let made = libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
                        && libc::mount(proc, c"/proc".as_ptr(), proc, 0, none.cast()) == 0
                        && libc::unshare(libc::CLONE_NEWPID) == 0;
                    match made {
                        true => leave(refuses_another_proc(&name)),
                        false => libc::_exit(REFUSED),
                    }
                });
                libc::WEXITSTATUS(reap(init))
            }
        };
        // SAFETY: ends this child.
        unsafe { libc::_exit(code) }
    });
    match libc::WEXITSTATUS(reap(first)) {
        REFUSED => skipped("peers that see another /proc: this user may not mount one"),
        code => assert_eq!(code, 0),
    }
    no_name_is_left(&name);
}

static LEAVES: Entry<PathBuf, ()> = Entry::new("leaves a peer at work", |worker, path| {
    worker.start(&USES, &path).unwrap().detach();
    while !path.exists() {
        std::thread::yield_now();
    }
});

/// When its job has ended, of which the master tells.
pub fn what_a_killed_peer_used_is_removed() {
    let name = unique("used");
    let path = std::env::temp_dir().join(&name);
    let peers = Peers::start(&name, &["role_peer"]);
    let killed = Rc::new(Cell::new(0));
    let (seen, used) = (Rc::clone(&killed), path.clone());
    let config = config(&name).on_end(move |end| {
        let is_killed = matches!(end.cause, Err(JoinError::Signaled(9)));
        assert!(end.cause.is_ok() || is_killed && used.exists(), "{end:?}");
        seen.set(seen.get() + u32::from(is_killed));
    });
    run(&config, &LEAVES, path.clone()).unwrap();
    assert!(!path.exists());
    assert_eq!(killed.get(), 1);
    assert_eq!(peers.codes(), [None], "killed");
}

static LEAVES_POLITE: Entry<PathBuf, ()> = Entry::new("leaves a polite one", |worker, path| {
    worker.start(&POLITE, &path).unwrap().detach();
    while !path.exists() {
        std::thread::yield_now();
    }
});

pub fn a_peer_that_ends_its_job_when_it_is_asked_is_not_killed() {
    let name = unique("polite");
    let path = std::env::temp_dir().join(&name);
    let peers = Peers::start(&name, &["role_peer"]);
    let ended = Rc::new(Cell::new(0));
    let seen = Rc::clone(&ended);
    let config = config(&name).patience(Duration::from_secs(600));
    let config = config.on_end(move |end| {
        assert!(end.cause.is_ok(), "{end:?}");
        seen.set(seen.get() + 1);
    });
    run(&config, &LEAVES_POLITE, path.clone()).unwrap();
    assert_eq!(ended.get(), 2);
    assert!(!path.exists());
    assert_eq!(peers.codes(), [Some(0)]);
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
    let pool = Pool::builder()
        .max_size(16 << 20)
        .create_named(&name)
        .unwrap();
    let here = pool.named_or_create("here", || AtomicU32::new(0)).unwrap();
    // Types are described once.
    drop(pool.create([7_u64; 1000]).unwrap());
    let peers = Peers::start(&name, &["role_peer"]);
    let allocated = Rc::new(Cell::new(0));
    let seen = Rc::clone(&allocated);
    let config = config(&name).on_end(move |end| {
        if end.cause.is_err() {
            seen.set(pool.stats().allocated);
        }
    });
    run(&config, &KILLS_KEEPER, name.clone()).unwrap();
    assert_eq!(allocated.get(), pool.stats().allocated);
    assert_eq!(peers.codes(), [None], "killed");
    Pool::unlink(&name).unwrap();
    drop(here);
    // SAFETY: the handle was dropped, and no other thread has used it.
    unsafe { pool.unmap() };
}

/// Whether the master is woken, by now or at all.
fn is_woken(master: &Master, limit: Option<&Timespec>) -> bool {
    poll(&mut [PollFd::new(master, PollFlags::IN)], limit).unwrap() > 0
}

/// Kills a peer that goes on to be there, as a zombie.
fn kill(peer: &mut Child) {
    peer.kill().unwrap();
    let pid = rustix::process::Pid::from_child(peer);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), options).unwrap();
}

/// It is not done again, and its result is not lost.
pub fn a_peer_that_dies_when_its_job_is_done_has_done_it() {
    let name = unique("done");
    let mut master = Master::new(&config(&name)).unwrap();
    let mut peer = command("role_peer", &name);
    peer.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut peer = peer.spawn().unwrap();
    let mut answer = master.start(&ASKS, &7).unwrap();
    while master.dispatch().unwrap().started == 0 {
        is_woken(&master, None);
    }
    let mut line = String::new();
    let output = peer.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert_eq!(line, "here\n");
    // From here on nothing wakes it but that the job is done.
    while is_woken(&master, Some(&Timespec::default())) {
        master.dispatch().unwrap();
    }
    drop(peer.stdin.take());
    is_woken(&master, None);
    kill(&mut peer);
    let answer = loop {
        master.dispatch().unwrap();
        match answer.try_join() {
            Ok(answer) => break answer,
            Err(again) => answer = again,
        }
    };
    assert_eq!(answer.unwrap(), 7);
    peer.wait().unwrap();
    master.finish().unwrap();
}

/// Its number may be another's by then.
pub fn a_peer_that_is_dead_when_it_is_seen_is_forgotten() {
    let name = unique("seen");
    let mut master = Master::new(&config(&name)).unwrap();
    let mut peer = command("role_peer", &name).spawn().unwrap();
    is_woken(&master, None);
    kill(&mut peer);
    let job = master.start(&ASKS, &7).unwrap();
    assert_eq!(master.dispatch().unwrap().started, 0);
    peer.wait().unwrap();
    assert!(!job.is_finished());
    master.finish().unwrap();
}

/// Wherever else it has others.
pub fn who_has_the_types_is_found_among_others() {
    let name = unique("types");
    let mut master = Master::new(&config(&name)).unwrap();
    let peer = Peers::start(&name, &["role_peer"]);
    is_woken(&master, None);
    master.dispatch().unwrap();
    let odd = Peers::start(&name, &["role_odd_peer"]);
    is_woken(&master, None);
    master.dispatch().unwrap();
    let area = master.start(&AREA, &Shape::Empty).unwrap();
    assert_eq!(joined(&mut master, area).unwrap(), 0.0);
    master.finish().unwrap();
    assert_eq!([peer, odd].map(Peers::codes).concat(), [Some(0); 2]);
}

/// For want of a descriptor, when it comes.
pub fn a_peer_that_cannot_be_watched_is_looked_at_again() {
    let name = unique("unwatched");
    let mut master = Master::new(&config(&name)).unwrap();
    let peers = Peers::start(&name, &["role_peer"]);
    is_woken(&master, None);
    let before = getrlimit(Resource::Nofile);
    let current = Some(3);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    let area = master.start(&AREA, &Shape::Empty).unwrap();
    // From here on nothing wakes it but the timer.
    while is_woken(&master, Some(&Timespec::default())) {
        assert_eq!(master.dispatch().unwrap().started, 0);
    }
    setrlimit(Resource::Nofile, before).unwrap();
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert!(is_woken(&master, Some(&limit)));
    assert_eq!(master.dispatch().unwrap().started, 1);
    assert_eq!(joined(&mut master, area).unwrap(), 0.0);
    master.finish().unwrap();
    assert_eq!(peers.codes(), [Some(0)]);
}

/// Jobs that are on their way at once.
const JOBS: u64 = 200;

static STORM: Entry<String, u64> = Entry::new("storm of peers", |worker, name| {
    let restart = Restart::OnCrash(Backoff::new(Duration::from_millis(1)));
    let options = StartOptions::new().restart(restart);
    let mut done = 0;
    let (began, limit) = (Instant::now(), storm_time(Duration::from_millis(1500)));
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
