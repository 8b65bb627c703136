//! Going through a map under a pin.

use super::key::{Key, Node};
use super::raw::Raw;
use super::{HashMap, Pinned};
use crate::ShmSafe;
use crate::engines::map::Nodes;

/// The entries of a map; see [`HashMap::iter`].
///
/// Not an `Iterator`: what it gives is there as long as the iterator is, and not longer.
///
/// ```
/// # use shmkit::{HashMap, Pool};
/// # let pool = Pool::builder().create()?;
/// let squares = pool.create(HashMap::<u32, u64>::new())?;
/// for i in 0..10 {
///     squares.insert(&i, u64::from(i * i))?;
/// }
/// let mut sum = 0;
/// let mut entries = squares.iter();
/// while let Some((_, square)) = entries.next() {
///     sum += square;
/// }
/// assert_eq!(sum, 285);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Iter<'a, K: ?Sized + Key, V: ShmSafe + Unpin> {
    map: &'a HashMap<K, V>,
    nodes: Option<Nodes>,
    _pinned: Option<Pinned>,
}

impl<'a, K: ?Sized + Key, V: ShmSafe + Unpin> Iter<'a, K, V> {
    pub(super) fn new(map: &'a HashMap<K, V>) -> Self {
        let pinned = map.raw.place().ok();
        let pinned = pinned.map(|(arena, slot)| (arena, Pinned::new(arena, slot)));
        Iter {
            map,
            nodes: pinned.as_ref().map(|(arena, _)| map.raw.nodes(*arena)),
            _pinned: pinned.map(|(_, pinned)| pinned),
        }
    }

    /// The next entry.
    #[allow(
        clippy::should_implement_trait,
        reason = "what it gives borrows from it"
    )]
    pub fn next(&mut self) -> Option<(&K, &V)> {
        let node = self.nodes.as_mut()?.next()?;
        // SAFETY: a node of this map, found under the pin, which lasts as long as `self`.
        let key = unsafe { Node::<K, V, false>::key(node) };
        Some((key, Raw::<K, V, false>::value(node)))
    }

    /// The map.
    #[must_use]
    pub fn map(&self) -> &'a HashMap<K, V> {
        self.map
    }
}
