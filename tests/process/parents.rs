//! How the state of the parent affects a spawn.

use std::io::{self, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use shmkit::process::{
    Config, Entry, JoinError, KillError, Resource, ResultError, RunError, SpawnError, run, scope,
};
use shmkit::{Event, ObjectError, Pool, testing};

use super::{listen, loop_for_ever, no_child_left, open_descriptors, program, role_succeeds, tell};
use crate::common::{TestPool, assert_sound, fork, leave, reap};

pub fn other_threads_are_refused() {
    let (reader, writer) = pipe().unwrap();
    let thread = std::thread::spawn(move || listen(&reader));
    scope(|s| match s.spawn(|| 1) {
        Err(SpawnError::MultiThreaded { tasks: 2 }) => {}
        other => panic!("{other:?}"),
    });
    tell(&writer);
    thread.join().unwrap();
}

pub fn a_joined_thread_is_no_other_thread() {
    // Its task may linger in the kernel when `join` returns.
    for _ in 0..300 {
        let threads = [(); 16].map(|()| std::thread::spawn(|| ()));
        for thread in threads {
            thread.join().unwrap();
        }
        scope(|s| s.spawn(|| ()).map(drop).unwrap());
    }
}

/// A thread of a scope is still there when the scope ends: what its thread-locals have is dropped after its function.
pub fn a_thread_of_a_scope_that_is_over_may_end() {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            (0..3).for_each(|_| std::thread::yield_now());
        }
    }
    thread_local!(static SLOW: Slow = const { Slow });
    for _ in 0..20 {
        std::thread::scope(|s| _ = s.spawn(|| SLOW.with(|_| ())));
        scope(|s| s.spawn(|| ()).map(drop).unwrap());
    }
}

pub fn other_threads_may_be_allowed() {
    let (reader, writer) = pipe().unwrap();
    let thread = std::thread::spawn(move || {
        listen(&reader);
        reader
    });
    scope(|s| {
        // SAFETY: the closure needs nothing that the other thread does.
        let child = unsafe { s.spawn_with_threads(|| "text".repeat(2)) }.unwrap();
        assert_eq!(child.join().unwrap(), "texttext");
    });
    tell(&writer);
    thread.join().unwrap();
}

/// All slots are others', in the parent and in the child: what needs none goes on, and what does says so.
pub fn a_thread_without_a_slot_may_fork() {
    let pool = Pool::builder().max_participants(2).create().unwrap();
    let object = pool.create(5_u64).unwrap();
    let shared = &object;
    let creates = || match pool.create(1_u8) {
        Ok(_) => true,
        Err(refused) => {
            assert!(matches!(refused.cause, ObjectError::NoSlot(_)));
            false
        }
    };
    let forks = || {
        scope(|s| {
            // SAFETY: the closure needs nothing that the other threads do.
            let child = unsafe { s.spawn_with_threads(|| (**shared, creates())) };
            child.unwrap().join().unwrap()
        })
    };
    std::thread::scope(|s| {
        let (has, had) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = s.spawn(move || {
            has.send(creates()).unwrap();
            ended.recv().unwrap_err();
        });
        assert!(had.recv().unwrap());
        s.spawn(|| assert!(!creates() && forks() == (5, false)))
            .join()
            .unwrap();
        drop(end);
        other.join().unwrap();
        // The child has the slot that is free by now.
        s.spawn(|| assert_eq!(forks(), (5, true))).join().unwrap();
    });
    drop(object);
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: nothing refers to the pool any more, and no child has it.
    unsafe { pool.unmap() };
}

/// Its other threads may use what it holds until it has ended, too.
pub fn who_ends_beside_other_threads_lets_go_of_nothing() {
    let pool = TestPool::new();
    let kept = pool.create(1_u64).unwrap();
    let before = pool.stats().allocated;
    let (told, tell) = pipe().unwrap();
    let (late, go_on) = pipe().unwrap();
    let Some(child) = fork() else {
        drop(go_on);
        std::mem::forget(pool.create(7_u64).unwrap());
        std::thread::spawn(loop_for_ever);
        // SAFETY: neither thread uses the pool any more.
        unsafe { testing::forking::ending() };
        super::tell(&tell);
        super::sleep_on(&late);
        leave(true);
    };
    listen(&told);
    assert!(pool.stats().allocated > before);
    assert_eq!(testing::forking::records(*pool), 2);
    drop(go_on);
    assert_eq!(reap(child), 0);
    // The kernel's mark tells that it has ended.
    pool.recover();
    assert_eq!(pool.stats().allocated, before);
    assert_eq!(testing::forking::records(*pool), 1);
    assert_sound(*pool);
    assert_eq!(*kept, 1);
}

