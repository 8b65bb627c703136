//! The test of the test: a toy pool, operations on it that keep its promises, and some that break one each.
//!
//! The pool is a bank of accounts under a lock with a write-ahead record. Every word is an atomic at a fixed offset:
//!
//! ```text
//! 0x0040  life     robust futex of the one attached process: its tid, OWNER_DIED after its death
//! 0x0080  lock     tid of the holder
//! 0x00c0  sealed   1 if the record below is to be undone
//! 0x00c8  record   from, its old balance, to, its old balance
//! 0x0100  blocks   how many blocks have been appended
//! 0x1000  accounts 64 balances; their sum never changes
//! 0x10000 filler   so that images have a realistic size
//! end     blocks   appended, each of equal bytes and BLOCK long, behind the end of the first file
//! ```
//!
//! Undoing: while the record is sealed, recovery puts the old balances back, unseals, unlocks.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};
use std::time::Duration;

use super::engine::{Arena, Case, Crash, Fork, Suite, Victim, progress};

const BASE: usize = 0x2100_0000_0000;
const MAPPED: usize = 1 << 40;
const FILE: usize = 1 << 20;
const FILLER: std::ops::Range<usize> = 0x1_0000..0x4_0000;

const LIFE: usize = 0x40;
const LOCK: usize = 0x80;
const SEALED: usize = 0xc0;
const RECORD: usize = 0xc8;
const BLOCKS: usize = 0x100;
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

    /// Forks a child that makes the transfer, and waits for it.
    fn transfer_by_child(&self) {
        // SAFETY: one thread; the child only uses the bank and exits.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            self.transfer(Order::Right, 3, 7);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: a null status is allowed.
        assert_eq!(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) }, pid);
        progress(1);
    }
}

fn tid() -> u32 {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() as u32 }
}

/// A transfer happened or did not, and did if it was acknowledged.
fn transferred_or_not(bank: &mut Bank, crash: &Crash) -> Result<(), String> {
    bank.check()?;
    let done = match bank.account(3).load(Ordering::Relaxed) {
        OPENING => false,
        balance if balance == OPENING - AMOUNT => true,
        other => return Err(format!("balance {other}")),
    };
    let acknowledged = crash.progress > 0 || crash.finished;
    if acknowledged && !done {
        Err("an acknowledged transfer is gone".into())
    } else {
        Ok(())
    }
}

fn appended_or_not(bank: &mut Bank, crash: &Crash) -> Result<(), String> {
    bank.check()?;
    let count = bank.word(BLOCKS).load(Ordering::Relaxed);
    let least = if crash.finished { 2 } else { crash.progress };
    if count < least {
        Err("an acknowledged block is gone".into())
    } else {
        Ok(())
    }
}

fn bank_case(name: &str, order: Order) -> Case<Bank> {
    Case::new(format!("engine/{name}"), Bank::create)
        .attach(|bank| bank.attach(true))
        .operation(move |bank| bank.transfer(order, 3, 7))
        .bury(|bank, victim| bank.bury(victim))
        .survivor(|bank| bank.survivor = true)
        .recover(|bank| bank.recover(false))
        .verify(transferred_or_not)
}

/// A case in which two processes count, and each time counts.
fn count_case(name: &str, count: fn(&AtomicU64)) -> Case<Bank> {
    let operation = move |bank: &mut Bank| {
        count(bank.account(9));
        progress(1);
    };
    bank_case(name, Order::Right)
        .operation(operation)
        .overtaken_by(operation)
        .verify(|bank, crash| {
            let more = bank.account(9).load(Ordering::Relaxed) - OPENING;
            let least = crash.progress + crash.overtaken.map_or(0, |how| how.mark);
            let may = least..=least + u64::from(crash.progress == 0);
            if may.contains(&more) {
                Ok(())
            } else {
                Err(format!("counted {more}, not {may:?}"))
            }
        })
        .without_second_order()
        .without_real_kills()
        .at_least(4)
}

/// A case whose overtaker sleeps until nobody has the lock, or who has it `is_gone`.
fn awaited_case(name: &str, is_gone: fn(&Bank) -> bool) -> Case<Bank> {
    bank_case(name, Order::Right)
        .limit(Duration::from_millis(500))
        .overtaken_by(move |bank| {
            let lock = bank.half(LOCK);
            while let owner @ 1.. = lock.load(Ordering::Relaxed)
                && !is_gone(bank)
            {
                let tick = libc::timespec {
                    tv_sec: 0,
                    tv_nsec: 5_000_000,
                };
                // SAFETY: the word is there, and the time is valid.
                unsafe { libc::syscall(libc::SYS_futex, lock, libc::FUTEX_WAIT, owner, &tick) };
            }
        })
        .may_wait()
        .unhurried()
        .without_second_order()
        .without_real_kills()
}

fn append_case(name: &str) -> Case<Bank> {
    bank_case(name, Order::Right)
        .operation(|bank| {
            bank.append(false);
            bank.append(false);
        })
        .verify(appended_or_not)
        .without_second_order()
}

