//! A few rates of this machine, measured in a pool of their own.

use std::alloc::Layout;
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;
use shmkit::sync::Mutex;
use shmkit::{HashMap, Pool, Queue, SharedCell};

use crate::failure::{Code, Failure, Outcome, line};
use crate::report::Column::{Number, Text};
use crate::report::{row, table};

#[derive(Serialize)]
pub struct Rate {
    name: &'static str,
    per_second: f64,
    nanoseconds: f64,
}

fn refused(error: impl std::error::Error) -> Failure {
    Failure::new(Code::System, line(&error))
}

/// Repeats `f` for that time; returns the rate.
fn rate(name: &'static str, limit: Duration, mut f: impl FnMut(u64)) -> Rate {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < limit {
        for _ in 0..256 {
            f(count);
            count += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Rate {
        name,
        per_second: count as f64 / seconds,
        nanoseconds: seconds * 1e9 / count as f64,
    }
}

pub fn run(limit: Duration) -> Outcome<Vec<Rate>> {
    let pool = Pool::builder()
        .max_size(256 << 20)
        .create()
        .map_err(refused)?;
    let mut rates = Vec::new();
    for (name, size) in [
        ("allocate and free 64 B", 64),
        ("allocate and free 4 KiB", 4096),
        ("allocate and free 64 KiB", 65536),
    ] {
        let layout = Layout::from_size_align(size, 16).map_err(refused)?;
        let mut outcome = Ok(());
        rates.push(rate(name, limit, |_| match pool.allocate(layout) {
            Ok(block) => {
                // SAFETY: allocated just now, and nobody else knows of it.
                let freed = unsafe { pool.deallocate(black_box(block).cast()) };
                outcome = std::mem::replace(&mut outcome, Ok(())).and(freed.map_err(refused));
            }
            Err(error) => outcome = Err(refused(error)),
        }));
        outcome?;
    }
    let mutex = pool.create(Mutex::new(0_u64)).map_err(refused)?;
    rates.push(rate("Mutex: lock and unlock", limit, |_| {
        if let Ok(mut guard) = mutex.lock() {
            *guard += 1;
        }
    }));
    let cell = pool.create(SharedCell::<u64>::new()).map_err(refused)?;
    cell.set(1).map_err(refused)?;
    rates.push(rate("SharedCell: get", limit, |_| {
        black_box(cell.get());
    }));
    let queue = pool.create(Queue::<u64>::bounded(1024)).map_err(refused)?;
    rates.push(rate("Queue: push and pop", limit, |n| {
        let _ = queue.try_push(n);
        let _ = black_box(queue.try_pop());
    }));
    let map = pool.create(HashMap::<u64, u64>::new()).map_err(refused)?;
    const KEYS: u64 = 100_000;
    rates.push(rate("HashMap: insert (100,000 keys)", limit, |n| {
        let _ = map.insert(&(n % KEYS), n);
    }));
    rates.push(rate("HashMap: get", limit, |n| {
        black_box(map.get_copied(&(n % KEYS)));
    }));
    Ok(rates)
}

pub fn text(rates: &[Rate]) -> String {
    let mut rows = vec![row([&"WHAT", &"PER SECOND", &"NANOSECONDS"])];
    for rate in rates {
        rows.push(row([
            &rate.name,
            &format!("{:.0}", rate.per_second),
            &format!("{:.1}", rate.nanoseconds),
        ]));
    }
    table([Text, Number, Number], &rows)
}
