//! Workers that share one or two hash maps.
//!
//! The parts of the search are in a queue, and are leased: the part of a worker that is killed
//! comes back, and is searched again. That does no harm, because a map holds each board only
//! once.
//!
//! The first worker starts the others, and searches as they do.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmkit::process::{Backoff, Entry, Restart, StartOptions, Worker};
use shmkit::{FoldHash, Handle, HashMap, PopError, Queue};

use crate::board::{parts, representative, search};
use crate::failure::Failure;

/// The solutions up to symmetry, those with the same last bits in one map.
pub type Solutions = HashMap<u64, u8, FoldHash>;

/// What all workers know.
#[derive(Clone, Serialize, Deserialize)]
pub struct Shared {
    pub size: u32,
    pub maps: Vec<Handle<Solutions>>,
    /// Numbers of parts.
    pub parts: Handle<Queue<u32>>,
}

/// The first worker.
pub static COUNT: Entry<(Shared, u32), Result<u64, Failure>> = Entry::new("count", count);
static SEARCH: Entry<Shared, Result<(), Failure>> = Entry::new("search", search_with_maps);

/// How workers are started: again when they are killed, for a long while.
pub fn options() -> StartOptions<'static> {
    let waits = Backoff::new(Duration::from_millis(1)).at_most(Duration::from_millis(20));
    StartOptions::new().restart(Restart::OnCrash(waits.times(1000)))
}

fn count(worker: &Worker, (shared, workers): (Shared, u32)) -> Result<u64, Failure> {
    // Started before there is anything to search, because they take a while to start.
    let others: Result<Vec<_>, _> = (1..workers)
        .map(|_| worker.start_with(options(), &SEARCH, &shared))
        .collect();
    let queue = shared.parts.open()?;
    for part in 0..parts(shared.size).len() as u32 {
        queue.push(part)?;
    }
    queue.close();
    search_with_maps(worker, shared.clone())?;
    for searcher in others? {
        searcher.join()??;
    }
    let mut solutions = 0;
    for map in &shared.maps {
        solutions += map.open()?.len() as u64;
    }
    Ok(solutions)
}

fn search_with_maps(_: &Worker, shared: Shared) -> Result<(), Failure> {
    let maps = shared.maps.iter().map(|map| map.open());
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let (queue, parts) = (shared.parts.open()?, parts(shared.size));
    loop {
        let part = match queue.lease() {
            Ok(part) => part,
            Err(PopError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        search(shared.size, parts[*part as usize], |board| {
            let board = representative(shared.size, board);
            let map = &maps[board as usize % maps.len()];
            if !map.contains_key(&board) {
                map.insert(&board, 1)?;
            }
            Ok::<_, Failure>(())
        })?;
        part.ack();
    }
}