pub fn role_no_descriptor() {
    // SAFETY: plain system calls.
    unsafe {
        let limit = libc::rlimit {
            rlim_cur: 3,
            rlim_max: 3,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    scope(|s| match s.spawn(|| 1) {
        Err(SpawnError::ResultFile(error)) => {
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        other => panic!("{other:?}"),
    });
    match run(&Config::new(), &SEES_STREAMS, ()) {
        Err(refused @ RunError::System(_)) => {
            let says = "the system refused what the master needs";
            assert_eq!(refused.to_string(), says);
        }
        other => panic!("{other:?}"),
    }
    assert!(no_child_left());
}

pub fn no_descriptor_no_child() {
    role_succeeds("role_no_descriptor");
}

pub fn role_sigchld() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let before = open_descriptors();
    scope(|s| {
        assert_eq!(
            s.spawn(|| 5).unwrap().join().unwrap(),
            5,
            "the result is there"
        );
        for child in [
            s.spawn(|| -> u8 { std::process::exit(1) }),
            s.spawn(|| std::process::abort()),
        ] {
            match child.unwrap().join() {
                Err(JoinError::NoResult(ResultError::Lost)) => {}
                other => panic!("{other:?}"),
            }
        }
        let child = s.spawn(|| 6).unwrap();
        while !child.is_finished() {
            std::thread::yield_now();
        }
        assert!(matches!(child.kill(), Err(KillError::Ended)));
        assert_eq!(child.join().unwrap(), 6);
        s.spawn(|| 7).unwrap();
    });
    assert_eq!(open_descriptors(), before);
}

pub fn sigchld_ignored() {
    role_succeeds("role_sigchld");
}

/// Whether nothing has the number of a standard stream.
fn no_stream_is_open() -> bool {
    // SAFETY: asks for flags.
    (0..3).all(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1)
}

static SEES_STREAMS: Entry<(), bool> = Entry::new("sees streams", |_, ()| no_stream_is_open());
static STARTS_ONE: Entry<PathBuf, bool> = Entry::new("starts one", |worker, path| {
    let file = worker.resources().manage(Resource::File(path)).unwrap();
    std::fs::write(file.path(), "content").unwrap();
    worker.start(&SEES_STREAMS, &()).unwrap().join().unwrap() && no_stream_is_open()
});

static SEEN: AtomicBool = AtomicBool::new(false);

/// While the process forks.
extern "C" fn look_for_streams() {
    SEEN.fetch_or(!no_stream_is_open(), Ordering::Relaxed);
}

/// A daemon's parent: what it makes has no number to which anybody prints.
pub fn role_closed_streams() {
    let name = format!("test-closed-{}", std::process::id());
    let directory = std::env::temp_dir().join(&name);
    std::fs::create_dir(&directory).unwrap();
    // SAFETY: from here on nothing is printed, and the role's end is its code.
    (0..3).for_each(|fd| unsafe { assert_eq!(libc::close(fd), 0) });
    // Called after the pools' own, as it is there before.
    // SAFETY: the handler looks at descriptors.
    let done = unsafe { libc::pthread_atfork(Some(look_for_streams), None, None) };
    assert_eq!(done, 0);
    let pool = Pool::builder().create().unwrap();
    let named = Pool::builder().create_named(&name).unwrap();
    Pool::unlink(&name).unwrap();
    let event = pool.create(Event::new()).unwrap();
    assert!(no_stream_is_open());
    let config = Config::new()
        .name(&name)
        .run_directory(&directory)
        .pid_file(directory.join("pid"));
    assert!(run(&config, &STARTS_ONE, directory.join("file")).unwrap());
    assert!(scope(|s| s
        .spawn(no_stream_is_open)
        .unwrap()
        .join()
        .unwrap()));
    assert_eq!(reap(fork().unwrap_or_else(|| leave(true))), 0);
    assert!(!SEEN.load(Ordering::Relaxed));
    std::fs::remove_dir(&directory).unwrap();
    let descriptor = event.open_fd().unwrap();
    assert!(no_stream_is_open());
    assert!(pool.check().is_ok() && named.check().is_ok());
    std::mem::forget(descriptor);
}

pub fn closed_streams_stay_closed() {
    role_succeeds("role_closed_streams");
}

pub fn reaped_by_somebody_else() {
    use rustix::process::{WaitOptions, wait};
    scope(|s| {
        let fine = s.spawn(|| 5).unwrap();
        wait(WaitOptions::empty()).unwrap();
        assert!(fine.is_finished());
        assert!(matches!(fine.kill(), Err(KillError::Ended)));
        assert_eq!(fine.join().unwrap(), 5);
        let ends = s.spawn(|| -> u8 { std::process::exit(0) }).unwrap();
        wait(WaitOptions::empty()).unwrap();
        assert!(matches!(
            ends.join(),
            Err(JoinError::NoResult(ResultError::Lost))
        ));
    });
}

/// A parent, a child and a grandchild, each of which gives its pid and stays.
fn stay() {
    let pid = std::process::id().to_ne_bytes();
    io::stdout().write_all(&pid).unwrap();
    io::stdout().flush().unwrap();
    loop_for_ever();
}

pub fn role_family() {
    scope(|s| {
        s.spawn(|| {
            scope(|s| {
                s.spawn(stay).unwrap();
                stay();
            });
        })
        .unwrap();
        stay();
    });
}

pub fn children_die_with_their_parent() {
    let mut parent = program("role_family")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = parent.stdout.take().unwrap();
    let family = [(); 3].map(|()| {
        let mut pid = [0; 4];
        output.read_exact(&mut pid).unwrap();
        i32::from_ne_bytes(pid)
    });
    parent.kill().unwrap();
    parent.wait().unwrap();
    // The stream ends when the last of the three has closed it, by dying.
    let mut end = libc::pollfd {
        fd: output.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which outlives the call.
    let ended = unsafe { libc::poll(&raw mut end, 1, 10_000) };
    if ended != 1 {
        for pid in family
            .into_iter()
            .filter(|pid| pid.unsigned_abs() != parent.id())
        {
            // SAFETY: no memory is passed; the number is that of a process still to be ended.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    assert_eq!(ended, 1, "somebody is alive");
    assert_eq!(output.read(&mut [0]).unwrap(), 0);
}
