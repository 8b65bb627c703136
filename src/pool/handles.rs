//! Which objects this process holds.
//!
//! Handles are counted in the process's own memory; the pool knows only whether the process holds
//! an object at all. A fork copies the counts with the handles; by then the pool layer has given
//! the child a hold on everything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{dispose, objects};
use crate::layout::arena::Arena;
use crate::sys::memory::CommitError;

/// One process's hold on one object; ends with the last handle.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) arena: Arena,
    pub(crate) index: usize,
    pub(crate) generation: u32,
}

type Holds = HashMap<(usize, usize), Weak<Hold>>;
/// The holds of this process, while no other thread opens or drops handles.
pub(super) type Locked = MutexGuard<'static, Option<Holds>>;

static HOLDS: Mutex<Option<Holds>> = Mutex::new(None);

/// The process's holds, locked; also locked while a pool is attached or unmapped. Nothing that runs
/// under the lock can panic halfway.
pub(super) fn lock() -> Locked {
    HOLDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether any of the holds is on an object in the pool.
pub(super) fn any_in(arena: Arena, holds: &Option<Holds>) -> bool {
    let mut all = holds.iter().flatten();
    all.any(|(&(base, _), hold)| base == arena.base() && hold.strong_count() > 0)
}

/// Holds an object that is being made: `make` sets the hold bit and brings the object into being.
/// Nobody opens or drops handles meanwhile, so nobody takes the bit for that of a failed attempt.
pub(super) fn enter(arena: Arena, index: usize, generation: u32, make: impl FnOnce()) -> Arc<Hold> {
    let mut holds = lock();
    make();
    let hold = Arc::new(Hold {
        arena,
        index,
        generation,
    });
    holds
        .get_or_insert_default()
        .insert((arena.base(), index), Arc::downgrade(&hold));
    hold
}

/// Holds an object, if it is still there.
pub(crate) fn open(
    arena: Arena,
    index: usize,
    generation: u32,
) -> Result<Option<Arc<Hold>>, CommitError> {
    let mut guard = lock();
    let holds = guard.get_or_insert_default();
    if let Some(known) = holds.get(&(arena.base(), index)).and_then(Weak::upgrade) {
        // It may turn out to be the last handle, and dropping that takes the lock.
        drop(guard);
        // If it has another generation, this object no longer exists, and the bit is not ours to
        // clear.
        return Ok((known.generation == generation).then_some(known));
    }
    if !objects::hold(arena, index, generation)? {
        drop(guard);
        // Our bit may have kept somebody from disposing of what is there now.
        dispose::dispose(arena, index);
        dispose::retry(arena);
        return Ok(None);
    }
    let hold = Arc::new(Hold {
        arena,
        index,
        generation,
    });
    holds.insert((arena.base(), index), Arc::downgrade(&hold));
    Ok(Some(hold))
}

/// Forgets every hold on objects of a pool that is being left.
pub(super) fn forget(arena: Arena) {
    lock()
        .get_or_insert_default()
        .retain(|&(base, _), _| base != arena.base());
}

impl Drop for Hold {
    fn drop(&mut self) {
        {
            let mut holds = lock();
            let holds = holds.get_or_insert_default();
            let key = (self.arena.base(), self.index);
            // Somebody may have opened it anew since the last handle was dropped.
            match holds.get(&key) {
                Some(weak) if std::ptr::eq(weak.as_ptr(), self) => holds.remove(&key),
                _ => return,
            };
            objects::let_go(self.arena, self.index);
        }
        dispose::dispose(self.arena, self.index);
        dispose::retry(self.arena);
    }
}

/// In tests: whether a thread sleeps until [the holds](lock) are unlocked.
#[cfg(test)]
pub(super) fn is_waited_for_by(tid: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"));
    let call = call.unwrap_or_default();
    let mut words = call.split_ascii_whitespace();
    let is_futex = words.next() == Some(&libc::SYS_futex.to_string());
    let word = words.next().and_then(|word| word.strip_prefix("0x"));
    let word = word.and_then(|word| usize::from_str_radix(word, 16).ok());
    let start = (&raw const HOLDS).addr();
    is_futex && word.is_some_and(|word| (start..start + size_of_val(&HOLDS)).contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    /// Between the end of the last handle and what follows from it, another thread has opened the object anew.
    #[test]
    fn a_hold_that_ends_late_is_not_the_next_ones_end() {
        let pool = Pool::builder().create().unwrap();
        let object = pool.create(7_u64).unwrap();
        let (arena, index) = (pool.0, object.index());
        let generation = arena.object(index).unwrap().state().generation;
        drop(Hold {
            arena,
            index,
            generation,
        });
        assert!(objects::is_held(arena, index));
        let again = object.handle().open().unwrap();
        drop(object);
        assert_eq!(*again, 7);
    }

    /// Nor does he hold what comes there next.
    #[test]
    fn who_comes_too_late_holds_nothing() {
        let pool = Pool::builder().create().unwrap();
        let object = pool.create(7_u64).unwrap();
        let (handle, index) = (object.handle(), object.index());
        drop(object);
        assert!(handle.open().is_err());
        assert!(!objects::is_held(pool.0, index));
    }
}
