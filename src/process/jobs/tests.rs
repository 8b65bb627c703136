//! Whose type the control block is, and the end of a job that somebody sleeps on.

use rustix::thread::futex::{Flags, requeue};

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

/// Not by looking again after a tick.
#[test]
fn who_sleeps_on_a_job_is_woken_by_its_end() {
    // SAFETY: it consists of atomics and links, of which zeros are valid.
    let job = unsafe { Box::<Job>::new_zeroed().assume_init() };
    let elsewhere = AtomicU32::new(0);
    let moved = |from, to| requeue(from, Flags::empty(), 0, 1, to).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while job.ended.load(Ordering::Acquire) == 0 {
                futex::wait(&job.ended, 0, Duration::from_secs(3600));
            }
        });
        // It sleeps once it can be moved.
        while moved(&job.ended, &elsewhere) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(moved(&elsewhere, &job.ended), 1);
        job.end(0x100);
        // It would be moved if it still slept.
        let asleep = moved(&job.ended, &elsewhere);
        futex::wake(&elsewhere, 1);
        assert_eq!(asleep, 0);
    });
}
