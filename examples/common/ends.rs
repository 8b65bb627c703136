//! The ends of several children, in whichever order they come, which joining one child after the other would not
//! show.
#![allow(dead_code, reason = "each example uses a part of it")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shmkit::process::ScopedJoinHandle;

/// Readable once the child has ended.
pub fn end_of<R>(child: &ScopedJoinHandle<'_, R>) -> rustix::io::Result<OwnedFd> {
    // Not joined yet, so its pid is not reused.
    let pid = Pid::from_raw(child.id().pid().cast_signed()).expect("a process has a number");
    pidfd_open(pid, PidfdFlags::empty())
}

/// A child that is not joined yet, with a key that identifies it, and its [end](end_of).
pub type Running<'s, N, R> = (N, OwnedFd, ScopedJoinHandle<'s, R>);

/// Waits until one of them has ended, and takes out those that have.
pub fn those_that_ended<'s, N, R>(running: &mut Vec<Running<'s, N, R>>) -> Vec<Running<'s, N, R>> {
    until_one_ends(running.iter().map(|(_, end, _)| end));
    running
        .extract_if(.., |(_, _, child)| child.is_finished())
        .collect()
}

/// Waits until one of them has ended.
pub fn until_one_ends<'a>(ends: impl IntoIterator<Item = &'a OwnedFd>) {
    let mut ends: Vec<_> = ends
        .into_iter()
        .map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN))
        .collect();
    // Whatever it returns, the children are checked.
    let _ = poll(&mut ends, None);
}
