//! The test of the test: a toy pool, operations on it that keep its promises, and some that each break one.
//!
//! The pool is a bank of accounts under a lock with a write-ahead record. Every word is an atomic at a fixed offset:
//!
//! ```text
//! 0x0040  life     robust futex of the one attached process: its tid, OWNER_DIED after its death
//! 0x0080  lock     tid of the holder
//! 0x00c0  sealed   1 if the record below is to be undone
//! 0x00c8  record   from, its old balance, to, its old balance
//! 0x0100  blocks   how many blocks have been appended
//! 0x0140  time     two words that the kernel writes
//! 0x1000  accounts 64 balances; their sum never changes
//! 0x10000 filler   so that images have a realistic size
//! end     blocks   appended, each of equal bytes and BLOCK long, behind the end of the first file
//! ```
//!
//! Undoing: while the record is sealed, recovery puts the old balances back, unseals, unlocks.

mod cases;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use super::engine::{Arena, Victim, progress};

pub use cases::cases;

const BASE: usize = 0x2100_0000_0000;
const MAPPED: usize = 1 << 40;
const FILE: usize = 1 << 20;
const FILLER: std::ops::Range<usize> = 0x1_0000..0x4_0000;

const LIFE: usize = 0x40;
const LOCK: usize = 0x80;
const SEALED: usize = 0xc0;
const RECORD: usize = 0xc8;
const BLOCKS: usize = 0x100;
const TIME: usize = 0x140;
const ACCOUNTS: usize = 0x1000;
const ACCOUNT_COUNT: usize = 64;
const BLOCK: usize = 600;
const OPENING: u64 = 1000;
const AMOUNT: u64 = 300;

struct Bank {
    file: OwnedFd,
    /// Whether this process has been made a survivor.
    survivor: bool,
}

impl Arena for Bank {
    fn base(&self) -> usize {
        BASE
    }
    fn mapped_len(&self) -> usize {
        MAPPED
    }
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// In which order a transfer does its steps.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Right,
    /// Seals the record after the first overwrite.
    SealLate,
    /// Says that it is done before it is.
    AcknowledgeEarly,
}

