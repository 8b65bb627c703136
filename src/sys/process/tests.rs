//! The harness runs these in threads, so a forked child calls nothing but system calls and what
//! glibc keeps usable after `fork`, and ends with `exit_now`.

use std::cell::Cell;
use std::io::{PipeReader, PipeWriter, Read, pipe};
use std::thread;

use rustix::process::{Signal, WaitOptions};

use super::*;

fn own_start() -> u64 {
    match start_time(pid()) {
        TaskState::Alive { start } => start,
        other => panic!("this process is {other:?}"),
    }
}

/// Forks a child that runs `child` and ends; it is killed when the test's thread ends.
fn forked(child: impl FnOnce()) -> u32 {
    let parent = pid();
    // SAFETY: each `child` below keeps to the rule in the header, and never returns from here.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            if die_with_parent(parent) {
                child();
            }
            exit_now(0)
        }
    }
}

/// A child that lives until it is sent a byte. (Not until the pipe is closed: children of tests
/// that run at the same time inherit the descriptors.)
fn sleeper() -> (u32, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    (forked(|| await_byte(&reader)), writer)
}

fn await_byte(mut reader: &PipeReader) {
    let _ = reader.read(&mut [0]);
}

fn send_byte(mut writer: &PipeWriter) {
    let _ = writer.write(b"!");
}

#[test]
fn stat_line_of_any_command() {
    let line = |command: &str| {
        format!("7 ({command}) S 1 2 3 4 5 64 7 8 9 10 11 12 13 14 15 16 3 18 12345 20 21\n")
    };
    let expected = StatLine {
        state: b'S',
        flags: 64,
        threads: 3,
        start: 12345,
    };
    for command in ["cat", "a b", ")", "a) R 1 (b", "", "(((", ") Z 1 1 1"] {
        assert_eq!(
            StatLine::parse(line(command).as_bytes()).as_ref(),
            Some(&expected),
            "{command}"
        );
    }
    // A prefix is never taken for a line with another start time.
    let whole = line("cat) R");
    for len in 0..whole.len() {
        let start = StatLine::parse(&whole.as_bytes()[..len]).map(|line| line.start);
        assert!(start.is_none_or(|start| start == 12345), "cut at {len}");
    }
}

#[test]
fn tasks_on_their_way_out() {
    let line = |state, flags| StatLine {
        state,
        flags,
        threads: 2,
        start: 1,
    };
    // The flags of an ordinary thread, then in `exit` but not yet a zombie, then a zombie.
    let seen = [(b'S', 0x40_0040), (b'R', 0x40_0044), (b'Z', 0x40_004c)]
        .map(|(state, flags)| (line(state, flags).ending(), line(state, flags).ended()));
    assert_eq!(seen, [(false, false), (true, false), (true, true)]);
    assert!(!line(b'R', !PF_EXITING).ending());
}

#[test]
fn own_identity() {
    assert_eq!(pid(), std::process::id());
    assert_ne!(pid_namespace().unwrap(), 0);
    assert!(time_namespace().is_none_or(|inode| inode != 0));
    assert!(proc_counts_as_we_do());
    assert!(!process_is_gone(pid(), own_start()));
    assert!(process_is_gone(pid(), own_start() + 1));
    assert!(may_still_run(pid(), own_start()));
    assert!(!may_still_run(pid(), own_start() + 1));
    // Whose start is not known may be this one.
    assert!(!process_is_gone(pid(), 0));
    assert!(may_still_run(pid(), 0));
}

#[test]
fn numbers_that_are_no_task() {
    assert_eq!(start_time(0), TaskState::Unknown);
    assert_eq!(start_time(u32::MAX), TaskState::Unknown);
    assert!(!process_is_gone(0, 1));
    assert!(!process_is_gone(u32::MAX, 1));
    // Beyond the largest pid the kernel ever gives (2^22).
    assert_eq!(start_time(i32::MAX as u32), TaskState::Dead);
    assert!(process_is_gone(i32::MAX as u32, 1));
}

#[test]
fn a_thread_lives_and_dies() {
    let (reader, writer) = pipe().unwrap();
    let (report, told) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        report.send(tid()).unwrap();
        await_byte(&reader);
    });
    let id = told.recv().unwrap();
    assert_ne!(id, pid());
    assert!(matches!(start_time(id), TaskState::Alive { .. }));
    assert!(task_count().unwrap() >= 2);
    send_byte(&writer);
    thread.join().unwrap();
    while start_time(id) != TaskState::Dead {
        thread::yield_now();
    }
}

