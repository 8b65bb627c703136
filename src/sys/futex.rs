//! Sleeping on words of shared memory.
//!
//! Contract: a wait returns for any reason whatever (a wake, a changed value, a signal, the time
//! limit); callers re-read the words and decide. No caller relies on being woken: every sleep has a
//! time limit, so a wake that died with its sender costs time and nothing else.

use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec, Wait, WaitFlags, WaitPtr, WaitvFlags};

use crate::primitive::AtomicU32;

fn timespec(limit: Duration) -> Timespec {
    #[cfg(test)]
    let limit = if only_wakes::is_demanded() && limit > Duration::from_millis(1) {
        Duration::from_secs(3600)
    } else {
        limit
    };
    Timespec {
        tv_sec: limit.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: limit.subsec_nanos().into(),
    }
}

/// Sleeps while `word` holds `value`, at most `limit`. Works between processes.
#[cold]
pub(crate) fn wait(word: &AtomicU32, value: u32, limit: Duration) {
    // Every outcome means "look again", so outcomes are not distinguished.
    let _ = futex::wait(word, Flags::empty(), value, Some(&timespec(limit)));
}

/// Sleeps while both words hold their values, at most `limit`.
///
/// Falls back to sleeping on the first word, for a millisecond at most, on a kernel without
/// `futex_waitv` (before 5.16).
#[cold]
pub(crate) fn wait_two(a: (&AtomicU32, u32), b: (&AtomicU32, u32), limit: Duration) {
    wait_any(&[a, b], limit);
}

/// The most words on which [`wait_any`] can sleep.
const WORDS: usize = 128;

/// The same for any number of words, of which the first [`WORDS`] count. With no words, it sleeps for the time limit.
#[cold]
pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], limit: Duration) {
    let Some(&first) = words.first() else {
        std::thread::sleep(limit);
        return;
    };
    let entry = |&(word, value): &(&AtomicU32, u32)| {
        let mut wait = Wait::new();
        wait.val = value.into();
        wait.uaddr = WaitPtr::new(std::ptr::from_ref(word).cast_mut().cast());
        wait.flags = WaitFlags::SIZE_U32;
        wait
    };
    let mut entries = [const { Wait::new() }; WORDS];
    let count = words.len().min(WORDS);
    for (place, word) in entries.iter_mut().zip(words) {
        *place = entry(word);
    }
    // futex_waitv takes an absolute time.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let limit_of_all = timespec(limit);
    let mut deadline = Timespec {
        tv_sec: now.tv_sec.saturating_add(limit_of_all.tv_sec),
        tv_nsec: now.tv_nsec + limit_of_all.tv_nsec,
    };
    if deadline.tv_nsec >= 1_000_000_000 {
        deadline.tv_nsec -= 1_000_000_000;
        deadline.tv_sec = deadline.tv_sec.saturating_add(1);
    }
    let outcome = futex::waitv(
        &entries[..count],
        WaitvFlags::empty(),
        Some(&deadline),
        futex::ClockId::Monotonic,
    );
    // An old kernel does not have it, and some system-call filters refuse it with other errors.
    let has_slept = matches!(
        outcome,
        Ok(_) | Err(Errno::AGAIN | Errno::TIMEDOUT | Errno::INTR)
    );
    if !has_slept {
        wait(first.0, first.1, limit.min(Duration::from_millis(1)));
    }
}

/// Wakes up to `count` sleepers on `word`; returns how many there were.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    // Fails only for an address that is not mapped, which a reference cannot be.
    futex::wake(word, Flags::empty(), count.min(i32::MAX as u32)).unwrap_or(0)
}

/// Wakes every thread that sleeps on the word at `address`, which need no longer be a word: the
/// kernel looks the address up and reads nothing there.
pub(crate) fn wake_address(address: usize) {
    if address != 0 && address.is_multiple_of(4) {
        // SAFETY: FUTEX_WAKE does not access the memory; a bad address is an error, ignored here.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                address,
                libc::FUTEX_WAKE,
                i32::MAX,
                0usize,
                0usize,
                0,
            );
        }
    }
}

/// In tests of wakes: whether a thread sleeps on the word. It then can be requeued to the very word
/// that it sleeps on.
#[cfg(test)]
pub(crate) fn is_slept_on(word: &AtomicU32) -> bool {
    futex::requeue(word, Flags::empty(), 0, 1, word).unwrap() == 1
}

/// In tests of wakes: this thread's sleeps have no time limit, except the short ones of a thread
/// that looks again and again.
#[cfg(test)]
pub(crate) mod only_wakes {
    use std::cell::Cell;

    thread_local! {
        static DEMANDED: Cell<bool> = const { Cell::new(false) };
    }

    /// From here on, to the thread's end.
    pub(crate) fn demand() {
        DEMANDED.set(true);
    }

    pub(super) fn is_demanded() -> bool {
        DEMANDED.get()
    }
}
