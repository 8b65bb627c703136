//! A master and its workers: starts, joins, ends of all kinds.

use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use shmkit::process::{
    Backoff, Config, Entry, JoinError, JoinHandle, KillError, Master, Restart, ResultError,
    RunError, StartOptions, WorkerId, run,
};
use shmkit::sync::Mutex;
use shmkit::{Handle, HandleError, Pool};

use super::forks::joined;
use super::{loop_for_ever, quietly, role_succeeds};

pub static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
static ECHO: Entry<Vec<u8>, Vec<u8>> = Entry::new("echo", |_, bytes| bytes);
pub static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());
pub static FOR_EVER: Entry<(), ()> = Entry::new("for ever", |_, ()| loop_for_ever());

#[track_caller]
pub fn runs<R: shmkit::process::Wire>(first: &'static Entry<(), R>) -> R {
    run(&Config::new(), first, ()).unwrap()
}

static TYPED: Entry<(), ()> = Entry::new("typed", |worker, ()| {
    assert_eq!(worker.id().number(), 1);
    let square = worker.start(&SQUARE, &12).unwrap();
    assert_eq!(square.id().number(), 2);
    assert_eq!(square.join().unwrap(), 144);
    for length in [0, 1, 40, 46, 47, 48, 49, 50, 1000, 100_000, 5_000_000] {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
        let echoed = worker.start(&ECHO, &bytes).unwrap().join().unwrap();
        assert_eq!(echoed, bytes, "{length} bytes");
    }
});

pub fn arguments_and_results_of_every_length() {
    runs(&TYPED);
}

/// Made when it is needed first, by which time the master has been forked without it.
static LAZY: LazyLock<Entry<u64, u64>> = LazyLock::new(|| Entry::new("lazy", |_, n| n * 3));
static NO_STATICS: Entry<(), ()> = Entry::new("no statics", |worker, ()| {
    // What lies at their addresses is something else in the master.
    let fresh: fn(u64) -> Entry<u64, u64> = |_| Entry::new("leaked", |_, n| n + 1);
    let leaked: &'static [_] = (0..1000).map(fresh).collect::<Vec<_>>().leak();
    let started = leaked.iter().step_by(111).chain([&*LAZY]);
    let started: Vec<_> = started
        .map(|entry| worker.start(entry, &7).unwrap())
        .collect();
    let results: Vec<_> = started
        .into_iter()
        .map(|worker| worker.join().unwrap())
        .collect();
    assert_eq!(results, [[8; 10].as_slice(), &[21]].concat());
});

pub fn entries_need_not_be_statics() {
    runs(&NO_STATICS);
}

static RELAY: Entry<u32, WorkerId> = Entry::new("relay", |worker, depth| match depth {
    0 => worker.id(),
    _ => worker.start(&RELAY, &(depth - 1)).unwrap().join().unwrap(),
});
static RELAYS: Entry<(), WorkerId> = Entry::new("relays", |worker, ()| {
    worker.start(&RELAY, &20).unwrap().join().unwrap()
});

pub fn workers_start_workers() {
    assert_eq!(runs(&RELAYS).number(), 22);
}

static JOINS: Entry<JoinHandle<u64>, Result<u64, bool>> = Entry::new("joins", |_, handle| {
    handle
        .join()
        .map_err(|e| matches!(e, JoinError::AlreadyJoined))
});
static ONCE: Entry<(), ()> = Entry::new("once", |worker, ()| {
    let square = worker.start(&SQUARE, &5).unwrap();
    let joiners = [(); 8].map(|()| worker.start(&JOINS, &square).unwrap());
    let answers = joiners.map(|joiner| joiner.join().unwrap());
    let got = answers.iter().filter(|answer| **answer == Ok(25)).count();
    assert_eq!(got, 1, "{answers:?}");
    assert!(answers.iter().all(|a| matches!(a, Ok(25) | Err(true))));
    assert!(matches!(square.join(), Err(JoinError::AlreadyJoined)));
});

pub fn a_result_is_joined_once_by_whomever() {
    runs(&ONCE);
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Way {
    Panics,
    PanicsAtLength,
    Exits,
    Aborts,
    Killed,
    Overflows,
    NoMemory,
}

#[allow(unconditional_recursion, reason = "the case is about just that")]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    deeper(depth + 1) + frame[7]
}

