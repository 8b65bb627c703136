//! [`Iter`]: iteration over the entries of a map, under a pin.

use std::fmt;

use super::hasher::KeyHasher;
use super::key::Key;
use super::raw::{Found, Raw};
use super::{HashMap, Pinned, SipHash13};
use crate::Movable;
use crate::containers::Value;
use crate::engines::map::{Entries, EntryWords};

/// The entries of a map; see [`HashMap::iter`].
///
/// It is not an `Iterator`, as an entry is only valid as long as the iterator exists.
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
pub struct Iter<'a, K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher = SipHash13> {
    map: &'a HashMap<K, V, S>,
    entries: Option<Entries<Raw<K, V, S, false>>>,
    /// The entry that is being looked at; in a flat map, a copy of it.
    current: Option<(EntryWords, Found)>,
    _pinned: Option<Pinned>,
}

impl<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> fmt::Debug for Iter<'_, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

impl<'a, K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> Iter<'a, K, V, S> {
    pub(super) fn new(map: &'a HashMap<K, V, S>) -> Self {
        let pinned = map.raw.place().ok();
        let pinned = pinned.map(|(arena, slot)| (arena, Pinned::new(arena, slot)));
        Iter {
            map,
            entries: pinned.as_ref().map(|(arena, _)| map.raw.entries(*arena)),
            current: None,
            _pinned: pinned.map(|(_, pinned)| pinned),
        }
    }

    /// Returns the next entry.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// let mut entries = ages.iter();
    /// assert_eq!(entries.next(), Some(("Ada", &36)));
    /// assert_eq!(entries.next(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(
        clippy::should_implement_trait,
        reason = "what it gives borrows from it"
    )]
    pub fn next(&mut self) -> Option<(&K, &V)> {
        let entries = self.entries.as_mut()?;
        let arena = entries.arena();
        let entry = entries.find(|entry| Raw::<K, V, S, false>::key(arena, entry).is_some())?;
        let found = Raw::<K, V, S, false>::found(&entry);
        let (entry, found) = self.current.insert((entry, found));
        // It was found under the pin, which lasts as long as `self`.
        let key = Raw::<K, V, S, false>::key(arena, entry)?;
        Some((key, Raw::<K, V, S, false>::value(found)))
    }

    /// The map.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// assert!(std::ptr::eq(ages.iter().map(), &*ages));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn map(&self) -> &'a HashMap<K, V, S> {
        self.map
    }
}
