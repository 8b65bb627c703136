//! What the engine must accept, and what it must catch: operations and recoveries of the bank.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::super::engine::{Case, Crash, Fork, Suite, progress};
use super::{
    ACCOUNT_COUNT, AMOUNT, BLOCK, BLOCKS, Bank, LIFE, LOCK, OPENING, Order, SEALED, TIME, by_child,
};

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

/// Whether somebody traces this process.
fn is_traced() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("what this process is");
    !status.contains("TracerPid:\t0\n")
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
            .operation(|bank| {
                by_child(|| bank.transfer(Order::Right, 3, 7));
                progress(1);
            })
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
        bank_case("recovery by a thread", Order::Right).recover(|bank| {
            let begin = AtomicBool::new(false);
            std::thread::scope(|threads| {
                let thread = threads.spawn(|| {
                    while !begin.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                    bank.recover(false)
                });
                // Far from all that may write to the arena, as it seems.
                (0..100).for_each(|_| std::hint::spin_loop());
                begin.store(true, Ordering::Relaxed);
                while !thread.is_finished() {
                    std::hint::spin_loop();
                }
                thread.join().expect("it ends")
            })
        }),
    );
    suite.run(
        bank_case("recovery by a child", Order::Right).recover(|bank| {
            by_child(|| assert_eq!(bank.recover(false), Ok(())));
            Ok(())
        }),
    );
    suite.run(
        bank_case("recovery with a write by the kernel", Order::Right).recover(|bank| {
            let place = bank.word(TIME).as_ptr();
            // SAFETY: the word and the one behind it are for that, and the arena may be written to.
            let told =
                unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, place) };
            assert_eq!(told, 0);
            bank.recover(false)
        }),
    );
    suite.run(
        bank_case("broken: recovery loops when it is followed", Order::Right)
            .limit(Duration::from_millis(100))
            .recover(|bank| {
                let is_followed = is_traced();
                while std::hint::black_box(is_followed) {
                    std::hint::spin_loop();
                }
                bank.recover(false)
            })
            .expect_failure(&["order 2", "loops without changing anything"]),
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