static END: Entry<Way, u64> = Entry::new("end", |_, way| {
    std::panic::set_hook(Box::new(|_| ()));
    match way {
        Way::Panics => panic!("as {} wanted", "it"),
        Way::PanicsAtLength => panic!("{}", "long".repeat(5000)),
        Way::Exits => std::process::exit(7),
        Way::Aborts => std::process::abort(),
        // SAFETY: plain system calls; the process ends or cannot have memory.
        Way::Killed => unsafe { libc::raise(libc::SIGKILL) as u64 },
        Way::Overflows => deeper(0),
        Way::NoMemory => {
            let limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: as above.
            unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) };
            std::hint::black_box(vec![1_u8; 1 << 30]).len() as u64
        }
    }
});

static ENDS: Entry<(), ()> = Entry::new("ends", |worker, ()| {
    let bystander = worker.start(&FOR_EVER, &()).unwrap();
    let ends = |way| worker.start(&END, &way).unwrap().join();
    assert!(matches!(ends(Way::Panics), Err(JoinError::Panicked(m)) if m == "as it wanted"));
    assert!(
        matches!(ends(Way::PanicsAtLength), Err(JoinError::Panicked(m)) if m == "long".repeat(5000))
    );
    assert!(matches!(ends(Way::Exits), Err(JoinError::Exited(7))));
    assert!(matches!(
        ends(Way::Aborts),
        Err(JoinError::Signaled(libc::SIGABRT))
    ));
    assert!(matches!(
        ends(Way::Killed),
        Err(JoinError::Signaled(libc::SIGKILL))
    ));
    let overflow = ends(Way::Overflows);
    assert!(matches!(
        overflow,
        Err(JoinError::Signaled(libc::SIGABRT | libc::SIGSEGV))
    ));
    assert!(matches!(
        ends(Way::NoMemory),
        Err(JoinError::Signaled(libc::SIGABRT))
    ));
    assert!(!bystander.is_finished(), "nobody else notices");
    bystander.kill().unwrap();
    assert!(matches!(
        bystander.join(),
        Err(JoinError::Signaled(libc::SIGKILL))
    ));
});

/// In a process of its own: overflowing stacks and missing memory are reported on standard error.
pub fn role_ends() {
    runs(&ENDS);
}

pub fn every_end_has_its_cause() {
    role_succeeds("role_ends");
}

static PANICS: Entry<(), ()> = Entry::new("panics", |_, ()| panic!("the first"));

pub fn the_first_worker_fails() {
    quietly(|| match run(&Config::new(), &PANICS, ()) {
        Err(RunError::First(JoinError::Panicked(message))) => assert_eq!(message, "the first"),
        other => panic!("{other:?}"),
    });
}

static TRIES: Entry<(), ()> = Entry::new("tries", |worker, ()| {
    let hung = worker.start(&FOR_EVER, &()).unwrap();
    let hung = hung.try_join().expect_err("it has not ended");
    assert!(!hung.wait_timeout(Duration::from_millis(1)).unwrap());
    hung.kill().unwrap();
    let (copy, id) = (postcard_copy(&hung), hung.id());
    assert_eq!(copy.id(), id);
    assert!(matches!(hung.join(), Err(JoinError::Signaled(9))));
    assert!(matches!(copy.kill(), Err(KillError::Ended)));
    assert!(copy.is_finished());

    let square = worker.start(&SQUARE, &3).unwrap();
    assert!(square.wait_timeout(Duration::from_secs(60)).unwrap());
    assert_eq!(square.try_join().unwrap().unwrap(), 9);

    let forgotten = worker.start(&SQUARE, &4).unwrap();
    let copy = postcard_copy(&forgotten);
    forgotten.detach();
    assert!(matches!(copy.join(), Err(JoinError::AlreadyJoined)));

    // One that has not ended is nobody's either.
    let runs = worker.start(&FOR_EVER, &()).unwrap();
    let copy = postcard_copy(&runs);
    runs.detach();
    assert!(matches!(copy.kill(), Err(KillError::Ended)));
});

fn postcard_copy<R: shmkit::process::Wire>(handle: &JoinHandle<R>) -> JoinHandle<R> {
    postcard::from_bytes(&postcard::to_stdvec(handle).unwrap()).unwrap()
}

pub fn try_join_kill_detach() {
    runs(&TRIES);
}

static SELF_JOIN: Entry<JoinHandle<()>, bool> = Entry::new("self join", |_, myself| {
    matches!(myself.join(), Err(JoinError::WouldDeadlock))
});

