//! Heaps that several processes use, some of which are killed: the balances must add up.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use shmkit::process::{JoinError, scope};
use shmkit::{Gc, Heap, HeapError, ShmSafe, Trace};

use crate::common::{Random, TestPool, storm_time};
use crate::heaps::{Node, graph};
use crate::{allocated, assert_sound};

/// A bank: the balances of its accounts add up, and each account is sealed.
#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Bank {
    accounts: Option<Gc<[Gc<Account>]>>,
    transfers: u64,
}

#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Account {
    balance: i64,
    seal: u64,
    latest: Option<Gc<Transfer>>,
}

/// The latest transfer of an account, and those before, and the other side's.
#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Transfer {
    amount: i64,
    balance: i64,
    before: Option<Gc<Transfer>>,
    with: Gc<Account>,
}

const ACCOUNTS: usize = 16;

fn seal(balance: i64) -> u64 {
    (balance as u64 ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Bank {
    fn open(heap: &Heap<Bank>) {
        heap.try_modify(|tx| {
            let account = Account {
                balance: 1000,
                seal: seal(1000),
                latest: None,
            };
            let mut all = Vec::new();
            for _ in 0..ACCOUNTS {
                all.push(tx.alloc(account)?);
            }
            tx.root_mut()?.accounts = Some(tx.alloc_slice(&all)?);
            Ok::<_, HeapError>(())
        })
        .unwrap();
    }

    fn transfer(heap: &Heap<Bank>, random: &mut Random) -> Result<(), HeapError> {
        heap.try_modify(|tx| {
            let accounts = tx.get(tx.root().accounts.unwrap()).unwrap();
            let (from, to) = (random.below(ACCOUNTS), random.below(ACCOUNTS));
            let sides = [(accounts[from], -1), (accounts[to], 1)];
            let amount = random.below(100) as i64;
            tx.root_mut()?.transfers += 1;
            for ((account, sign), (with, _)) in [(sides[0], sides[1]), (sides[1], sides[0])] {
                let amount = sign * amount;
                let &Account {
                    balance, latest, ..
                } = tx.get(account).unwrap();
                let latest = tx.alloc(Transfer {
                    amount,
                    balance: balance + amount,
                    before: latest,
                    with,
                })?;
                *tx.get_mut(account)? = Account {
                    balance: balance + amount,
                    seal: seal(balance + amount),
                    latest: Some(latest),
                };
                // Three transfers back and no more: the rest is garbage.
                let second = tx.get(latest).unwrap().before;
                if let Some(second) = second
                    && let Some(third) = tx.get(second).unwrap().before
                {
                    tx.get_mut(third)?.before = None;
                }
            }
            Ok(())
        })
    }

    /// Everything adds up; the number of transfers, and of objects that are reached.
    fn check(heap: &Heap<Bank>) -> (u64, usize) {
        let view = heap.view().unwrap();
        let accounts = view.get(view.root().accounts.unwrap()).unwrap();
        let (mut sum, mut reached) = (0, 1 + ACCOUNTS);
        for &account in accounts {
            let account = view.get(account).unwrap();
            assert_eq!(account.seal, seal(account.balance), "{account:?}");
            sum += account.balance;
            let (mut next, mut balance) = (account.latest, account.balance);
            while let Some(transfer) = next {
                let transfer = view.get(transfer).expect("not collected");
                assert_eq!(transfer.balance, balance);
                assert!(accounts.contains(&transfer.with));
                balance -= transfer.amount;
                next = transfer.before;
                reached += 1;
            }
        }
        assert_eq!(sum, 1000 * ACCOUNTS as i64);
        (view.root().transfers, reached)
    }
}

pub fn transfers_by_many() {
    let pool = TestPool::with(|builder| builder.max_size(16 << 20));
    let before = allocated(*pool);
    let heap = pool.create(Heap::new(Bank {
        accounts: None,
        transfers: 0,
    }));
    let heap = heap.unwrap();
    Bank::open(&heap);
    scope(|s| {
        for worker in 0..3 {
            let heap = &heap;
            s.spawn(move || {
                let mut random = Random::new(worker);
                for n in 0..2000 {
                    Bank::transfer(heap, &mut random).unwrap();
                    if n % 100 == 0 {
                        Bank::check(heap);
                    }
                    if n % 500 == 0 {
                        heap.collect().unwrap();
                    }
                }
            })
            .unwrap();
        }
    });
    let (transfers, reached) = Bank::check(&heap);
    assert_eq!(transfers, 6000);
    assert_eq!(heap.collect().unwrap().live, reached);
    assert_sound(*pool);
    drop(heap);
    assert_eq!(allocated(*pool), before);
}

pub fn killed_modifiers_lose_nothing() {
    let pool = TestPool::with(|builder| builder.max_size(16 << 20));
    let before = allocated(*pool);
    let bank = Bank {
        accounts: None,
        transfers: 0,
    };
    let heap = pool.create(Heap::new(bank)).unwrap();
    let done = pool.create(AtomicU64::new(0)).unwrap();
    Bank::open(&heap);
    let (mut killed, mut round) = (0, 0);
    let time = storm_time(std::time::Duration::from_secs(2));
    let start = std::time::Instant::now();
    while start.elapsed() < time {
        round += 1;
        let mut random = Random::new(round);
        scope(|s| {
            let children: Vec<_> = (0..3)
                .map(|worker| {
                    let (heap, done) = (&heap, &done);
                    let work = move || {
                        let mut random = Random::new(round << 8 | worker);
                        for n in 0_u64.. {
                            Bank::transfer(heap, &mut random).unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                            if n % 64 == worker {
                                heap.collect().unwrap();
                            }
                        }
                    };
                    s.spawn(work).unwrap()
                })
                .collect();
            let start = done.load(Ordering::Relaxed);
            let some = random.below(200) as u64;
            while done.load(Ordering::Relaxed) - start < some {
                std::thread::yield_now();
            }
            for child in children {
                child.kill().unwrap();
                assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
                killed += 1;
                Bank::check(&heap);
            }
        });
        // Each of the dead may have been between its transfer and its count.
        let (transfers, reached) = Bank::check(&heap);
        let counted = done.load(Ordering::Relaxed);
        assert!((counted..=counted + killed).contains(&transfers));
        if round % 16 == 0 {
            assert_eq!(heap.collect().unwrap().live, reached);
            assert_sound(*pool);
        }
    }
    println!("{killed} killed");
    drop((heap, done));
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn a_killed_viewer_holds_up_nobody() {
    let pool = TestPool::new();
    let heap = graph(*pool);
    let viewing = pool.create(AtomicU32::new(0)).unwrap();
    scope(|s| {
        let views = || {
            let view = heap.view().unwrap();
            viewing.store(1, Ordering::Release);
            while view.root().is_none() {}
        };
        let child = s.spawn(views).unwrap();
        while viewing.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        // Others look at the same time.
        assert_eq!(*heap.view().unwrap().root(), None);
        child.kill().unwrap();
        let node = heap.modify(|tx| tx.alloc(Node::new(1)).unwrap()).unwrap();
        assert!(heap.view().unwrap().get(node).is_some());
        assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
    });
}
