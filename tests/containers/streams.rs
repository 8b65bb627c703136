//! Recorded histories of queues, mailboxes and buffers, see `histories`.
//!
//! What a killed process had leased comes back at some time, or has not come back yet. Operations that
//! were refused for lack of room have changed nothing, and are left out.

use shmkit::{Buffer, Lease, Mailbox, Queue, RangeError, RecvError, Shared};

use crate::common::linear::Event;
use crate::histories::{Histories, ROUNDS, STEPS, word};

type Events = Vec<Event<[u64; 3], u64>>;

const PUSH: u64 = 0;
const POP: u64 = 1;
const LEASE: u64 = 2;
const GIVE_BACK: u64 = 3;
const PEEK: u64 = 4;
const WAKE: u64 = 5;
/// Part of a receive that was killed: it may have seen a wake.
const SEE_WAKE: u64 = 6;

/// The answer of what changed nothing and tells nothing.
const REFUSED: u64 = 1 << 60;
/// The answer of who was woken.
const WOKEN: u64 = 2 << 60;

fn worker(value: u64) -> u64 {
    (value / 1000 - 1) / STEPS as u64
}

/// Elements with their places, and who has which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Model {
    pushed: u64,
    back: Vec<(u64, u64)>,
    queue: Vec<(u64, u64)>,
    held: Vec<(u64, (u64, u64))>,
    woken: bool,
}

impl Model {
    fn first(&self) -> Option<(u64, u64)> {
        self.back.first().or(self.queue.first()).copied()
    }

    fn take(&mut self) -> Option<(u64, u64)> {
        let from = if self.back.is_empty() {
            &mut self.queue
        } else {
            &mut self.back
        };
        (!from.is_empty()).then(|| from.remove(0))
    }
}

fn queue(state: &Model, op: &[u64; 3]) -> (Model, u64) {
    let mut next = state.clone();
    let me = worker(op[2]);
    let answer = match op[1] {
        PUSH => {
            next.queue.push((next.pushed, op[2]));
            next.pushed += 1;
            0
        }
        POP => word(next.take().map(|(_, value)| value)),
        PEEK => word(next.first().map(|(_, value)| value)),
        LEASE => {
            let taken = next.take();
            next.held.extend(taken.map(|element| (me, element)));
            word(taken.map(|(_, value)| value))
        }
        _ => {
            if let Some(at) = next.held.iter().position(|(holder, _)| *holder == me) {
                next.back.push(next.held.remove(at).1);
                next.back.sort_unstable();
            }
            0
        }
    };
    (next, answer)
}

/// The leases of the killed come back.
fn with_leases_of_the_killed(mut events: Events) -> Events {
    let ended = |lease: &Event<[u64; 3], u64>| {
        let same = |event: &Event<[u64; 3], u64>| {
            event.op[1] == GIVE_BACK
                && event.op[0] == lease.op[0]
                && worker(event.op[2]) == worker(lease.op[2])
                && event.call > lease.call
        };
        events.iter().any(same)
    };
    let open: Vec<_> = events
        .iter()
        .filter(|event| event.op[1] == LEASE && !ended(event))
        .map(|lease| Event {
            op: [lease.op[0], GIVE_BACK, lease.op[2]],
            call: lease.call,
            ret: None,
        })
        .collect();
    events.extend(open);
    events
}

fn without_refused(mut events: Events) -> Events {
    events.retain(|event| event.ret.is_none_or(|(_, answer)| answer != REFUSED));
    events
}

pub fn histories_of_queues() {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let queues: Shared<[Queue<u64>; ROUNDS]> = if histories.seed.is_multiple_of(3) {
            pool.create([const { Queue::unbounded() }; ROUNDS])
        } else {
            pool.create([const { Queue::bounded(4) }; ROUNDS])
        }
        .ok()
        .unwrap();
        let which = |held: &Option<Lease<'_, u64>>, last: bool, kind| match kind {
            _ if held.is_some() => GIVE_BACK,
            LEASE if last => POP,
            kind => kind,
        };
        let step = |held: &mut Option<Lease<'_, u64>>, round: usize, kind, value| {
            // SAFETY: the queues outlive the children, and so what they hold.
            let queue: &'static Queue<u64> = unsafe { &*std::ptr::from_ref(&queues[round]) };
            match kind {
                PUSH => queue.try_push(value).map_or(REFUSED, |()| 0),
                POP if value % 3 == 0 => word(queue.try_lease().ok().map(Lease::ack)),
                POP => word(queue.try_pop().ok()),
                PEEK => word(queue.peek()),
                LEASE => {
                    *held = queue.try_lease().ok();
                    word(held.as_deref().copied())
                }
                _ => {
                    *held = None;
                    0
                }
            }
        };
        let events = histories.record_with(&[PUSH, PUSH, POP, LEASE, PEEK], which, step);
        let events = with_leases_of_the_killed(without_refused(events));
        histories.check::<Model>(&events, queue);
        drop(queues);
    }
    histories.finish();
}