pub fn who_must_not_wait_does_not() {
    let mut master = Master::new(&Config::new()).unwrap();
    let handle = master.start(&FOR_EVER, &()).unwrap();
    assert!(matches!(
        postcard_copy(&handle).join(),
        Err(JoinError::WouldDeadlock)
    ));
    // The next worker's handle, forged: its own. Ids count.
    let mut bytes = postcard::to_stdvec(&handle).unwrap();
    let last = bytes.len() - 1;
    (bytes[last - 1], bytes[last]) = (1, 2);
    let own = postcard::from_bytes(&bytes).unwrap();
    let mut handle = master.start(&SELF_JOIN, &own).unwrap();
    let answer = loop {
        master.dispatch().unwrap();
        match handle.try_join() {
            Ok(answer) => break answer.unwrap(),
            Err(again) => handle = again,
        }
    };
    assert!(answer);
    master.finish().unwrap();
}

static FLAKY: Entry<Handle<Mutex<u32>>, u32> = Entry::new("flaky", |worker, starts| {
    let starts = starts.open().unwrap();
    *starts.lock().unwrap() += 1;
    if worker.restarts() < 3 {
        std::process::abort();
    }
    worker.restarts()
});
static GIVES_UP: Entry<Handle<Mutex<u32>>, u32> = Entry::new("gives up", |_, starts| {
    *starts.open().unwrap().lock().unwrap() += 1;
    std::process::abort()
});
static RETURNS_ONCE: Entry<(), u32> = Entry::new("returns once", |worker, ()| {
    if worker.restarts() > 0 {
        std::process::exit(0);
    }
    7
});
static SUPERVISOR: Entry<Handle<Mutex<u32>>, ()> = Entry::new("supervisor", |worker, starts| {
    let counted = starts.open().unwrap();
    let backoff = Backoff::new(Duration::from_millis(1));
    let on_crash = |backoff| StartOptions::new().restart(Restart::OnCrash(backoff));

    let flaky = worker
        .start_with(on_crash(backoff), &FLAKY, &starts)
        .unwrap();
    assert_eq!(flaky.join().unwrap(), 3);
    assert_eq!(std::mem::take(&mut *counted.lock().unwrap()), 4);

    let hopeless = worker
        .start_with(on_crash(backoff.times(2)), &GIVES_UP, &starts)
        .unwrap();
    assert!(matches!(
        hopeless.join(),
        Err(JoinError::Signaled(libc::SIGABRT))
    ));
    assert_eq!(std::mem::take(&mut *counted.lock().unwrap()), 3);

    let always = StartOptions::new().restart(Restart::Always(backoff.times(4)));
    let flaky = worker.start_with(always, &FLAKY, &starts).unwrap();
    assert_eq!(flaky.join().unwrap(), 4);
    assert_eq!(std::mem::take(&mut *counted.lock().unwrap()), 5);

    // One that waits for its restart, and one that would be restarted, are killed for good.
    let later = on_crash(Backoff::new(Duration::from_secs(600)));
    let waiting = worker.start_with(later, &GIVES_UP, &starts).unwrap();
    while *counted.lock().unwrap() == 0 {
        std::thread::yield_now();
    }
    waiting.kill().unwrap();
    assert!(matches!(waiting.join(), Err(JoinError::Signaled(_))));
    let hung = worker
        .start_with(on_crash(backoff), &FOR_EVER, &())
        .unwrap();
    hung.kill().unwrap();
    assert!(matches!(hung.join(), Err(JoinError::Signaled(9))));

    // What the first has returned is dropped, and the last has returned nothing.
    let always = StartOptions::new().restart(Restart::Always(backoff.times(1)));
    let once = worker.start_with(always, &RETURNS_ONCE, &()).unwrap();
    let joined = once.join();
    assert!(matches!(joined, Err(JoinError::Exited(0))), "{joined:?}");

    // What cannot be read or written is no crash, and would be so again.
    let again = on_crash(backoff.times(2));
    let unread = worker.start_with(again, &UNREAD, &Unread(())).unwrap();
    let joined = unread.join();
    assert!(
        matches!(joined, Err(JoinError::BadArgument(_))),
        "{joined:?}"
    );
    let unwritten = worker.start_with(again, &UNWRITTEN, &()).unwrap();
    assert!(matches!(
        unwritten.join(),
        Err(JoinError::NoResult(ResultError::Encode(_)))
    ));
});