#[test]
fn a_child_lives_ends_and_is_reaped() {
    let (child, writer) = sleeper();
    let TaskState::Alive { start } = start_time(child) else {
        panic!("not alive")
    };
    assert!(!process_is_gone(child, start));
    assert!(process_is_gone(child, start + 1));
    assert!(!has_ended(child));
    assert_eq!(try_wait(child), None);
    send_byte(&writer);
    while !has_ended(child) {
        thread::yield_now();
    }
    assert_eq!(start_time(child), TaskState::Dead, "a zombie");
    assert!(process_is_gone(child, start), "a zombie");
    assert_eq!(wait(child), Ended::Exited(0));
    assert_eq!(start_time(child), TaskState::Dead, "no such process");
    assert!(process_is_gone(child, start), "no such process");
    assert_eq!(wait(child), Ended::Unknown);
    assert!(has_ended(child));
}

#[test]
fn how_a_process_ended_is_known_whatever_its_name() {
    for name in [c"plain", c") Z 1", c"cut off \xc3"] {
        let child = forked(|| {
            let _ = rustix::thread::set_name(name);
            exit_now(7);
        });
        let pidfd = watch::pidfd(child).unwrap();
        while !has_ended(child) {
            thread::yield_now();
        }
        let ended = ended_elsewhere(child, pidfd.as_fd());
        assert_eq!(wait(child), Ended::Exited(7));
        assert_eq!(ended, Ended::Exited(7), "{name:?}");
    }
}

/// A zombie that another process leaves unreaped, and about which `/proc` is not asked.
#[test]
fn a_zombie_of_another_parent_has_ended() {
    let (read, write) = pipe().unwrap();
    let (hold, release) = pipe().unwrap();
    let parent = forked(|| {
        let zombie = forked(|| await_byte(&hold));
        let _ = (&write).write(&zombie.to_ne_bytes());
        while !has_ended(zombie) {
            thread::yield_now();
        }
        let _ = (&write).write(b"!");
        await_byte(&hold);
    });
    let mut number = [0; 4];
    (&read).read_exact(&mut number).unwrap();
    let zombie = to_pid(u32::from_ne_bytes(number)).unwrap();
    assert!(!has_ended_unread(zombie), "it lives");
    send_byte(&release);
    await_byte(&read);
    assert!(has_ended_unread(zombie));
    assert!(!has_ended_unread(to_pid(parent).unwrap()), "it lives");
    send_byte(&release);
    assert_eq!(wait(parent), Ended::Exited(0));
}

/// A zombie of another user, where `/proc` names nothing of others.
#[test]
fn a_zombie_that_is_hidden_has_ended() {
    const REFUSED: i32 = 77;
    /// No fork handler runs, so no pool of another test learns of it; that would end a child in
    /// another namespace.
    fn forked(child: impl FnOnce()) -> u32 {
        // SAFETY: as in the other function of this name.
        match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
            0 => {
                child();
                exit_now(0)
            }
            pid => u32::try_from(pid).unwrap(),
        }
    }
    /// Whether the zombie is found to have ended by a process with another user's rights.
    fn asks(zombie: u32) -> bool {
        const NOBODY: libc::uid_t = 65534;
        // The library's own functions wait for threads that have just been made; this process is a
        // copy without those threads.
        // SAFETY: a process without other threads changes its own rights.
        let changed = unsafe {
            let none = std::ptr::null::<libc::gid_t>();
            libc::syscall(libc::SYS_setgroups, 0, none) == 0
                && libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) == 0
                && libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) == 0
        };
        let is_hidden = matches!(
            read_stat(CWD, format_args!("/proc/{zombie}/stat")),
            Stat::Missing
        );
        changed && is_hidden && process_is_gone(zombie, 1) && !process_is_gone(1, 1)
    }
    /// Runs as the first process of a namespace, whose `/proc` hides each user's processes from
    /// others.
    fn begins() -> i32 {
        let (none, proc) = (std::ptr::null(), c"proc".as_ptr());
        let (private, hides) = (libc::MS_REC | libc::MS_PRIVATE, c"hidepid=2".as_ptr());
        // SAFETY: changes what this process sees; no memory is written.
        let mounted = unsafe {
            libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
                && libc::mount(proc, c"/proc".as_ptr(), proc, 0, hides.cast()) == 0
        };
        if !mounted {
            return REFUSED;
        }
        let zombie = forked(|| ());
        while !has_ended(zombie) {
            thread::yield_now();
        }
        let asker = forked(|| exit_now(i32::from(!asks(zombie))));
        i32::from(wait(asker) != Ended::Exited(0))
    }
    let first = forked(|| {
        // SAFETY: changes what this child's children see.
        if unsafe { libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS) } != 0 {
            exit_now(REFUSED);
        }
        let init = forked(|| exit_now(begins()));
        let code = match wait(init) {
            Ended::Exited(code) => code,
            _ => 1,
        };
        exit_now(code);
    });
    match wait(first) {
        Ended::Exited(REFUSED) => eprintln!("skipped: this user may not mount a `/proc`"),
        ended => assert_eq!(ended, Ended::Exited(0)),
    }
}

