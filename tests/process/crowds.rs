//! Many workers: one after another, at once, more than the limit, and all of them dying.

use shmkit::process::{Config, Entry, JoinError, Worker, run};

use super::masters::{FOR_EVER, SQUARE, UNIT, runs};

/// Resident memory of the master, in pages, and its descriptors.
fn weight(pid: i32) -> (usize, usize) {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let resident = statm.split(' ').nth(1).unwrap().parse().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    (resident, descriptors.count())
}

fn master_pid() -> i32 {
    rustix::process::getppid().unwrap().as_raw_pid()
}

/// How many processes are started one after another: `SHMKIT_PROCESSES`, or fewer.
fn processes() -> u64 {
    let wanted = std::env::var("SHMKIT_PROCESSES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(2000)
}

static ONE_BY_ONE: Entry<(), ()> = Entry::new("one by one", |worker, ()| {
    let some = |count| {
        for n in 0..count {
            let square = worker.start(&SQUARE, &n).unwrap();
            assert_eq!(square.join().unwrap(), n * n);
        }
        weight(master_pid())
    };
    let (resident, descriptors) = some(200);
    let (resident_after, descriptors_after) = some(processes());
    assert!(
        resident_after <= resident + 16,
        "{resident} -> {resident_after} pages"
    );
    // The last one joined may be on its way out of the master's table.
    assert_eq!(descriptors_after, descriptors);
});

pub fn thousands_one_after_another() {
    runs(&ONE_BY_ONE);
}

static MANY: Entry<(), ()> = Entry::new("many", |worker: &Worker, ()| {
    let mut weights = Vec::new();
    for _ in 0..2 {
        let handles: Vec<_> = (0..500)
            .map(|_| worker.start(&FOR_EVER, &()).unwrap())
            .collect();
        // Requests are dealt with in order of their places: when this has run, all have.
        worker.start(&UNIT, &()).unwrap().join().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", master_pid());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        if !children.is_empty() {
            assert_eq!(children.split_whitespace().count(), 501);
        }
        handles.iter().for_each(|handle| handle.kill().unwrap());
        for handle in handles {
            assert!(matches!(handle.join(), Err(JoinError::Signaled(9))));
        }
        weights.push(weight(master_pid()));
    }
    assert_eq!(weights[0].1, weights[1].1, "descriptors");
    assert!(weights[1].0 <= weights[0].0 + 16, "{weights:?}");
});

pub fn five_hundred_at_once() {
    runs(&MANY);
}

static ONE_TOO_MANY: Entry<(), ()> = Entry::new("one too many", |worker, ()| {
    let one = worker.start(&FOR_EVER, &()).unwrap();
    match worker.start(&UNIT, &()).unwrap().join() {
        Err(JoinError::NotStarted(why)) => assert!(why.contains("2 workers"), "{why}"),
        other => panic!("{other:?}"),
    }
    one.kill().unwrap();
    one.join().unwrap_err();
    worker.start(&UNIT, &()).unwrap().join().unwrap();
});

pub fn workers_are_limited() {
    run(&Config::new().max_workers(2), &ONE_TOO_MANY, ()).unwrap();
}

static REQUESTS_AND_DIES: Entry<(), ()> = Entry::new("requests and dies", |worker, ()| {
    // Its job is done although nobody joins it.
    worker.start(&SQUARE, &1).unwrap().detach();
    std::process::abort();
});
static OUTLIVES: Entry<(), ()> = Entry::new("outlives", |worker, ()| {
    // More than there are places in the table: whoever dies leaves none in use.
    for _ in 0..45 {
        let started = [(); 100].map(|()| worker.start(&REQUESTS_AND_DIES, &()).unwrap());
        for handle in started {
            assert!(matches!(
                handle.join(),
                Err(JoinError::Signaled(libc::SIGABRT) | JoinError::NotStarted(_))
            ));
        }
    }
});

pub fn the_dead_leave_no_place_in_use() {
    runs(&OUTLIVES);
}
