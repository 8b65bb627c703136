//! The job table without a master, for the crash tests: its operations one by one.

use super::jobs::{Control, DETACHED, JobPhase, PayloadKind};
use super::peers::{self, PeerPhase};
use super::{Entry, Inherit, JoinHandle, Resource, ResourceId, Resources, StartOptions, Worker};
use super::{part, supervise, worker};
use crate::Pool;
use crate::containers::Shared;
use crate::primitive::Ordering;
use crate::sys::process::Ended;

static ECHO: Entry<Vec<u8>, Vec<u8>> = Entry::new("echo", |_: &Worker, bytes| bytes);

/// A job table.
#[derive(Clone)]
pub struct Jobs(Shared<Control>);

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl Jobs {
    /// A table without a job.
    ///
    /// # Safety
    ///
    /// The caller plays the master and the processes of all jobs, one step after the other and in
    /// the order in which they would do them.
    pub unsafe fn create(pool: Pool) -> Jobs {
        Jobs(Control::create(pool).expect("room"))
    }

    /// As `Worker::start`.
    pub fn start(&self, argument: &Vec<u8>) -> JoinHandle<Vec<u8>> {
        worker::request(&self.0, None, StartOptions::new(), &ECHO, argument, false).expect("room")
    }

    /// The same for the job at a place, whose resources the new one inherits.
    pub fn start_as(&self, starter: usize, argument: &Vec<u8>) -> JoinHandle<Vec<u8>> {
        let options = StartOptions::new().inherit(Inherit::All);
        worker::request(&self.0, Some(starter), options, &ECHO, argument, false).expect("room")
    }

    /// The process of each job does its work: the argument is the result. Returns how many had work
    /// to do.
    pub fn work(&self) -> usize {
        let requested = self
            .0
            .jobs()
            .filter(|(_, job)| job.state().phase() == JobPhase::Requested);
        requested
            .map(|(place, job)| {
                job.advance(JobPhase::Running);
                assert_eq!(
                    worker::live(self.0.clone(), place, job.state().id(), &[]),
                    0
                );
            })
            .count()
    }

    /// Jobs get processes that do nothing.
    pub fn run(&self) {
        let requested = self
            .0
            .jobs()
            .filter(|(_, job)| job.state().phase() == JobPhase::Requested);
        requested.for_each(|(_, job)| {
            job.advance(JobPhase::Running);
        });
    }

    /// True if somebody has taken the job at the first place, to join it.
    pub fn is_taken(&self) -> bool {
        let job = self.0.job(0).expect("a place");
        job.state().phase() == JobPhase::Taken
    }

    /// A handle of the job `id` at the first place, which was made by a process that is dead.
    pub fn forge(&self, id: u64) -> JoinHandle<Vec<u8>> {
        JoinHandle::new(&self.0, 0, id)
    }

    /// The only job's process leaves its result.
    pub fn leave(&self, result: &[u8]) {
        let job = self.0.job(0).expect("a place");
        worker::store(job, self.0.pool(), PayloadKind::Value, result).expect("room");
    }

    /// The master learns that the processes of all running jobs have ended.
    pub fn end(&self) {
        let running = self
            .0
            .jobs()
            .filter(|(_, job)| job.state().phase() == JobPhase::Running);
        running.for_each(|(_, job)| {
            if job.end(supervise::pack(Ended::Exited(0))).has(DETACHED) {
                job.release();
            }
        });
    }

    /// What the master does whenever it wakes.
    pub fn tidy(&self) {
        let arena = self.0.pool().0;
        for (place, _) in self.0.jobs() {
            self.0.tidy(arena, place);
        }
        for (_, place) in self.0.peers.places() {
            if place.state().phase() != PeerPhase::Free && place.is_gone(arena) {
                place.release();
            }
        }
    }

    /// What a peer does before it is given jobs.
    pub fn enter_peer(&self, defined: &[u8]) {
        let pool = self.0.pool();
        let tag = part::tag(pool).expect("a slot");
        let place = self.0.peers.claim(tag).expect("room");
        let place = self.0.peers.place(place).expect("claimed just now");
        place.enter(pool, 1, defined).expect("room");
    }

    /// How many peers there are, including those that are still coming.
    pub fn peers(&self) -> usize {
        let there = |(_, place): &(_, &peers::Place)| place.state().phase() != PeerPhase::Free;
        self.0.peers.places().filter(there).count()
    }

    /// The resources as the process of the job at a place sees them.
    pub fn resources(&self, place: usize) -> Resources {
        Resources::new(self.0.clone(), place, crate::sys::process::pid())
    }

    /// A resource that the job at a place uses, and goes on to use.
    pub fn manage(&self, place: usize, resource: Resource) -> ResourceId {
        self.request(place, &resource);
        self.tend();
        let managed = self
            .resources(place)
            .manage(resource)
            .expect("managed by now");
        let id = managed.id();
        std::mem::forget(managed);
        id
    }

    /// What `Resources::manage` does before it waits for the master.
    pub fn request(&self, place: usize, resource: &Resource) {
        self.resources(place).request(resource).expect("room");
    }

    /// The job at a place is over; then what nobody uses is removed. Returns how many resources
    /// that were.
    pub fn end_uses(&self, place: usize) -> usize {
        self.clear_uses(place);
        self.tend()
    }

    /// The job at a place is over; the master has not looked at the resources yet.
    pub fn clear_uses(&self, place: usize) {
        self.0.resources.clear_user(place);
    }

    /// This thread is the master, so that those that wait for the master see its death.
    pub fn reign(&self) {
        let tag = part::tag(self.0.pool()).expect("a slot");
        self.0.peers.master.store(tag.word(), Ordering::Relaxed);
    }

    /// Answers requests for resources; returns how many resources were removed.
    pub fn tend(&self) -> usize {
        let mut removed = 0;
        self.tend_with(|| removed += 1);
        removed
    }

    /// The same, with a function that is called to remove each.
    pub fn tend_with(&self, mut remove: impl FnMut()) {
        let remove = |_, _: &_| {
            remove();
            true
        };
        self.0.resources.tend(self.0.pool(), |_, _| Ok(()), remove);
    }

    /// True if every place is free.
    pub fn is_empty(&self) -> bool {
        let free = |(_, job): (_, &super::jobs::Job)| job.state().phase() == JobPhase::Free;
        self.0.jobs().all(free)
    }
}