/// A process that has adopted a child before the child asked is not its parent.
#[test]
fn another_parent_is_told() {
    let other = pid() + 1;
    let child = forked(|| {
        if !die_with_parent(other) {
            exit_now(7);
        }
    });
    assert_eq!(wait(child), Ended::Exited(7));
}

#[test]
fn a_stopped_child_is_alive() {
    let (child, _writer) = sleeper();
    let pid = to_pid(child).unwrap();
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    let options = WaitOptions::UNTRACED;
    assert!(
        rustix::process::waitpid(Some(pid), options)
            .unwrap()
            .unwrap()
            .1
            .stopped()
    );
    let TaskState::Alive { start } = start_time(child) else {
        panic!("not alive")
    };
    assert!(!process_is_gone(child, start));
    kill(child).unwrap();
    assert_eq!(wait(child), Ended::Signaled(libc::SIGKILL));
}

#[test]
fn threads_outlive_their_leader() {
    let (ready, announce) = pipe().unwrap();
    let (hold, release) = pipe().unwrap();
    let child = forked(|| {
        let thread = thread::Builder::new().spawn(move || {
            while start_time(pid()) != TaskState::Dead {
                thread::yield_now();
            }
            send_byte(&announce);
            await_byte(&hold);
            exit_now(0)
        });
        if thread.is_ok() {
            // SAFETY: ends only this thread, which holds nothing that the other one needs; the
            // memory that the other one borrows stays mapped, since no stack is given back.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
    });
    await_byte(&ready);
    let Stat::Read(line) = read_stat(CWD, format_args!("/proc/{child}/stat")) else {
        panic!("the child cannot be read")
    };
    let start = line.start;
    assert_eq!(start_time(child), TaskState::Dead, "the leader has ended");
    assert!(!process_is_gone(child, start), "its thread has not");
    assert!(!all_threads(child, StatLine::ended));
    assert!(!has_ended(child));
    send_byte(&release);
    while !has_ended(child) {
        thread::yield_now();
    }
    assert!(process_is_gone(child, start));
    assert!(all_threads(child, StatLine::ended), "the slow way agrees");
    assert_eq!(wait(child), Ended::Exited(0));
}

/// It was started by one that was looked at before, and has ended since.
#[test]
fn a_thread_that_comes_during_the_look_is_not_overlooked() {
    let child = forked(|| {
        let (hold, release) = pipe().unwrap();
        let (never, _open) = pipe().unwrap();
        let (report, told) = std::sync::mpsc::channel();
        thread::spawn(move || {
            report.send(tid()).unwrap();
            await_byte(&hold);
        });
        let first = to_pid(told.recv().unwrap()).unwrap();
        let (looks, never) = (Cell::new(0), Cell::new(Some(never)));
        let is_over = |_: &StatLine| {
            looks.set(looks.get() + 1);
            // The process's first thread is looked at first.
            if looks.get() == 2 {
                send_byte(&release);
                while !no_such_task(first) {
                    thread::yield_now();
                }
                let never = never.take().unwrap();
                thread::spawn(move || await_byte(&never));
            }
            true
        };
        let over = all_threads(pid(), is_over);
        exit_now(i32::from(over || looks.get() < 2));
    });
    assert_eq!(wait(child), Ended::Exited(0));
}

#[test]
fn who_asks_for_itself_is_told_what_others_are() {
    assert_eq!(super::own_start(), own_start());
    let thread = thread::spawn(|| (own_thread_start(), start_time(tid())));
    let (start, seen) = thread.join().unwrap();
    assert_eq!(seen, TaskState::Alive { start });
}