impl Bank {
    fn create() -> Bank {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"toy".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just opened, and owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: reads no memory.
        assert_eq!(unsafe { libc::ftruncate(fd, FILE as i64) }, 0);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        // SAFETY: NOREPLACE, so nothing that is mapped is disturbed.
        let at = unsafe { libc::mmap(BASE as *mut _, MAPPED, protection, flags, fd, 0) };
        assert_eq!(at as usize, BASE);
        let bank = Bank {
            file,
            survivor: false,
        };
        for account in 0..ACCOUNT_COUNT {
            bank.account(account).store(OPENING, Ordering::Relaxed);
        }
        for offset in FILLER.step_by(8) {
            bank.word(offset).store(offset as u64, Ordering::Relaxed);
        }
        bank
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset < FILE && offset.is_multiple_of(8));
        // SAFETY: aligned and within the file, which nothing shortens; shared words are only accessed as atomics.
        unsafe { &*((BASE + offset) as *const AtomicU64) }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset < FILE && offset.is_multiple_of(4));
        // SAFETY: as in `word`; LIFE and LOCK are used as half words only.
        unsafe { &*((BASE + offset) as *const AtomicU32) }
    }

    fn account(&self, index: usize) -> &AtomicU64 {
        assert!(index < ACCOUNT_COUNT);
        self.word(ACCOUNTS + 8 * index)
    }

    fn record(&self, field: usize) -> &AtomicU64 {
        self.word(RECORD + 8 * field)
    }

    /// Makes this process the attached one: its death is to be marked in the life word.
    fn attach(&self, robust: bool) {
        #[repr(C)]
        struct Head {
            next: *const Head,
            futex_offset: isize,
            pending: usize,
        }
        self.half(LIFE).store(tid(), Ordering::Relaxed);
        if robust {
            let head = Box::leak(Box::new(Head {
                next: ptr::null(),
                futex_offset: 0,
                pending: BASE + LIFE,
            }));
            head.next = head;
            // SAFETY: a robust list that is empty but for the pending word; it is leaked, so it is there at the end.
            let set = unsafe {
                libc::syscall(
                    libc::SYS_set_robust_list,
                    &raw const *head,
                    size_of::<Head>(),
                )
            };
            assert_eq!(set, 0);
        }
    }

    fn bury(&self, victim: &Victim) {
        let life = self.half(LIFE);
        if life.load(Ordering::Relaxed) & libc::FUTEX_TID_MASK == victim.pid as u32 {
            life.fetch_or(libc::FUTEX_OWNER_DIED, Ordering::Relaxed);
        }
    }

    fn lock(&self) {
        let taken =
            self.half(LOCK)
                .compare_exchange(0, tid(), Ordering::Acquire, Ordering::Relaxed);
        assert_eq!(taken, Ok(0), "nobody else wants it");
    }

    fn unlock(&self) {
        self.half(LOCK).store(0, Ordering::Release);
    }

    fn transfer(&self, order: Order, from: usize, to: usize) {
        self.lock();
        let (from_account, to_account) = (self.account(from), self.account(to));
        let (old_from, old_to) = (
            from_account.load(Ordering::Relaxed),
            to_account.load(Ordering::Relaxed),
        );
        for (field, value) in [from as u64, old_from, to as u64, old_to]
            .into_iter()
            .enumerate()
        {
            self.record(field).store(value, Ordering::Relaxed);
        }
        if order == Order::SealLate {
            from_account.store(old_from - AMOUNT, Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        self.word(SEALED).store(1, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        from_account.store(old_from - AMOUNT, Ordering::Release);
        if order == Order::AcknowledgeEarly {
            progress(1);
        }
        to_account.store(old_to + AMOUNT, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        self.word(SEALED).store(0, Ordering::Release);
        self.unlock();
        progress(1);
    }

    /// Undoes what a dead holder of the lock has left. `unseal_first` is the mistake of forgetting the record too soon.
    fn recover(&self, unseal_first: bool) -> Result<(), String> {
        assert!(
            self.survivor,
            "recovery before the process was made a survivor"
        );
        if self.half(LOCK).load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        if self.half(LIFE).load(Ordering::Relaxed) & libc::FUTEX_OWNER_DIED == 0 {
            return Err("the holder of the lock is not marked dead".into());
        }
        if self.word(SEALED).load(Ordering::Acquire) == 1 {
            if unseal_first {
                self.word(SEALED).store(0, Ordering::Release);
                compiler_fence(Ordering::SeqCst);
            }
            for field in [0, 2] {
                let account = self.record(field).load(Ordering::Relaxed) as usize;
                self.account(account).store(
                    self.record(field + 1).load(Ordering::Relaxed),
                    Ordering::Release,
                );
            }
            compiler_fence(Ordering::SeqCst);
            self.word(SEALED).store(0, Ordering::Release);
        }
        self.unlock();
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let sum: u64 = (0..ACCOUNT_COUNT)
            .map(|index| self.account(index).load(Ordering::Relaxed))
            .sum();
        if sum != OPENING * ACCOUNT_COUNT as u64 {
            return Err(format!("the sum is {sum}"));
        }
        if self.half(LOCK).load(Ordering::Relaxed) != 0 {
            return Err("still locked".into());
        }
        for block in 0..self.word(BLOCKS).load(Ordering::Acquire) as usize {
            let at = (BASE + FILE + block * BLOCK) as *const u8;
            for index in 0..BLOCK {
                // SAFETY: published blocks are within the file and never written again.
                if unsafe { at.add(index).read_volatile() } != block as u8 + 1 {
                    return Err(format!("block {block} is torn at {index}"));
                }
            }
        }
        Ok(())
    }

    /// Appends a block behind the file's end: grows the file, fills, publishes.
    fn append(&self, publish_first: bool) {
        let count = self.word(BLOCKS).load(Ordering::Relaxed) as usize;
        let start = FILE + count * BLOCK;
        // SAFETY: reads no memory.
        let done = unsafe { libc::fallocate(self.fd(), 0, start as i64, BLOCK as i64) };
        assert_eq!(done, 0);
        if publish_first {
            self.word(BLOCKS).store(count as u64 + 1, Ordering::Release);
        }
        let source = vec![count as u8 + 1; BLOCK];
        let at = (BASE + start) as *mut u8;
        // SAFETY: the block is within the file and not yet anyone's; its first half is copied here, the rest below.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), at, BLOCK / 2) };
        // SAFETY: as above. A string instruction, so that the engine meets one.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") BLOCK / 2 => _,
                inout("rsi") source.as_ptr().add(BLOCK / 2) => _,
                inout("rdi") at.add(BLOCK / 2) => _,
                options(nostack, preserves_flags),
            );
        }
        self.word(BLOCKS).store(count as u64 + 1, Ordering::Release);
        progress(1);
    }
}

/// Forks a child that does `work`, and waits for it.
fn by_child(work: impl FnOnce()) {
    // SAFETY: one thread; the child only uses the bank and exits.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        work();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the status is a valid place.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0);
}

fn tid() -> u32 {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() as u32 }
}
