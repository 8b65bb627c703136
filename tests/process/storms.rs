//! Kills at random moments: of workers, under supervision, and of masters.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shmkit::process::{
    Backoff, Config, Entry, JoinHandle, Resource, Restart, StartOptions, Worker, run,
};
use shmkit::{Array, Handle, Pool, ShmSafe};

use super::{loop_for_ever, program};

const TASKS: usize = 60;

/// What the tasks compute, and where they are.
#[derive(ShmSafe)]
struct Board {
    pids: [AtomicU32; TASKS],
    starts: AtomicU64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct World {
    board: Handle<Board>,
    results: Handle<Array<u64>>,
}

static TASK: Entry<(World, usize), u64> = Entry::new("task", |worker, (world, n)| {
    let board = world.board.open().unwrap();
    board.starts.fetch_add(1, Ordering::Relaxed);
    board.pids[n].store(std::process::id(), Ordering::Release);
    let results = world.results.open().unwrap();
    let parts = [n as u64, 1].map(|part| worker.start(&PART, &part).unwrap());
    let sum = parts.map(|part| part.join().unwrap()).iter().sum();
    results.set(n, sum).unwrap();
    // From here on the number may be another's.
    board.pids[n].store(0, Ordering::Release);
    sum
});
static PART: Entry<u64, u64> = Entry::new("part", |_, n| n * n);
static STORM: Entry<World, usize> = Entry::new("storm", storm);

/// Starts all tasks, kills while it waits for them, and gives how often.
fn storm(worker: &Worker, world: World) -> usize {
    let board = world.board.open().unwrap();
    let restart = Restart::OnCrash(Backoff::new(Duration::from_millis(1)));
    let options = StartOptions::new().restart(restart);
    let start = |n| worker.start_with(options, &TASK, &(world, n)).unwrap();
    let mut tasks: Vec<JoinHandle<u64>> = (0..TASKS).map(start).collect();
    let mut kills = 0;
    let began = Instant::now();
    while tasks.iter().any(|task| !task.is_finished()) {
        // Not for ever: then everybody is left alone. What the dead have started is joined by
        // nobody, and keeps its place until the end.
        if kills < 500 && began.elapsed() < Duration::from_secs(2) {
            let victim = &board.pids[(kills * 7 + 3) % TASKS];
            let pid = victim.swap(0, Ordering::AcqRel);
            // SAFETY: no memory is passed. The number is that of a process that had not finished
            // when it was read, and its zombie is reaped by the master only.
            if pid != 0 && unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) } == 0 {
                kills += 1;
            }
        }
        tasks[kills % TASKS]
            .wait_timeout(Duration::from_micros(300))
            .unwrap();
    }
    for (n, task) in tasks.drain(..).enumerate() {
        assert_eq!(task.join().unwrap(), (n * n + 1) as u64);
    }
    kills
}

pub fn killed_workers_are_started_again() {
    let pool = Pool::builder().create().unwrap();
    let board = Board {
        pids: [const { AtomicU32::new(0) }; TASKS],
        starts: AtomicU64::new(0),
    };
    let board = pool.create(board).unwrap();
    let results = Array::filled_in(pool, TASKS, 0).unwrap();
    let world = World {
        board: board.handle(),
        results: results.handle(),
    };
    let kills = run(&Config::new(), &STORM, world).unwrap();
    assert!(kills > 0, "nobody was caught");
    // A kill that comes too late, at the very end of a task, starts nothing.
    let starts = board.starts.load(Ordering::Relaxed) as usize;
    assert!(
        (TASKS..=TASKS + kills).contains(&starts),
        "{starts} starts, {kills} kills"
    );
    for n in 0..TASKS {
        assert_eq!(results.get(n).unwrap(), (n * n + 1) as u64);
    }
    drop((board, results));
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: the last handles were dropped above.
    unsafe { pool.unmap() };
}

static CHURN: Entry<PathBuf, ()> = Entry::new("churn", |worker, dir| {
    for _ in 0..2 {
        worker.start(&CHURNS, &dir).unwrap().detach();
    }
    println!("started");
    loop_for_ever();
});
static CHURNS: Entry<PathBuf, ()> = Entry::new("churns", |worker, dir| {
    loop {
        for n in 0..5 {
            let path = dir.join(format!("{}-{n}", worker.id()));
            let file = worker.resources().manage(Resource::File(path)).unwrap();
            fs::write(file.path(), "content").unwrap();
            let name = format!("{}-{}-{n}", name_of(&dir), std::process::id());
            let semaphore = worker
                .resources()
                .manage(Resource::Semaphore(name))
                .unwrap();
            fs::write(semaphore.path(), "content").unwrap();
        }
    }
});

/// What the names of all semaphores of a run begin with: no other run's do.
fn name_of(dir: &Path) -> &str {
    dir.file_name().unwrap().to_str().unwrap()
}

/// A run that makes and removes without end.
pub fn role_churn() {
    let dir = PathBuf::from(std::env::var_os("SHMKIT_TEST_DIRECTORY").unwrap());
    let config = Config::new().run_directory(&dir).pid_file(dir.join("pid"));
    run(&config, &CHURN, dir).unwrap();
}

static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());

fn semaphores(dir: &Path) -> Vec<String> {
    let names = fs::read_dir("/dev/shm").unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap_or_default());
    names
        .filter(|name| name.starts_with(&format!("sem.{}-", name_of(dir))))
        .collect()
}

pub fn killed_masters_leave_nothing_after_the_next_start() {
    let dir = std::env::temp_dir().join(format!("shmkit-churn-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let config = Config::new().run_directory(&dir).pid_file(dir.join("pid"));
    let mut left = 0;
    for round in 0..25_u32 {
        let mut master = program("role_churn")
            .env("SHMKIT_TEST_DIRECTORY", &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = master.stdout.take().unwrap();
        output.read_exact(&mut [0; 8]).unwrap();
        for _ in 0..round * round * 1000 {
            std::hint::spin_loop();
        }
        master.kill().unwrap();
        master.wait().unwrap();
        // The stream ends when the last of the workers has closed it, by dying.
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
        left += fs::read_dir(&dir).unwrap().count() - 2 + semaphores(&dir).len();
        run(&config, &UNIT, ()).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "round {round}");
        assert_eq!(semaphores(&dir), [""; 0], "round {round}");
    }
    assert!(left > 0, "nothing was ever left: the kills came too early");
    fs::remove_dir(&dir).unwrap();
}
