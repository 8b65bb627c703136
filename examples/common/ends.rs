//! The ends of several children, in whichever order they come: who waits for one of them does not hear of the others.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shmkit::process::ScopedJoinHandle;

/// Readable once the child has ended.
pub fn end_of<R>(child: &ScopedJoinHandle<'_, R>) -> rustix::io::Result<OwnedFd> {
    // Not joined yet, so the number is nobody else's.
    let pid = Pid::from_raw(child.id().pid().cast_signed()).expect("a process has a number");
    pidfd_open(pid, PidfdFlags::empty())
}

/// Waits until one of them has ended.
pub fn until_one_ends<'a>(ends: impl IntoIterator<Item = &'a OwnedFd>) {
    let mut ends: Vec<_> = ends
        .into_iter()
        .map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN))
        .collect();
    // Whatever it answers, the children are looked at.
    let _ = poll(&mut ends, None);
}