/// What the engine must find right, and what it must catch.
pub fn cases(suite: &mut Suite) {
    let quick = suite.run(bank_case("transfer", Order::Right).unhurried());
    let slow = suite.run(
        bank_case("transfer, cross-checked", Order::Right)
            .unhurried()
            .cross_checked(),
    );
    let equal = quick
        .zip(slow)
        .map(|(quick, slow)| quick.points == slow.points && quick.second == slow.second);
    suite.check("engine/a transfer has as many points either way", equal);

    let quick = suite.run(append_case("append"));
    let slow = suite.run(append_case("append, cross-checked").cross_checked());
    let equal = quick
        .zip(slow)
        .map(|(quick, slow)| quick.points == slow.points);
    suite.check("engine/an append has as many points either way", equal);
    let bytewise = quick.map(|outcome| outcome.points as usize > BLOCK && outcome.failures == 0);
    suite.check("engine/a string instruction is seen byte by byte", bytewise);

    suite.run(
        bank_case("a child's transfer is seen", Order::Right)
            .fork(Fork::Bare)
            .operation(|bank| bank.transfer_by_child())
            .verify(|bank, crash| {
                if crash.progress > 0 {
                    transferred_or_not(bank, crash)
                } else {
                    Ok(())
                }
            })
            .recover(|_| Ok(()))
            .without_second_order()
            .without_real_kills()
            .at_least(3),
    );

    suite.run(count_case("overtaken", |account| {
        account.fetch_add(1, Ordering::Relaxed);
    }));
    suite.run(
        count_case("broken: overtaken between load and store", |account| {
            // The compiler makes one instruction of both if it can.
            let old = std::hint::black_box(account.load(Ordering::Relaxed));
            account.store(old + 1, Ordering::Relaxed);
        })
        .unhurried()
        .expect_failure(&["overtaken", "counted 1, not 2..=2"]),
    );
    let waited = suite.run(awaited_case("overtaken by who waits", |bank| {
        bank.half(LIFE).load(Ordering::Relaxed) & libc::FUTEX_OWNER_DIED != 0
    }));
    let waited = waited.map(|outcome| outcome.waited > 0);
    suite.check("engine/who waits is seen to wait", waited);
    suite.run(
        awaited_case("broken: the dead are waited for", |_| false)
            .expect_failure(&["real kill at", "the overtaker is held up"]),
    );
    suite.run(
        bank_case("broken: held up by who is stopped", Order::Right)
            .limit(Duration::from_millis(200))
            .overtaken_by(|bank| {
                while bank.half(LOCK).load(Ordering::Relaxed) != 0 {
                    std::thread::yield_now();
                }
            })
            .expect_failure(&["the overtaker is held up"]),
    );
    suite.run(
        bank_case("broken: sealed late", Order::SealLate)
            .expect_failure(&["order 1", "the sum is"]),
    );
    suite.run(
        bank_case("broken: acknowledged early", Order::AcknowledgeEarly).expect_failure(&[
            "order 1",
            "progress 1",
            "an acknowledged transfer is gone",
        ]),
    );
    suite.run(
        bank_case("broken: published early", Order::Right)
            .operation(|bank| bank.append(true))
            .verify(|bank, _| bank.check())
            .expect_failure(&["order 1", "block 0 is torn"]),
    );
    suite.run(
        bank_case("broken: recovery forgets too soon", Order::Right)
            .recover(|bank| bank.recover(true))
            .expect_failure(&["order 2", "the sum is"]),
    );
    suite.run(
        bank_case("broken: the kernel marks no death", Order::Right)
            .attach(|bank| bank.attach(false))
            .expect_failure(&["real kill", "not marked dead"]),
    );
    suite.run(
        bank_case("broken: recovery never ends", Order::Right)
            .limit(Duration::from_millis(200))
            .recover(|bank| {
                while bank.word(SEALED).load(Ordering::Relaxed) == 1 {
                    std::thread::yield_now();
                }
                bank.recover(false)
            })
            .expect_failure(&["order 1", "the survivor hangs"]),
    );
    suite.run(
        bank_case("broken: recovery panics", Order::Right)
            .recover(|bank| {
                assert_eq!(bank.word(SEALED).load(Ordering::Relaxed), 0, "sealed");
                bank.recover(false)
            })
            .expect_failure(&["order 1", "panic", "sealed"]),
    );
    suite.run(
        bank_case("broken: recovery crashes", Order::Right)
            .recover(|bank| {
                if bank.word(SEALED).load(Ordering::Relaxed) == 1 {
                    // SAFETY: none. Page 0 is never mapped, so this is a clean SIGSEGV, and a survivor that dies of it.
                    unsafe { ptr::null::<u8>().wrapping_add(8).read_volatile() };
                }
                bank.recover(false)
            })
            .expect_failure(&["order 1", "signal 11"]),
    );
    suite.run(
        bank_case("broken: the operation panics", Order::Right)
            .operation(|bank| bank.transfer(Order::Right, 3, ACCOUNT_COUNT))
            .expect_failure(&["the victim ended before its time: panic"]),
    );
    suite.run(
        bank_case("broken: the operation does nothing", Order::Right)
            .operation(|bank| assert_eq!(bank.check(), Ok(())))
            .verify(|bank, _| bank.check())
            .expect_failure(&["changes nothing"]),
    );
    suite.run(
        bank_case("broken: the operation loops", Order::Right)
            .limit(Duration::from_millis(100))
            .operation(|bank| {
                while bank.half(LOCK).load(Ordering::Relaxed) == 0 {
                    std::hint::spin_loop();
                }
            })
            .expect_failure(&["loops without changing anything"]),
    );
    suite.run(
        bank_case("broken: the operation waits for nobody", Order::Right)
            .limit(Duration::from_millis(200))
            .operation(|_| {
                // SAFETY: no preconditions.
                unsafe { libc::pause() };
            })
            .expect_failure(&["the victim hangs"]),
    );
}