#[derive(serde::Serialize, serde::Deserialize)]
struct Unread(#[serde(deserialize_with = "unread")] ());

fn unread<'de, D: serde::Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(serde::de::Error::custom("as it is"))
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Unwritten(#[serde(serialize_with = "unwritten")] ());

fn unwritten<S: serde::Serializer>(_: &(), _: S) -> Result<S::Ok, S::Error> {
    Err(serde::ser::Error::custom("as it is"))
}

static UNREAD: Entry<Unread, ()> = Entry::new("unread", |_, _| ());
static UNWRITTEN: Entry<(), Unwritten> = Entry::new("unwritten", |_, ()| Unwritten(()));

pub fn restarts_by_policy() {
    let pool = Pool::builder().create().unwrap();
    let starts = pool.create(Mutex::new(0)).unwrap();
    let ends = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&ends);
    let config = Config::new().on_end(move |end| {
        let crashed = matches!(end.cause, Err(JoinError::Signaled(libc::SIGABRT)));
        seen.borrow_mut()
            .push((end.worker.number(), crashed, end.restart_in));
    });
    run(&config, &SUPERVISOR, starts.handle()).unwrap();
    let ms = |n| Some(Duration::from_millis(n));
    let of = |id| -> Vec<_> {
        let ends = ends.borrow();
        ends.iter()
            .filter(|e| e.0 == id)
            .map(|e| (e.1, e.2))
            .collect()
    };
    let crashes = [(true, ms(1)), (true, ms(2)), (true, ms(4))];
    assert_eq!(of(2), [&crashes[..], &[(false, None)]].concat());
    assert_eq!(of(3), [&crashes[..2], &[(true, None)]].concat());
    assert_eq!([of(1), of(8), of(9)], [(); 3].map(|()| [(false, None)]));
    drop(starts);
    // SAFETY: the last handle was dropped above.
    unsafe { pool.unmap() };
}

/// A result whose reader dies.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kills(#[serde(deserialize_with = "kills")] ());

fn kills<'de, D: serde::Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    std::process::abort()
}

static DIES: Entry<JoinHandle<Kills>, ()> =
    Entry::new("dies as it joins", |_, handle| drop(handle.join()));

/// Who hears of its end finds it there.
pub fn what_a_dead_joiner_had_taken_is_left_to_the_next() {
    let unit = Rc::new(Cell::new(None::<JoinHandle<()>>));
    let left = Rc::clone(&unit);
    let config = Config::new().on_end(move |end| {
        if end.cause.is_err() {
            left.take().unwrap().try_join().unwrap().unwrap();
        }
    });
    let mut master = Master::new(&config).unwrap();
    let job = master.start(&UNIT, &()).unwrap();
    while !job.is_finished() {
        poll(&mut [PollFd::new(&master, PollFlags::IN)], None).unwrap();
        master.dispatch().unwrap();
    }
    let kills = postcard::from_bytes(&postcard::to_stdvec(&job).unwrap()).unwrap();
    unit.set(Some(job));
    let dies = master.start(&DIES, &kills).unwrap();
    let dies = joined(&mut master, dies);
    assert!(matches!(dies, Err(JoinError::Signaled(libc::SIGABRT))));
    assert!(unit.take().is_none());
    master.finish().unwrap();
}

static HOLDER: Entry<Handle<Mutex<u32>>, ()> = Entry::new("holder", |_, lock| {
    let lock = lock.open().unwrap();
    let _guard = lock.lock().unwrap();
    loop_for_ever();
});
static SURVIVOR: Entry<Handle<Mutex<u32>>, ()> = Entry::new("survivor", |worker, handle| {
    let lock = handle.open().unwrap();
    for _ in 0..20 {
        let holder = worker.start(&HOLDER, &handle).unwrap();
        while lock.try_lock().is_ok() {
            std::thread::yield_now();
        }
        holder.kill().unwrap();
        assert!(matches!(holder.join(), Err(JoinError::Signaled(9))));
        // Recovered before it was joined.
        match lock.try_lock() {
            Err(shmkit::LockError::OwnerDied(orphan)) => drop(orphan.into_guard()),
            other => panic!("{other:?}"),
        }
        lock.clear_poison();
    }
});

pub fn what_the_joined_dead_held_is_free() {
    let pool = Pool::builder().create().unwrap();
    let lock = pool.create(Mutex::new(0)).unwrap();
    run(&Config::new(), &SURVIVOR, lock.handle()).unwrap();
    drop(lock);
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: the last handle was dropped above.
    unsafe { pool.unmap() };
}

