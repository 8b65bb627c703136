//! How a run ends, and what a master is while there is one.

use std::time::Duration;

use shmkit::process::{Config, Entry, JoinError, Master, RunError, StartError, run};

use super::masters::{FOR_EVER, SQUARE, UNIT};
use super::{loop_for_ever, program};
use crate::common::{fork, leave, quietly, reap};

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
    use std::cell::Cell;
    use std::rc::Rc;
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
}

/// What is printed in the master is printed by no worker that it forks later.
pub fn a_masters_output_is_flushed_once() {
    let output = super::role_succeeds("role_prints");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.matches("before,").count(), 1, "{printed}");
    assert_eq!(printed.matches("end,").count(), 4, "{printed}");
    assert!(printed.contains("012"), "{printed}");
}
