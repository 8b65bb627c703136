//! Who takes part in a pool, and who has how much of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Pool;
use crate::allocator::walk::{self, Piece};
use crate::layout::arena::{Arena, SLICE};
use crate::participants::table::{Process, ProcessPhase, Slot, SlotPhase};
use crate::participants::tag::Tag;
use crate::pool::objects;
use crate::primitive::Ordering;
use crate::sys::process;

/// What one thread has in a pool.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// let object = pool.create([1_u64; 100])?;
/// let us = inspect::participants(pool).pop().unwrap();
/// assert!(us.allocated >= 800 && us.bytes >= us.allocated);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Participant {
    /// Its slot; 0 stands for nobody: what ended and dead threads left, for anybody to take.
    pub slot: usize,
    /// Its process's id; 0 if that is not known.
    pub process: u32,
    /// How many spans it has.
    pub spans: usize,
    /// Bytes of these spans.
    pub bytes: usize,
    /// Bytes of the blocks in them that are allocated, no matter who uses these.
    pub allocated: usize,
}

/// A span, from which a thread takes blocks of one size.
///
/// ```
/// # use shmkit::{Pool, inspect::Observer};
/// # let name = format!("doc-span-{}", std::process::id());
/// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let observer = Observer::open(&name)?;
/// let spans = observer.spans();
/// assert!(spans.iter().all(|span| span.allocated <= span.bytes));
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Span {
    /// Its first address.
    pub start: usize,
    /// How many bytes it has.
    pub bytes: usize,
    /// The slot of its owner; 0 stands for nobody.
    pub slot: usize,
    /// How many bytes of its blocks are allocated.
    pub allocated: usize,
}

pub(super) fn spans_of(arena: Arena) -> impl Iterator<Item = Span> {
    walk::pieces(arena).filter_map(move |(_, piece)| match piece {
        Piece::Span {
            start,
            slices,
            owner,
        } => Some(Span {
            start,
            bytes: slices * SLICE,
            slot: owner.slot(),
            allocated: walk::blocks_of_span(arena, start)
                .map(|(_, size)| size)
                .sum(),
        }),
        _ => None,
    })
}

/// Who has how much: first nobody, if there is anything that nobody has, then the threads by their
/// slots.
///
/// Blocks of whole slices (above 32 KiB) have no owner and are not counted here.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// let object = pool.create(7_u64)?;
/// assert_eq!(inspect::participants(pool).pop().unwrap().process, std::process::id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn participants(pool: Pool) -> Vec<Participant> {
    participants_of(pool.0)
}

pub(super) fn participants_of(arena: Arena) -> Vec<Participant> {
    let mut all: BTreeMap<usize, Participant> = BTreeMap::new();
    for (slot, entry) in arena.slots() {
        if matches!(entry.state().phase, SlotPhase::Live | SlotPhase::Parked) {
            let process = pid_of(arena, entry);
            let participant = Participant {
                slot,
                process,
                ..Participant::default()
            };
            all.insert(slot, participant);
        }
    }
    for span in spans_of(arena) {
        let entry = all.entry(span.slot).or_insert(Participant {
            slot: span.slot,
            ..Participant::default()
        });
        entry.spans += 1;
        entry.bytes += span.bytes;
        entry.allocated += span.allocated;
    }
    all.into_values().collect()
}

/// The process of a slot's thread; 0 if that is not known.
pub(super) fn pid_of(arena: Arena, slot: &Slot) -> u32 {
    let record = Tag::of_word(slot.watched.process.load(Ordering::Acquire));
    let known = record.slot() != 0 && record.slot() < arena.process_count();
    let pid = known.then(|| arena.process(record.slot()).pid.get());
    pid.unwrap_or(0)
}

/// A process that takes part in a pool, or did so and is not recovered yet.
///
/// ```
/// # use shmkit::{Pool, inspect::Observer};
/// # let name = format!("doc-process-{}", std::process::id());
/// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let object = pool.create(1_u64)?;
/// let observer = Observer::open(&name)?;
/// let us = observer.processes().remove(0);
/// assert_eq!((us.process, us.threads, us.changing), (std::process::id(), 1, 0));
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProcessReport {
    /// Its id, in the namespace of the pool's processes; 0 for a child that is being forked.
    pub process: u32,
    /// Whether it lives, as far as this process can tell.
    pub alive: bool,
    /// Its program's name, if the system reports it.
    pub command: Option<String>,
    /// How many of its threads have a slot.
    pub threads: usize,
    /// How many of these are in the middle of a change: after a death, somebody must complete or
    /// undo it.
    pub changing: usize,
    /// How many objects it has handles of.
    pub objects: usize,
}

pub(super) fn processes_of(arena: Arena) -> Vec<ProcessReport> {
    let here = in_our_namespace(arena);
    arena
        .processes()
        .filter(|(_, record)| record.state().phase != ProcessPhase::Free)
        .map(|(index, record)| {
            let process = record.pid.get();
            let tag = Tag::new(index, record.state().generation);
            let of_it = |slot: &&Slot| {
                slot.state().phase != SlotPhase::Free
                    && Tag::of_word(slot.watched.process.load(Ordering::Acquire)) == tag
            };
            let slots = || arena.slots().map(|(_, slot)| slot).filter(of_it);
            let alive = is_alive(record, here);
            ProcessReport {
                process,
                alive,
                command: (alive && here).then(|| command(process)).flatten(),
                threads: slots().count(),
                changing: slots().filter(|slot| slot.intent.is_open()).count(),
                objects: objects::held_by(arena, index),
            }
        })
        .collect()
}

fn in_our_namespace(arena: Arena) -> bool {
    let theirs = arena.header().pid_namespace.load(Ordering::Relaxed);
    process::pid_namespace().is_ok_and(|ours| ours == theirs)
}

/// Nothing is noted: a process that only looks buries nobody.
fn is_alive(record: &Process, here: bool) -> bool {
    let pid = record.pid.get();
    let gone = || process::process_is_gone(pid, record.start.load(Ordering::Acquire));
    match record.state().phase {
        ProcessPhase::Forking => true,
        // The mark means only that one thread died.
        ProcessPhase::Live if here => !gone(),
        ProcessPhase::Live => !record.life.owner_died(),
        ProcessPhase::Free | ProcessPhase::Dead | ProcessPhase::Aborted => false,
    }
}

fn command(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().into())
}