/// A receive takes a wake, or a message though there is a wake, as that may have come meanwhile: the
/// answer, if there is one, is a part of the operation.
fn mailbox(state: &Model, op: &[u64; 3]) -> (Model, u64) {
    const ILLEGAL: u64 = 3 << 60;
    let mut next = state.clone();
    let answer = match op[1] {
        PUSH => return queue(state, op),
        WAKE => {
            next.woken = true;
            0
        }
        SEE_WAKE => {
            next.woken = false;
            WOKEN
        }
        POP if op[2] == WOKEN => {
            next.woken = false;
            if state.woken { WOKEN } else { ILLEGAL }
        }
        _ => match next.take() {
            Some((_, value)) => word(Some(value)),
            None if state.woken => ILLEGAL,
            None => 0,
        },
    };
    (next, answer)
}

fn with_answers(events: Events) -> Events {
    let mut all = Vec::new();
    for mut event in events {
        if event.op[1] == POP {
            match event.ret {
                Some((_, WOKEN)) => event.op[2] = WOKEN,
                Some(_) => {}
                None => all.push(Event {
                    op: [event.op[0], SEE_WAKE, event.op[2]],
                    ..event.clone()
                }),
            }
        }
        all.push(event);
    }
    all
}

pub fn histories_of_mailboxes() {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let mailboxes = pool
            .create([const { Mailbox::<u64>::new(4) }; ROUNDS])
            .ok()
            .unwrap();
        let events = histories.record(&[PUSH, PUSH, POP, POP, WAKE], |round, kind, value| {
            let mailbox = &mailboxes[round];
            match kind {
                PUSH => mailbox.try_send(value).map_or(REFUSED, |()| 0),
                WAKE => {
                    mailbox.wake();
                    0
                }
                _ => match mailbox.receiver().map(|receiver| receiver.try_recv()) {
                    // Somebody else is the receiver.
                    Err(_) => REFUSED,
                    Ok(Err(RecvError::Woken)) => WOKEN,
                    Ok(message) => word(message.ok()),
                },
            }
        });
        histories.check::<Model>(&with_answers(without_refused(events)), mailbox);
    }
    histories.finish();
}

const APPEND: u64 = 0;
const READ: u64 = 1;
const END: u64 = 2;
const TRUNCATE: u64 = 3;

/// Where a read or a deletion is, of eight bytes each.
fn place(value: u64) -> u64 {
    value / 1000 % 5 * 8
}

/// The start, and what was ever appended.
fn buffer((start, all): &(u64, Vec<u64>), op: &[u64; 3]) -> ((u64, Vec<u64>), u64) {
    let (mut start, mut all) = (*start, all.clone());
    let (at, end) = (place(op[2]), all.len() as u64 * 8);
    let answer = match op[1] {
        APPEND => {
            all.push(op[2]);
            end
        }
        READ if at < start => WOKEN,
        READ => word(all.get(at as usize / 8).copied()),
        END => end,
        _ if at > end => REFUSED,
        _ => {
            start = start.max(at);
            0
        }
    };
    ((start, all), answer)
}

pub fn histories_of_buffers() {
    let mut histories = Histories::new();
    while histories.go_on() {
        let pool = *histories.pool;
        let buffers = pool.create([const { Buffer::new() }; ROUNDS]).unwrap();
        let kinds = [APPEND, APPEND, READ, END, TRUNCATE];
        let events = histories.record(&kinds, |round, kind, value| {
            let buffer = &buffers[round];
            let at = place(value);
            match kind {
                APPEND => buffer.append(&value.to_ne_bytes()).unwrap(),
                READ => match buffer.view(at..at + 8) {
                    Ok(view) => {
                        let bytes = view.to_vec().try_into().unwrap();
                        word(Some(u64::from_ne_bytes(bytes)))
                    }
                    Err(RangeError::Deleted { .. }) => WOKEN,
                    Err(_) => 0,
                },
                END => buffer.end(),
                _ => buffer.truncate_front(at).map_or(REFUSED, |()| 0),
            }
        });
        histories.check::<(u64, Vec<u64>)>(&events, buffer);
    }
    histories.finish();
}
