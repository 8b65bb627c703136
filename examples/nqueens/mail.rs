//! Workers that send what they find to one or two collectors, each with a set of its own. The first
//! worker is one of the collectors.
//!
//! A batch says whether it is the last of its part of the search, so a collector knows which parts it
//! has completely. A searcher that is killed in the middle of a part leaves the part to others, which
//! send all of it again: that does not change a set. A collector that is killed loses its set. The next
//! one therefore begins a new *round*, in which it asks for all parts again; the boards of batches that
//! were begun for an earlier round count like any others, but those batches finish no part.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmkit::process::{Entry, JoinHandle, Worker};
use shmkit::{Handle, Mailbox, PopError, PushRefusal, Queue, RecvError, ShmSafe};

use crate::board::{Boards, parts, representative, search};
use crate::failure::Failure;
use crate::maps::options;

/// The number of boards in a batch: enough to make the cost per board of sending them, and of waking
/// the collector, small.
const BATCH: usize = 510;

/// What is sent to a collector.
#[derive(Clone, Copy, ShmSafe)]
pub struct Batch {
    round: u32,
    part: u32,
    /// 1 if the part is finished with this batch.
    last: u32,
    len: u32,
    boards: [u64; BATCH],
}

/// Where a collector gets its mail.
#[derive(ShmSafe)]
pub struct Collector {
    mail: Mailbox<Batch>,
    /// How many collectors were killed here.
    round: AtomicU32,
}

impl Collector {
    pub const fn new() -> Collector {
        Collector {
            mail: Mailbox::new(16),
            round: AtomicU32::new(0),
        }
    }
}

/// What all workers share.
#[derive(Clone, Serialize, Deserialize)]
pub struct Shared {
    pub size: u32,
    pub collectors: Vec<Handle<Collector>>,
    /// Numbers of parts.
    pub parts: Handle<Queue<u32>>,
}

/// The first worker.
pub static COUNT: Entry<(Shared, u32), Result<u64, Failure>> = Entry::new("count", count);
static SEARCH: Entry<Shared, Result<(), Failure>> = Entry::new("search", search_and_send);
static COLLECT: Entry<(Shared, usize), Result<u64, Failure>> = Entry::new("collect", collect);

fn count(worker: &Worker, (shared, workers): (Shared, u32)) -> Result<u64, Failure> {
    let queue = shared.parts.open()?;
    let all = 0..parts(shared.size).len() as u32;
    all.clone().try_for_each(|part| queue.push(part))?;
    let mut others = Others::default();
    // Should one of these fail, the end of the run ends the others.
    for number in 1..shared.collectors.len() {
        let started = worker.start_with(options(), &COLLECT, &(shared.clone(), number))?;
        others.left.push((number, started));
    }
    for _ in 0..workers {
        let started = worker.start_with(options(), &SEARCH, &shared)?;
        others.searchers.push(started);
    }
    let own = gather(&shared, 0, 0, || others.look(&shared, Duration::ZERO))?;
    shared.collectors[0].open()?.mail.close();
    loop {
        others.look(&shared, Duration::from_millis(2))?;
        if others.left.is_empty() {
            break;
        }
    }
    // The boards that they still search for are known already.
    queue.close();
    queue.clear();
    others.searchers.into_iter().for_each(JoinHandle::detach);
    Ok(own + others.solutions)
}

/// The workers besides the first.
#[derive(Default)]
struct Others {
    searchers: Vec<JoinHandle<Result<(), Failure>>>,
    /// The collectors among them that have not returned.
    left: Vec<(usize, JoinHandle<Result<u64, Failure>>)>,
    solutions: u64,
}

impl Others {
    /// Adds up what the collectors that have returned have found. Their mail is refused from now on,
    /// because a searcher would wait for room in it. A searcher that has ended by now has failed, and
    /// its part of the search may be lost: then no collector would ever have all parts.
    fn look(&mut self, shared: &Shared, limit: Duration) -> Result<(), Failure> {
        for searcher in std::mem::take(&mut self.searchers) {
            match searcher.try_join() {
                Ok(ended) => ended??,
                Err(searches) => self.searchers.push(searches),
            }
        }
        for (number, collector) in std::mem::take(&mut self.left) {
            if collector.wait_timeout(limit)? {
                self.solutions += collector.join()??;
                shared.collectors[number].open()?.mail.close();
            } else {
                self.left.push((number, collector));
            }
        }
        Ok(())
    }
}

fn collect(worker: &Worker, (shared, number): (Shared, usize)) -> Result<u64, Failure> {
    let here = shared.collectors[number].open()?;
    if worker.restarts() > 0 {
        here.round.fetch_add(1, Ordering::AcqRel);
        let queue = shared.parts.open()?;
        let all = 0..parts(shared.size).len() as u32;
        all.clone().try_for_each(|part| queue.push(part))?;
    }
    let round = here.round.load(Ordering::Acquire);
    gather(&shared, number, round, || Ok(()))
}

/// Receives until all parts are finished, and returns how many boards there were. Calls `look_up` when
/// there is no mail.
fn gather(
    shared: &Shared,
    number: usize,
    round: u32,
    mut look_up: impl FnMut() -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let here = shared.collectors[number].open()?;
    let mut left = parts(shared.size).len();
    let (mut boards, mut finished) = (Boards::default(), vec![false; left]);
    let receiver = here.mail.receiver()?;
    while left > 0 {
        let batch = match receiver.recv_timeout(Duration::from_millis(2)) {
            Err(RecvError::TimedOut) => {
                look_up()?;
                continue;
            }
            batch => batch?,
        };
        boards.extend(&batch.boards[..batch.len as usize]);
        let finished = &mut finished[batch.part as usize];
        if batch.last == 1 && batch.round == round && !*finished {
            *finished = true;
            left -= 1;
        }
    }
    Ok(boards.len() as u64)
}

fn search_and_send(_: &Worker, shared: Shared) -> Result<(), Failure> {
    let collectors = shared.collectors.iter().map(|collector| collector.open());
    let collectors = collectors.collect::<Result<Vec<_>, _>>()?;
    let (queue, parts) = (shared.parts.open()?, parts(shared.size));
    loop {
        let part = match queue.lease() {
            Ok(part) => part,
            Err(PopError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut batches: Vec<Batch> = collectors
            .iter()
            .map(|collector| Batch {
                round: collector.round.load(Ordering::Acquire),
                part: *part,
                last: 0,
                len: 0,
                boards: [0; BATCH],
            })
            .collect();
        search(shared.size, parts[*part as usize], |board| {
            let board = representative(shared.size, board);
            let number = board as usize % collectors.len();
            let batch = &mut batches[number];
            if batch.len as usize == BATCH {
                send(&collectors[number], *batch)?;
                batch.len = 0;
            }
            batch.boards[batch.len as usize] = board;
            batch.len += 1;
            Ok::<_, Failure>(())
        })?;
        for (collector, batch) in collectors.iter().zip(batches) {
            send(collector, Batch { last: 1, ..batch })?;
        }
        part.ack();
    }
}

/// Sends a batch. A collector that has all it needs refuses it, which is not an error.
fn send(to: &Collector, batch: Batch) -> Result<(), Failure> {
    match to.mail.send(batch) {
        Err(refused) if refused.cause != PushRefusal::Closed => Err(refused.cause.into()),
        _ => Ok(()),
    }
}
