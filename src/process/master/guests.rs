//! Peers, as the master sees them: programs that are not its children.
//!
//! See the invariants in `master.rs`, and `peers.rs` for what a peer does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::Master;
use super::children::Process;
use crate::containers::Shared;
use crate::participants::tag::Tag;
use crate::pool::fork;
use crate::primitive::Ordering;
use crate::process::entry::Known;
use crate::process::jobs::{Control, JOBS, JobPhase, PayloadKind};
use crate::process::peers::{Assigned, PeerPhase, PeerState};
use crate::process::{supervise, worker};
use crate::sys::process;
use crate::sys::watch;

/// A process that is not a child of ours.
pub(super) struct Guest {
    tag: Tag,
    pid: u32,
    pub(super) pidfd: OwnedFd,
    defined: Vec<(String, Known)>,
    /// The place of the job that it runs.
    pub(super) job: Option<usize>,
}

impl Master {
    /// Gives a job to an idle peer that has its entry. If there is none, the job waits, unless the
    /// entry has other types wherever it is defined.
    pub(super) fn assign(
        &mut self,
        control: &Shared<Control>,
        place: usize,
        wanted: Known,
    ) -> bool {
        let Some(job) = control.job(place) else {
            return false;
        };
        let here = self.config.defined.iter().map(|own| (own.name, own.known));
        let theirs = self.peers.iter().flatten().flat_map(|peer| &peer.defined);
        let all = here.chain(theirs.map(|(name, known)| (name.as_str(), *known)));
        let mut namesakes = all
            .filter(|(_, known)| known.name == wanted.name)
            .peekable();
        let other = namesakes.peek().map(|(name, _)| (*name).to_owned());
        if other.is_none() && self.config.name.is_none() {
            drop(namesakes);
            let why = "no program can define its entry point, as the run has no name";
            self.refuse(place, why);
            return false;
        }
        if let Some(name) = other
            && namesakes.all(|(_, known)| known != wanted)
        {
            let _ = worker::store(
                job,
                control.pool(),
                PayloadKind::OtherTypes,
                name.as_bytes(),
            );
            self.end(place, supervise::NOT_STARTED);
            return false;
        }
        let id = job.state().id();
        for (index, peer) in self.peers.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            let has = peer.defined.iter().any(|(_, known)| *known == wanted);
            let Some(at) = control.peers.place(index).filter(|_| has) else {
                continue;
            };
            if peer.job.is_some() || at.state() != PeerState::of(PeerPhase::Idle, peer.tag) {
                continue;
            }
            if at.assign(peer.tag, Assigned { place, id }) {
                job.advance(JobPhase::Running);
                peer.job = Some(place);
                *self.running_at(place) = Some(Process::ELSEWHERE);
                return true;
            }
        }
        false
    }

    /// The process of the peer that runs the job at a place.
    pub(super) fn guest_at(&self, place: usize) -> Option<BorrowedFd<'_>> {
        let runs = |peer: &&Guest| peer.job == Some(place);
        let peer = self.peers.iter().flatten().find(runs)?;
        Some(peer.pidfd.as_fd())
    }

    /// Finds out which peers have come, have done their job, or have left. False if some that have
    /// come could not be admitted, and must be looked at again.
    pub(super) fn look_at_peers(&mut self, control: &Shared<Control>) -> bool {
        let arena = control.pool().0;
        let mut all = true;
        for (index, place) in control.peers.places() {
            let state = place.state();
            let known = self.peers.get(index).and_then(Option::as_ref);
            let known = known.is_some_and(|peer| peer.tag == state.tag());
            match state.phase() {
                PeerPhase::Free | PeerPhase::Runs => {}
                PeerPhase::Claimed => {
                    if place.is_gone(arena) {
                        place.release();
                    }
                }
                PeerPhase::Idle if !known => all &= self.admit(control, index),
                PeerPhase::Idle => {}
                PeerPhase::Done => {
                    self.peer_done(index, supervise::pack(process::Ended::Exited(0)));
                    place.turn(state, PeerPhase::Idle);
                    place.wake();
                }
                PeerPhase::Left => {
                    self.forget(index);
                    place.release();
                }
            }
        }
        all
    }

    /// A peer has come. False if it cannot be watched for the time being.
    fn admit(&mut self, control: &Shared<Control>, index: usize) -> bool {
        let Some(place) = control.peers.place(index) else {
            return true;
        };
        let tag = place.state().tag();
        let pid = place.pid.load(Ordering::Relaxed) as u32;
        let watched = watch::pidfd(pid).and_then(|pidfd| {
            self.watch.add(pidfd.as_fd(), (JOBS + index) as u64)?;
            Ok(pidfd)
        });
        // The process still lived after its descriptor was opened, so the descriptor is that
        // process's.
        if place.is_gone(control.pool().0) {
            place.release();
            return true;
        }
        let Ok(pidfd) = watched else { return false };
        let defined = place.defined.read(|bytes| {
            let defined: Vec<(String, u64)> = postcard::from_bytes(bytes).unwrap_or_default();
            defined
                .into_iter()
                .map(|(name, signature)| {
                    let known = Known::new(&name, signature);
                    (name, known)
                })
                .collect()
        });
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || None);
        }
        self.peers[index] = Some(Guest {
            tag,
            pid,
            pidfd,
            defined,
            job: None,
        });
        true
    }

    /// The job that a peer ran has ended.
    fn peer_done(&mut self, index: usize, outcome: u32) {
        let peer = self.peers.get_mut(index).and_then(Option::as_mut);
        if let Some(place) = peer.and_then(|peer| peer.job.take()) {
            self.end(place, outcome);
        }
    }

    fn forget(&mut self, index: usize) {
        if let Some(peer) = self.peers.get_mut(index).and_then(Option::take) {
            self.watch.remove(peer.pidfd.as_fd());
        }
    }

    /// A peer's process has ended; true if it ran a job.
    pub(super) fn peer_died(&mut self, index: usize) -> bool {
        let control = self.control().clone();
        let Some(peer) = self.peers.get(index).and_then(Option::as_ref) else {
            return false;
        };
        let ran = peer.job.is_some();
        let ended = process::ended_elsewhere(peer.pid, peer.pidfd.as_fd());
        fork::child_reaped(peer.pid);
        self.tidy();
        let place = control.peers.place(index);
        // It may have done its job, or have left, before it died.
        let state = place.map(|place| place.state().phase());
        let ended = match state {
            Some(PeerPhase::Done) => process::Ended::Exited(0),
            _ => ended,
        };
        self.peer_done(index, supervise::pack(ended));
        self.forget(index);
        if let Some(place) = place {
            place.release();
        }
        ran
    }

    /// At the end of the run: peers that ran a job have been killed, and what their jobs used is no
    /// longer used.
    pub(super) fn await_killed_peers(&mut self) {
        /// How long to wait. One that the kernel does not let us kill is waited for no longer.
        const LIMIT: Duration = Duration::from_secs(1);
        for index in 0..self.peers.len() {
            let peer = self.peers[index].as_ref();
            if let Some(peer) = peer.filter(|peer| peer.job.is_some()) {
                watch::wait_ended(peer.pidfd.as_fd(), LIMIT);
                self.peer_died(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_a_child;
    use super::*;
    use crate::process::Config;
    use crate::process::peers::Place;

    /// Afterwards its place may be another's, whatever the peer did.
    #[test]
    fn a_dead_peer_has_no_place() {
        in_a_child(peers_die);
    }

    fn peers_die() {
        let mut master = Master::new(&Config::new()).unwrap();
        let control = master.control().clone();
        // A tag of nobody, as if its thread were gone.
        let tag = Tag::new(2, 1);
        let claim = || {
            let index = control.peers.claim(tag).unwrap();
            assert_eq!(index, 0);
            let place = control.peers.place(index).unwrap();
            (place, PeerState::of(PeerPhase::Claimed, tag))
        };
        let is_free = |place: &Place| place.state().phase() == PeerPhase::Free;
        let guest = |job| Guest {
            tag,
            pid: 1,
            pidfd: watch::pidfd(process::pid()).unwrap(),
            defined: Vec::new(),
            job,
        };
        use PeerPhase::{Claimed, Done, Idle, Left, Runs};
        for phase in [Claimed, Idle, Left, Runs] {
            let (place, claimed) = claim();
            assert!(place.turn(claimed, phase));
            if phase == Runs {
                master.peers = vec![Some(guest(Some(0)))];
                assert!(master.peer_died(0));
            } else {
                master.peers = (phase == Left)
                    .then(|| Some(guest(None)))
                    .into_iter()
                    .collect();
                assert!(master.look_at_peers(&control));
            }
            assert!(is_free(place), "{phase:?}");
            assert!(master.peers.iter().all(Option::is_none), "{phase:?}");
        }
        // A peer that lives is idle again, and is told so.
        let (place, claimed) = claim();
        assert!(place.turn(claimed, Done));
        master.peers = vec![Some(guest(None))];
        let heard = place.changed();
        assert!(master.look_at_peers(&control));
        assert_eq!(place.state().phase(), Idle);
        assert_ne!(place.changed(), heard);
        // As it does of a job.
        let heard = place.changed();
        assert!(place.assign(tag, Assigned { place: 0, id: 1 }));
        assert_ne!(place.changed(), heard);
    }
}
