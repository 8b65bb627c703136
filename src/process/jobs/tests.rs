//! The type of the control block, the end of a job on which a thread sleeps, and what is asked of a
//! job meanwhile.

use super::*;

mod alike {
    use super::*;

    #[derive(ShmSafe)]
    #[repr(C)]
    pub(super) struct Control {
        last_id: AtomicU64,
        used: Used,
        stopping: AtomicU32,
        resources: resources::Table,
        peers: peers::Table,
        jobs: [Job; JOBS],
    }
}

#[test]
fn a_derived_type_of_the_same_name_and_fields_is_another() {
    let (own, other) = (TypeInfo::of::<Control>(), TypeInfo::of::<alike::Control>());
    assert_eq!((own.name(), own.size()), (other.name(), other.size()));
    assert_eq!(own.owned_fields().len(), other.owned_fields().len());
    assert_ne!(own.fingerprint(), other.fingerprint());
}

/// By the wake, and not by looking again after a tick.
#[test]
fn who_sleeps_on_a_job_is_woken_by_its_end() {
    // SAFETY: it consists of atomics and links, of which zeros are valid.
    let job = unsafe { Box::<Job>::new_zeroed().assume_init() };
    assert_is_woken(&job.ended, || _ = job.end(0x100));
}

/// A thread that waits for the end of the run may do so without a tick.
#[test]
fn who_sleeps_until_the_run_comes_to_its_end_is_woken() {
    // SAFETY: as above.
    let control = unsafe { Box::<Control>::new_zeroed().assume_init() };
    let peer = control.peers.claim(Tag::new(1, 1)).unwrap();
    let changed = || control.peers.place(peer).unwrap().changed();
    let before = changed();
    assert_is_woken(&control.stopping, || control.stop());
    let stopping = changed();
    control.peers.end();
    assert!(before != stopping && changed() != stopping);
}

/// Asserts this for a word that was 0, and that changes with the wake.
#[track_caller]
fn assert_is_woken(word: &AtomicU32, wake: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while word.load(Ordering::Acquire) == 0 {
                futex::wait(word, 0, Duration::from_secs(3600));
            }
        });
        while !futex::is_slept_on(word) {
            std::thread::yield_now();
        }
        wake();
        let asleep = futex::is_slept_on(word);
        futex::wake(word, 1);
        assert!(!asleep);
    });
}

#[test]
fn what_was_asked_of_a_job_stays_asked() {
    // SAFETY: as above.
    let job = unsafe { Box::<Job>::new_zeroed().assume_init() };
    for flag in [DETACHED, KILL] {
        job.state.store(JobState::of(JobPhase::Requested, 1, 0).0);
        assert!(job.flag(1, flag));
        for phase in [
            JobPhase::Running,
            JobPhase::Waiting,
            JobPhase::Running,
            JobPhase::Ended,
        ] {
            job.advance(phase);
            assert_eq!(job.state(), JobState::of(phase, 1, flag));
        }
    }
}

/// The master has found a dead joiner's place. Meanwhile another has put the job back and joined it, and the place is
/// somebody's again.
#[test]
fn a_place_that_changed_hands_is_not_repaired() {
    // SAFETY: as above.
    let control = unsafe { Box::<Control>::new_zeroed().assume_init() };
    let job = control.job(0).unwrap();
    let found = JobState::held(JobPhase::Taken, Tag::new(2, 1));
    for now in [
        JobState::held(JobPhase::Claimed, Tag::new(3, 1)),
        JobState::held(JobPhase::Taken, Tag::new(3, 1)),
        JobState::of(JobPhase::Requested, 2, 0),
    ] {
        job.state.store(now.0);
        control.put_right(0, job, found);
        assert_eq!(job.state(), now);
    }
    // Where it is still as it was found, it is free, or to be joined again.
    job.id.store(1, Ordering::Relaxed);
    for (outcome, then) in [
        (0, JobState::FREE),
        (0x100, JobState::of(JobPhase::Ended, 1, 0)),
    ] {
        job.state.store(found.0);
        job.outcome.store(outcome, Ordering::Relaxed);
        control.put_right(0, job, found);
        assert_eq!(job.state(), then);
    }
}

/// A second one might remove the next run's.
#[test]
fn one_process_removes_the_name_of_a_run() {
    // SAFETY: as above.
    let control = unsafe { Box::<Control>::new_zeroed().assume_init() };
    let claims = [(); 2].map(|()| control.peers.claim_name());
    assert_eq!(claims, [true, false]);
}
