//! Checks everything that must hold of objects, their types and their names, and that every
//! participant is in a valid state.
//!
//! While others work, only what holds at every instant is checked: what an entry says, provided
//! that it is the same before and after we look. At rest ([`Depth::Quiescent`]), links are counted
//! too, and what a value owns is looked at.
//!
//! A report covers what the words say. Damage that leaves another valid value, such as another
//! number in a value, is not found.

use std::collections::BTreeMap;

use super::objects::{self, ObjectEntry, ObjectPhase};
use super::types::Owned;
use super::{names, types};
use crate::allocator::block;
use crate::allocator::check::{CheckReport, Depth};
use crate::engines;
use crate::layout::arena::Arena;
use crate::participants::detect;
use crate::participants::table::{ProcessState, SlotState};
use crate::primitive::{Ordering, fence};
use crate::protocol::lifecycle;

/// How many links were found to lead to each object.
type Links = BTreeMap<usize, u32>;

/// Checks participants, types, objects and names.
pub(super) fn check(arena: Arena, depth: Depth, report: &mut CheckReport) {
    let quiet = depth == Depth::Quiescent;
    let mut links = Links::new();
    check_participants(arena, report);
    types::check(arena, report);
    for index in 0..arena.object_count() {
        if let Some(entry) = arena.object(index) {
            check_entry(arena, index, entry, report);
            if quiet {
                check_at_rest(arena, index, entry, &mut links, report);
            }
        }
    }
    names::check(arena, quiet, report, |target| {
        *links.entry(target).or_default() += 1;
        arena.object(target).is_some_and(is_there)
    });
    if quiet {
        check_links(arena, &links, report);
    }
}

/// Every participant's state is one of those that exist.
fn check_participants(arena: Arena, report: &mut CheckReport) {
    for (index, record) in arena.processes() {
        let word = record.state.load(Ordering::Acquire);
        if ProcessState::unpack(word).pack() != word {
            report.problem(format_args!(
                "process record {index} has the state {word:#x}"
            ));
        }
    }
    for (index, slot) in arena.slots() {
        let word = slot.state.load(Ordering::Acquire);
        if SlotState::unpack(word).pack() != word {
            report.problem(format_args!("slot {index} has the state {word:#x}"));
        }
    }
}

/// True if a link can lead there.
fn is_there(entry: &ObjectEntry) -> bool {
    matches!(
        entry.state().phase,
        ObjectPhase::Live | ObjectPhase::Retired
    )
}

/// Checks what holds at every instant.
fn check_entry(arena: Arena, index: usize, entry: &ObjectEntry, report: &mut CheckReport) {
    let word = entry.state.load(Ordering::SeqCst);
    if !lifecycle::is_state(word) {
        report.problem(format_args!("object {index} has the state {word:#x}"));
        return;
    }
    if entry.state().phase == ObjectPhase::Free {
        return;
    }
    report.objects += 1;
    let links = detect::value(entry.links.load(Ordering::SeqCst));
    if links > i32::MAX as u32 {
        report.problem(format_args!("object {index} has {links} links"));
    }
    if entry.state().phase != ObjectPhase::Live {
        return;
    }
    let address = entry.address.load(Ordering::Acquire) as usize;
    let kind = entry.kind();
    let wrong = match types::described(arena, kind) {
        None => Some(format!("has no type {kind}")),
        Some(ty) if !address.is_multiple_of(ty.align) => {
            Some(format!("is not aligned to {} at {address:#x}", ty.align))
        }
        Some(ty) => match block::usable_size(arena, address) {
            Err(_) => Some(format!("has no block at {address:#x}")),
            Ok(room) if room < ty.size => {
                Some(format!("is of {} bytes in a block of {room}", ty.size))
            }
            Ok(_) => None,
        },
    };
    fence(Ordering::Acquire);
    // Otherwise the object was destroyed meanwhile.
    if let Some(wrong) = wrong
        && entry.state.load(Ordering::SeqCst) == word
    {
        report.problem(format_args!("object {index} {wrong}"));
    }
}

/// Checks what holds while nobody does anything.
fn check_at_rest(
    arena: Arena,
    index: usize,
    entry: &ObjectEntry,
    links: &mut Links,
    report: &mut CheckReport,
) {
    let phase = entry.state().phase;
    if matches!(
        phase,
        ObjectPhase::Creating | ObjectPhase::Destroying | ObjectPhase::Condemned
    ) {
        report.problem(format_args!("object {index} is {phase:?} at rest"));
    }
    if !is_there(entry) {
        return;
    }
    let address = entry.address.load(Ordering::Relaxed) as usize;
    let room = block::usable_size(arena, address).unwrap_or(0);
    for owned in types::owned_words(arena, entry.kind(), room) {
        let place = address + owned.offset;
        let word = || {
            let word = arena.word_at(place)?;
            Some(word.load(Ordering::Relaxed))
        };
        match owned.kind {
            Owned::Engine(engine) => engines::check(arena, engine, place, report),
            Owned::Block => {
                if let Some(named) = word().filter(|&word| word != 0)
                    && block::usable_size(arena, named as usize).is_err()
                {
                    report.problem(format_args!(
                        "object {index} has {named:#x} for a block at {place:#x}"
                    ));
                }
            }
            Owned::Link => {
                if let Some(target) = word().and_then(objects::target) {
                    *links.entry(target).or_default() += 1;
                    if !arena.object(target).is_some_and(is_there) {
                        report.problem(format_args!(
                            "object {index} links to object {target}, which is not there"
                        ));
                    }
                }
            }
        }
    }
}

/// Compares the links that were found with those that are counted. More may be counted than found:
/// links in memory that no type describes, such as a raw block's, are not found.
fn check_links(arena: Arena, found: &Links, report: &mut CheckReport) {
    for index in 0..arena.object_count() {
        let Some(entry) = arena.object(index).filter(|entry| is_there(entry)) else {
            continue;
        };
        let counted = detect::value(entry.links.load(Ordering::SeqCst));
        let found = found.get(&index).copied().unwrap_or(0);
        if counted < found {
            report.problem(format_args!(
                "object {index} counts {counted} links, and {found} lead to it"
            ));
        }
        let is_live = entry.state().phase == ObjectPhase::Live;
        if is_live && counted == 0 && !objects::is_held(arena, index) {
            report.problem(format_args!("object {index} is held by nobody"));
        }
    }
}
