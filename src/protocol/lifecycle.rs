//! The state of an object: held, retired, destroyed. For the rationale, phases and invariants, see
//! `pool::objects`.
//!
//! ```text
//! bit  0..3   the phase
//! bit  3..32  the version: it rises with each turn to RETIRED, and comes round; or the slot of who is
//!             creating or destroying the object
//! bit 32..64  the generation
//! ```

use crate::primitive::{AtomicU64, Ordering};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ObjectPhase {
    Free = 0,
    Creating = 1,
    Live = 2,
    Retired = 3,
    Destroying = 4,
    Condemned = 5,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectState {
    pub phase: ObjectPhase,
    pub version: u32,
    pub generation: u32,
}

const PHASE_BITS: u32 = 3;
/// The number of versions.
pub const VERSIONS: u32 = 1 << (32 - PHASE_BITS);

impl ObjectState {
    pub const fn unpack(word: u64) -> Self {
        let phase = match word & ((1 << PHASE_BITS) - 1) {
            1 => ObjectPhase::Creating,
            2 => ObjectPhase::Live,
            3 => ObjectPhase::Retired,
            4 => ObjectPhase::Destroying,
            5 => ObjectPhase::Condemned,
            _ => ObjectPhase::Free,
        };
        ObjectState {
            phase,
            version: word as u32 >> PHASE_BITS,
            generation: (word >> 32) as u32,
        }
    }

    pub const fn pack(self) -> u64 {
        (self.generation as u64) << 32
            | ((self.version % VERSIONS) as u64) << PHASE_BITS
            | self.phase as u64
    }

    pub const fn with(self, phase: ObjectPhase) -> Self {
        ObjectState { phase, ..self }
    }
}

/// True if the word is that of a state.
pub fn is_state(word: u64) -> bool {
    ObjectState::unpack(word).pack() == word
}

/// The state in a word.
#[inline]
pub fn read(word: &AtomicU64) -> ObjectState {
    ObjectState::unpack(word.load(Ordering::SeqCst))
}

/// Changes a state from one to another, if it still is the first.
#[inline]
pub fn turn(word: &AtomicU64, from: ObjectState, to: ObjectState) -> bool {
    word.compare_exchange(from.pack(), to.pack(), Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}

/// True if the object of that generation exists, and stays as long as the caller's bit is set. The
/// bit was set before the call.
#[inline]
pub fn hold(word: &AtomicU64, generation: u32) -> bool {
    loop {
        let state = read(word);
        match state.phase {
            _ if state.generation != generation => return false,
            ObjectPhase::Live => return true,
            ObjectPhase::Retired if turn(word, state, state.with(ObjectPhase::Live)) => {
                return true;
            }
            ObjectPhase::Retired => {}
            _ => return false,
        }
    }
}

/// True if no process, and after that no link, holds the object: a holder may link it, and then let
/// go of it.
#[inline]
pub fn is_unused(is_linked: impl Fn() -> bool, is_held: impl Fn() -> bool) -> bool {
    // The first look is a short cut: a link is found faster than it is found that no process holds
    // the object.
    !is_linked() && !is_held() && !is_linked()
}

/// Turns the object to RETIRED if nothing holds it. If it is RETIRED or CONDEMNED, gives its state,
/// and a time, by `now`, at which nothing led to it; both are for the caller only. Once that time
/// is past, nobody looks at the object while it has that state.
///
/// The time is taken after the look, so a thread that still sees the object began to look before it.
/// Nobody finds the object again without turning it to LIVE, since [`is_unused`] sees no hold before
/// it sees no link; the next turn to RETIRED has another version. So the time belongs to the state,
/// and others that retire the same object do not matter, until the version has wrapped around. A
/// process that has not used the state at once asks for a later time that goes with it (`keeping`).
#[inline]
pub fn retire(
    word: &AtomicU64,
    is_unused: impl Fn() -> bool,
    now: impl Fn() -> u64,
) -> Option<(ObjectState, u64)> {
    loop {
        let state = read(word);
        match state.phase {
            ObjectPhase::Condemned => return Some((state, 0)),
            ObjectPhase::Live if is_unused() => {
                let version = (state.version + 1) % VERSIONS;
                let retired = ObjectState {
                    phase: ObjectPhase::Retired,
                    version,
                    ..state
                };
                turn(word, state, retired);
            }
            ObjectPhase::Retired if is_unused() => return Some((state, now())),
            ObjectPhase::Retired => {
                // It only seemed unused. Or it is held now; but whoever held it when we looked may
                // have let go of it since, and have seen it RETIRED: it will find the state changed,
                // so we look again.
                turn(word, state, state.with(ObjectPhase::Live));
            }
            _ => return None,
        }
    }
}

/// Turns an object that was [retired](retire) to DESTROYING, by the slot, if nobody has held it
/// since. The time at which it was retired is past.
#[inline]
pub fn seize(word: &AtomicU64, state: ObjectState, slot: usize) -> Option<ObjectState> {
    let destroying = ObjectState {
        phase: ObjectPhase::Destroying,
        version: slot as u32,
        ..state
    };
    turn(word, state, destroying).then_some(destroying)
}

/// Turns DESTROYING by that slot, whose owner is dead, to CONDEMNED.
pub fn condemn(word: &AtomicU64, slot: usize) {
    let state = read(word);
    if state.phase == ObjectPhase::Destroying && state.version == slot as u32 {
        word.store(state.with(ObjectPhase::Condemned).pack(), Ordering::SeqCst);
    }
}

#[cfg(all(test, not(shmkit_loom)))]
mod tests {
    use super::*;

    #[test]
    fn versions_come_round() {
        // An even number, so that a carry from the version would show.
        let generation = 6;
        let live = ObjectState {
            phase: ObjectPhase::Live,
            version: VERSIONS - 1,
            generation,
        };
        assert!(is_state(live.pack()) && ObjectState::unpack(live.pack()) == live);
        let word = AtomicU64::new(live.pack());
        let first = ObjectState {
            phase: ObjectPhase::Retired,
            version: 0,
            generation,
        };
        assert_eq!(retire(&word, || true, || 5), Some((first, 5)));
        assert_eq!(read(&word), first);
        // As the module's table says: all of the version's bits differ, and no others.
        let none = first.with(ObjectPhase::Live).pack();
        assert_eq!(live.pack() ^ none, 0xffff_fff8);
        // The version after the last one does not reach the generation.
        let next = ObjectState {
            version: VERSIONS,
            ..live
        };
        assert_eq!(next.pack(), none);
    }
}
