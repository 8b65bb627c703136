//! The objects of a pool, with their names and types.

use serde::Serialize;

use crate::Pool;
use crate::allocator::block;
use crate::allocator::check::{CheckReport, Depth};
use crate::layout::arena::Arena;
use crate::numbers::{self, Numbers, NumbersError};
use crate::participants::detect;
use crate::pool::objects::{self, ObjectPhase};
use crate::pool::{names, types};
use crate::primitive::{Ordering, fence};

/// An object of a pool.
///
/// ```
/// # use shmkit::{Pool, inspect::Observer};
/// # let name = format!("doc-object-{}", std::process::id());
/// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// pool.set_name("answer", &pool.create(42_u64)?)?;
/// let observer = Observer::open(&name)?;
/// let objects = observer.objects();
/// let named = objects.iter().find(|object| object.names == ["answer"]).unwrap();
/// assert_eq!((&*named.type_name, named.size), ("u64", 8));
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ObjectReport {
    /// Its place in the table of objects.
    pub index: usize,
    /// Its names, if it has any.
    pub names: Vec<String>,
    /// Its type's name, without path and parameters, at most the first 64 bytes.
    pub type_name: String,
    /// Its type's fingerprint, in hexadecimal: equal in programs that agree on the type.
    pub fingerprint: String,
    /// Where its value is, in bytes from the start of the pool's file.
    pub offset: usize,
    /// Bytes of the value, without what it owns elsewhere.
    pub size: usize,
    /// The value's alignment.
    pub align: usize,
    /// How many links lead to it, names included.
    pub links: u32,
    /// Whether some process has a handle of it.
    pub held: bool,
    /// Whether it is not in a block of the pool that it fits into, or is made of numbers that are
    /// not.
    pub damaged: bool,
    /// What it looks like to a program that knows only numbers, if it is made of them.
    pub numbers: Option<Numbers>,
}

/// Every existing object, in the order of the table.
pub(super) fn objects_of(arena: Arena) -> Vec<ObjectReport> {
    let named = names::all(arena);
    (0..arena.object_count())
        .filter_map(|index| report(arena, index, &named))
        .collect()
}

fn report(arena: Arena, index: usize, named: &[(String, usize)]) -> Option<ObjectReport> {
    let entry = arena.object(index)?;
    let state = entry.state();
    if state.phase != ObjectPhase::Live {
        return None;
    }
    let of_it = named.iter().filter(|(_, target)| *target == index);
    let described = types::described(arena, entry.kind());
    let address = entry.address.load(Ordering::Acquire) as usize;
    let size = described.as_ref().map_or(0, |ty| ty.size);
    let is_in_block = block::usable_size(arena, address).is_ok_and(|room| room >= size);
    let numbers = numbers::of_object(arena, index);
    let are_damaged = matches!(numbers, Err(NumbersError::Damaged));
    let report = ObjectReport {
        index,
        names: of_it.map(|(name, _)| name.clone()).collect(),
        type_name: described.as_ref().map_or("?".into(), |ty| ty.name.clone()),
        fingerprint: described
            .as_ref()
            .map_or(String::new(), |ty| format!("{:032x}", ty.fingerprint)),
        offset: address.wrapping_sub(arena.base()),
        size,
        align: described.as_ref().map_or(0, |ty| ty.align),
        links: detect::value(entry.links.load(Ordering::SeqCst)),
        held: objects::is_held(arena, index),
        damaged: described.is_none() || !is_in_block || are_damaged,
        numbers: numbers.ok(),
    };
    fence(Ordering::Acquire);
    // Otherwise it was destroyed meanwhile.
    let now = entry.state();
    let is_same = now.phase == ObjectPhase::Live && now.generation == state.generation;
    is_same.then_some(report)
}

/// As [`Pool::check`](crate::Pool::check), and also checks that matrices and arrays of numbers have
/// their elements.
pub(super) fn check(arena: Arena, depth: Depth) -> CheckReport {
    let mut report = Pool(arena).check_to(depth);
    if report.is_ok() {
        for object in objects_of(arena).iter().filter(|object| object.damaged) {
            let ObjectReport {
                index, type_name, ..
            } = object;
            report.problem(format_args!(
                "object {index} is a {type_name} whose elements are in no block"
            ));
        }
    }
    report
}