static MISTYPED: Entry<(), ()> = Entry::new("mistyped", |worker, ()| {
    // As another type: its bytes are no such value.
    let unit = worker.start(&UNIT, &()).unwrap();
    let bytes = postcard::to_stdvec(&unit).unwrap();
    let other: JoinHandle<u64> = postcard::from_bytes(&bytes).unwrap();
    match other.join() {
        Err(JoinError::NoResult(ResultError::Decode(_))) => {}
        other => panic!("{other:?}"),
    }
    // Of places and runs that there are not.
    for at in 0..bytes.len() {
        let mut forged = bytes.clone();
        forged[at] ^= 0x15;
        if let Ok(forged) = postcard::from_bytes::<JoinHandle<u64>>(&forged) {
            forged.join().unwrap_err();
        }
    }
    // Of the job 0, which there never is, at a place that is free.
    let (_, control_and_place) = bytes.split_last().unwrap();
    let forged = [control_and_place, &[0]].concat();
    let forged = || postcard::from_bytes::<JoinHandle<()>>(&forged).unwrap();
    assert_eq!(forged().id().number(), 0);
    assert!(matches!(forged().kill(), Err(KillError::Ended)));
    forged().detach();
    assert!(matches!(forged().join(), Err(JoinError::AlreadyJoined)));
    let next = worker.start(&UNIT, &()).unwrap();
    let next_bytes = postcard::to_stdvec(&next).unwrap();
    assert!(
        next_bytes.starts_with(control_and_place),
        "the place is in use again"
    );
    // So it is when a joiner has panicked.
    let panics: JoinHandle<Panics> = postcard::from_bytes(&next_bytes).unwrap();
    quietly(|| catch_unwind(|| panics.join().map(drop)).unwrap_err());
    let last = worker.start(&UNIT, &()).unwrap();
    let last_bytes = postcard::to_stdvec(&last).unwrap();
    assert!(last_bytes.starts_with(control_and_place));
    last.join().unwrap();
});

#[derive(serde::Serialize, serde::Deserialize)]
struct Panics(#[serde(deserialize_with = "panics")] ());

fn panics<'de, D: serde::Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    panic!("while it is read")
}

pub fn forged_handles_are_errors() {
    runs(&MISTYPED);
}

/// It goes with its master: what safe code had made in it would be gone as well.
pub fn nobody_finds_a_control_pool() {
    let pool = Pool::builder().create().unwrap();
    let master = Master::new(&Config::new()).unwrap();
    let granules = 0x20..0x50;
    let found: Vec<_> = granules
        .filter_map(|granule| Pool::containing(granule << 40))
        .collect();
    assert_eq!(found, [pool]);
    // What begins with a descriptor of what is there.
    let job = postcard::to_stdvec(&master.start(&SQUARE, &1).unwrap()).unwrap();
    let (control, _): (Handle<u64>, _) = postcard::take_from_bytes(&job).unwrap();
    let opened = control.open().map(|_| ());
    assert_eq!(opened, Err(HandleError::PoolNotAttached));
    master.finish().unwrap();
    // SAFETY: nothing was made in it.
    unsafe { pool.unmap() };
}

/// A program may have several masters: each has its own workers, and ends with them alone.
pub fn two_masters_in_one_process() {
    let mut one = Master::new(&Config::new()).unwrap();
    let mut other = Master::new(&Config::new()).unwrap();
    let hangs = other.start(&FOR_EVER, &()).unwrap();
    other.dispatch().unwrap();
    assert_eq!((one.workers(), other.workers()), (0, 1));
    let joined = |master: &mut Master, mut job: JoinHandle<u64>| loop {
        poll(&mut [PollFd::new(&*master, PollFlags::IN)], None).unwrap();
        master.dispatch().unwrap();
        match job.try_join() {
            Ok(result) => break result.unwrap(),
            Err(again) => job = again,
        }
    };
    for n in 0..3 {
        let squares = [&one, &other].map(|master| master.start(&SQUARE, &n).unwrap());
        let [first, second] = squares;
        assert_eq!(joined(&mut other, second), n * n);
        assert_eq!(joined(&mut one, first), n * n);
    }
    one.finish().unwrap();
    assert_eq!(other.workers(), 1);
    hangs.kill().unwrap();
    while other.workers() > 0 {
        poll(&mut [PollFd::new(&other, PollFlags::IN)], None).unwrap();
        other.dispatch().unwrap();
    }
    assert!(matches!(hangs.join(), Err(JoinError::Signaled(9))));
    other.finish().unwrap();
}
