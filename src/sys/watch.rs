//! What a master sleeps on: an epoll descriptor over a counter that its workers write to, a pipe that
//! peers write to, a timer, and one pidfd for each child and each peer.
//!
//! Contract: level-triggered, so an event that is not handled comes again. Descriptors are
//! closed on `exec`. A fork copies them, and an entry in an epoll set lives as long as any copy of
//! its descriptor, so [`Watch::remove`] comes before a close.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::descriptor::to_keep;

/// How many events are handled at once. Few, because after each fork each page of stack that is
/// touched is copied.
pub(crate) const AT_ONCE: usize = 32;

/// The counter was written to.
pub(crate) const WOKEN: u64 = u64::MAX;
/// The doorbell was written to.
pub(crate) const RUNG: u64 = u64::MAX - 2;
/// The timer has fired.
pub(crate) const FIRED: u64 = u64::MAX - 1;

#[derive(Debug)]
pub(crate) struct Watch {
    epoll: OwnedFd,
    counter: Arc<OwnedFd>,
    timer: OwnedFd,
    /// A pipe, both ends; see [`Watch::doorbell`].
    doorbell: Option<(OwnedFd, OwnedFd)>,
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

impl Watch {
    pub(crate) fn new() -> io::Result<Watch> {
        let watch = Watch {
            epoll: to_keep(epoll::create(CreateFlags::CLOEXEC)?)?,
            counter: to_keep(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?.into(),
            timer: to_keep(timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?)?,
            doorbell: None,
        };
        watch.add(watch.counter.as_fd(), WOKEN)?;
        watch.add(watch.timer.as_fd(), FIRED)?;
        Ok(watch)
    }

    /// The descriptor to write to.
    pub(crate) fn counter(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }

    /// Leaves the counter open for as long as the process lives: somebody may know its number, and
    /// write to it when this is gone.
    pub(crate) fn keep_counter(&self) {
        std::mem::forget(Arc::clone(&self.counter));
    }

    /// A descriptor that processes that are not descendants can open through `/proc` and write to,
    /// which they cannot do with the counter.
    pub(crate) fn doorbell(&mut self) -> io::Result<BorrowedFd<'_>> {
        if self.doorbell.is_none() {
            let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
            let (read, write) = rustix::pipe::pipe_with(flags)?;
            let (read, write) = (to_keep(read)?, to_keep(write)?);
            self.add(read.as_fd(), RUNG)?;
            self.doorbell = Some((read, write));
        }
        let (_, write) = self.doorbell.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(write.as_fd())
    }

    /// The descriptors that only the master needs.
    pub(crate) fn private(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let doorbell = self.doorbell.as_ref();
        let all = [
            Some(&self.epoll),
            Some(&self.timer),
            doorbell.map(|(read, _)| read),
            doorbell.map(|(_, write)| write),
        ];
        all.into_iter().flatten().map(AsFd::as_fd)
    }

    /// Watches a descriptor for being readable.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, EventFlags::IN)?)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // Fails only for a descriptor that is not watched.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Sets the timer, which then fires once.
    pub(crate) fn set_timer(&self, after: Duration) -> io::Result<()> {
        debug_assert!(!after.is_zero(), "this would stop it");
        let at = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(after),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &at)?;
        Ok(())
    }

    /// Sleeps until there are events, at most `limit` (`None`: without limit), and calls `f` with
    /// the token of each, at most [`AT_ONCE`].
    pub(crate) fn wait(&self, limit: Option<Duration>, mut f: impl FnMut(u64)) -> io::Result<()> {
        let mut events = [MaybeUninit::<Event>::uninit(); AT_ONCE];
        let limit = limit.map(timespec);
        let (ready, _) = match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            let token = event.data.u64();
            let source = match token {
                WOKEN => Some(&*self.counter),
                FIRED => Some(&self.timer),
                RUNG => self.doorbell.as_ref().map(|(read, _)| read),
                _ => None,
            };
            if let Some(source) = source {
                // Emptied before it is handled: what is written later comes again, and so does what
                // is left in a pipe.
                let _ = rustix::io::read(source, &mut [0; 128]);
            }
            f(token);
        }
        Ok(())
    }
}

impl AsFd for Watch {
    /// Readable while there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A descriptor of the process `pid`, which is a child that has not been reaped, or a living
/// process; readable once the process has ended.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(rustix::io::Errno::SRCH)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok(to_keep(pidfd)?)
}

/// Waits until a process has ended, at most `limit`.
pub(crate) fn wait_ended(pidfd: BorrowedFd<'_>, limit: Duration) {
    wait_for(pidfd, PollFlags::IN, limit);
}

/// Waits for one of the events, at most `limit`; returns those that there are, and errors.
pub(crate) fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, limit: Duration) -> PollFlags {
    let start = Instant::now();
    let mut polled = [PollFd::from_borrowed_fd(fd, events)];
    loop {
        let left = timespec(limit.saturating_sub(start.elapsed()));
        // A signal ends a wait; the next one takes what time is left.
        if poll(&mut polled, Some(&left)) != Err(rustix::io::Errno::INTR) {
            return polled[0].revents();
        }
    }
}

/// Sends SIGKILL; false if it was not sent: the process has been reaped or has changed its
/// credentials, or a system-call filter refuses this call.
pub(crate) fn kill(pidfd: BorrowedFd<'_>) -> bool {
    rustix::process::pidfd_send_signal(pidfd, Signal::KILL).is_ok()
}
