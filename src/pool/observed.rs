//! Where this process looks at pools without taking part in them.
//!
//! A pool has one place. So all observers of a pool share a mapping, and the process shares it too
//! if it attaches the pool: the pool is then mapped in the place of what the observers had, which
//! was of the same file or of a copy. The last of them to go unmaps it.
//!
//! Invariant: a granule is mapped while there are observers of what is there, or while a pool is.

use std::sync::{Mutex, PoisonError};

use super::handles::Locked;
use crate::layout::arena::{Arena, GRANULES};
use crate::sys::descriptor::File;

/// What is mapped in a granule for observers. The length tells the pool from another that was
/// written into the same file since.
#[derive(Clone, Copy)]
struct Seen {
    file: File,
    len: usize,
    observers: usize,
}

type All = [Option<Seen>; GRANULES];

/// Used only by a thread that keeps the handles, so that no fork copies it locked, and nobody maps
/// or unmaps meanwhile.
static ALL: Mutex<All> = Mutex::new([None; GRANULES]);

fn with<R>(_kept: &Locked, f: impl FnOnce(&mut All) -> R) -> R {
    f(&mut ALL.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How many observers there are.
pub(super) fn count(arena: Arena, kept: &Locked) -> usize {
    with(kept, |all| {
        all[arena.granule()].map_or(0, |seen| seen.observers)
    })
}

/// Whether `len` bytes of a file are mapped there for observers.
pub(super) fn is(arena: Arena, file: File, len: usize, kept: &Locked) -> bool {
    with(kept, |all| {
        all[arena.granule()].is_some_and(|seen| (seen.file, seen.len) == (file, len))
    })
}

/// There is one more observer of the file, of which `len` bytes are mapped there.
pub(super) fn enter(arena: Arena, file: File, len: usize, kept: &Locked) {
    with(kept, |all| {
        let observers = 0;
        let seen = all[arena.granule()].get_or_insert(Seen {
            file,
            len,
            observers,
        });
        seen.observers += 1;
    });
}

/// There is one observer less.
pub(super) fn leave(arena: Arena, kept: &Locked) {
    with(kept, |all| {
        let there = &mut all[arena.granule()];
        *there = there
            .map(|seen| Seen {
                observers: seen.observers - 1,
                ..seen
            })
            .filter(|seen| seen.observers > 0);
    });
}
