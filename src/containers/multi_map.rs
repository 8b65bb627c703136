//! [`MultiMap`]: a map whose keys have stacks of values. [`push`](MultiMap::push) hides the value
//! that was there, [`pop`](MultiMap::pop) brings it back.
//!
//! It is a hash map (`engines::map`) in which each node names the node that it hides. Pushing and
//! popping change the same word that inserting and replacing change, so the crash contract is the
//! same.

use std::fmt;
use std::mem::offset_of;

use super::View;
use super::hash_map::{Found, Key, KeyHasher, Raw, Root, SipHash13};
use super::link::Pinned;
use super::store::{ChangeError, StoreError, with_room_for};
use crate::engines::map::{EntryWords, Put, Stack};
use crate::layout::arena::Arena;
use crate::layout::{Field, TypeInfo};
use crate::participants::table::Slot;
use crate::{Movable, ShmSafe};

/// A hash map in a pool whose keys have stacks of values. Reads never wait.
///
/// ```
/// use shmkit::{MultiMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let scopes = pool.create(MultiMap::<str, i64>::new())?;
/// scopes.push("x", 1)?;
/// scopes.push("x", 2)?;
/// assert_eq!(*scopes.get("x").unwrap(), 2);
/// let mut all = scopes.get_all("x");
/// assert_eq!(all.next(), Some(&2));
/// assert_eq!(all.next(), Some(&1));
/// assert_eq!(all.next(), None);
/// drop(all);
/// assert_eq!(*scopes.pop("x").unwrap(), 2);
/// assert_eq!(*scopes.get("x").unwrap(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct MultiMap<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher = SipHash13> {
    raw: Raw<K, V, S, true>,
}

// SAFETY: an atomic word, listed at its offset, and atomic hints; no drop glue.
unsafe impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> ShmSafe for MultiMap<K, V, S> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "MultiMap",
        const {
            &[
                Field::at::<Root>("root", offset_of!(Self, raw.root)),
                Field::mention::<K::Stored>("K"),
                Field::mention::<V>("V"),
                Field::mention::<S>("S"),
            ]
        },
    )
    .holding::<V>();
    const IMAGE_BOUND: bool = V::IMAGE_BOUND || <K::Stored as ShmSafe>::IMAGE_BOUND;
    const OWNS: bool = true;
}

impl<K: ?Sized + Key, V: ShmSafe + Movable> MultiMap<K, V> {
    /// An empty map. It can be filled once it is in a pool.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let named = pool.create((7_u32, MultiMap::<str, u32>::new()))?;
    /// named.1.push("x", 1)?;
    /// assert_eq!(named.1.get("x").as_deref(), Some(&1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        MultiMap::with_hasher()
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> MultiMap<K, V, S> {
    /// An empty map whose keys are hashed by `S`. It can be filled once it is in a pool.
    ///
    /// ```
    /// # use shmkit::{FoldHash, MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<u64, u32, FoldHash>::with_hasher())?;
    /// scopes.push(&7, 1)?;
    /// assert_eq!(scopes.get(&7).as_deref(), Some(&1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn with_hasher() -> Self {
        MultiMap { raw: Raw::new() }
    }

    /// Gives the key a value, which hides those that it already has.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The value is there, on top, or it is not.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// scopes.push("x", 2)?;
    /// assert_eq!(scopes.get("x").as_deref(), Some(&2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push(&self, key: &K, value: V) -> Result<(), StoreError<V>> {
        self.store(key, value, Put::Push).map(drop)
    }

    /// Replaces the value on top by another one, and returns a view of the old one. Hidden values stay hidden. A key
    /// that has no value gets this one.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    ///
    /// # Crash behaviour
    ///
    /// The value on top is the new one or the old one.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// scopes.push("x", 2)?;
    /// assert_eq!(scopes.replace("x", 3)?.as_deref(), Some(&2));
    /// assert_eq!(scopes.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn replace(&self, key: &K, value: V) -> Result<Option<View<'_, V>>, StoreError<V>> {
        self.store(key, value, Put::ReplaceTop)
    }

    fn store(&self, key: &K, value: V, put: Put) -> Result<Option<View<'_, V>>, StoreError<V>> {
        let place = match self.raw.place() {
            Ok(place) => place,
            Err(cause) => return Err(StoreError { value, cause }),
        };
        let (guess, _) = self.raw.guess(key);
        let stored = with_room_for(place.0, || {
            let pinned = Pinned::new(place.0, place.1);
            let stored = self.raw.put(place, (key, guess), &value, put, |_| true)?;
            Ok(stored.replaced().map(|old| Self::view(pinned, old)))
        });
        stored.map_err(|cause| StoreError { value, cause })
    }

    /// Removes the value on top, and returns a view of it. The value that it hid is visible again.
    ///
    /// Like [`HashMap::remove`](crate::HashMap::remove), it may fail in a full pool;
    /// [`try_pop`](Self::try_pop) says so.
    ///
    /// # Crash behaviour
    ///
    /// The value is on top, or it has been removed.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// scopes.push("x", 2)?;
    /// assert_eq!(scopes.pop("x").as_deref(), Some(&2));
    /// assert_eq!(scopes.pop("x").as_deref(), Some(&1));
    /// assert!(scopes.pop("x").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pop(&self, key: &K) -> Option<View<'_, V>> {
        self.try_pop(key).ok().flatten()
    }

    /// As [`pop`](Self::pop), but if nothing could be removed, says why.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The value is removed, and its memory comes back once nobody looks at it; or the map is as it was.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// scopes.push("x", 2)?;
    /// assert_eq!(scopes.try_pop("x")?.as_deref(), Some(&2));
    /// assert_eq!(scopes.pop("x").as_deref(), Some(&1));
    /// assert!(scopes.try_pop("x")?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_pop(&self, key: &K) -> Result<Option<View<'_, V>>, ChangeError> {
        let place = self.raw.place()?;
        with_room_for(place.0, || {
            let pinned = Pinned::new(place.0, place.1);
            let popped = self.raw.remove_if(place, key, None)?;
            Ok(popped.map(|found| Self::view(pinned, found)))
        })
    }

    /// Removes all of the key's values. Nobody else pushes or pops between two of them.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// Some of the values have been removed, those on top.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pages = pool.create(MultiMap::<str, u32>::new())?;
    /// for (word, page) in [("crab", 1), ("crab", 7), ("newt", 7)] {
    ///     pages.push(word, page)?;
    /// }
    /// pages.pop_all("crab")?;
    /// assert!(!pages.contains_key("crab") && pages.contains_key("newt"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pop_all(&self, key: &K) -> Result<(), ChangeError> {
        let place = self.raw.place()?;
        with_room_for(place.0, || {
            let _pinned = Pinned::new(place.0, place.1);
            self.raw.remove_all(place, key)
        })
    }

    /// Returns a view of the key's value on top.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// scopes.push("x", 2)?;
    /// assert_eq!(scopes.get("x").as_deref(), Some(&2));
    /// assert!(scopes.get("y").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn get(&self, key: &K) -> Option<View<'_, V>> {
        let (arena, slot) = self.raw.place().ok()?;
        let pinned = Pinned::new(arena, slot);
        let found = self.raw.find(arena, key)?;
        Some(Self::view(pinned, found))
    }

    fn view<'a>(pinned: Pinned, found: Found) -> View<'a, V> {
        Raw::<K, V, S, true>::view(pinned, found)
    }

    /// True if the key has a value.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// assert!(scopes.contains_key("x") && !scopes.contains_key("y"));
    /// scopes.pop("x");
    /// assert!(!scopes.contains_key("x"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Returns the key's values at one moment, the one on top first.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// scopes.push("x", 2)?;
    /// let mut all = scopes.get_all("x");
    /// assert_eq!(all.next(), Some(&2));
    /// assert_eq!(all.next(), Some(&1));
    /// assert_eq!(all.next(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn get_all(&self, key: &K) -> Bindings<'_, K, V, S> {
        let found = self.raw.place().ok().map(|(arena, slot)| {
            let pinned = Pinned::new(arena, slot);
            let found = self.raw.find(arena, key);
            let top = found.map_or(0, Raw::<K, V, S, true>::node);
            (arena, Raw::<K, V, S, true>::stack(arena, top), pinned)
        });
        Bindings { _map: self, found }
    }

    /// Calls `f` with every key and value. Keys are found as by [`HashMap::iter`](crate::HashMap::iter); for
    /// each key, `f` is called with the values that it has when the walk comes to it, the one on top first.
    /// `f` may use the map.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// for (name, value) in [("x", 1), ("x", 2), ("y", 3)] {
    ///     scopes.push(name, value)?;
    /// }
    /// let mut all = Vec::new();
    /// scopes.for_each(|name, &value| all.push(format!("{name}: {value}")));
    /// all.sort();
    /// assert_eq!(all, ["x: 1", "x: 2", "y: 3"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each(&self, mut f: impl FnMut(&K, &V)) {
        self.raw.look(|arena, entries| {
            for entry in entries {
                let Some(key) = Raw::<K, V, S, true>::key(arena, &entry) else {
                    continue;
                };
                for node in Raw::<K, V, S, true>::stack(arena, entry.value) {
                    if let Some(value) = Raw::<K, V, S, true>::node_value(arena, node) {
                        f(key, value);
                    }
                }
            }
        });
    }

    /// Removes all values, including hidden ones, each on its own as [`pop`](Self::pop) does. A change of a key's
    /// values by somebody else comes before all of them are removed, or after. A value that is pushed meanwhile
    /// may be removed or stay.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; some values may have been removed.
    ///
    /// # Crash behaviour
    ///
    /// Some values have been removed; of each key, those on top.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// for (name, value) in [("x", 1), ("x", 2), ("y", 3)] {
    ///     scopes.push(name, value)?;
    /// }
    /// scopes.clear()?;
    /// assert!(scopes.is_empty() && scopes.get("x").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self) -> Result<(), ChangeError> {
        let place = self.raw.place()?;
        with_room_for(place.0, || self.clear_once(place))
    }

    fn clear_once(&self, place: (Arena, &'static Slot)) -> Result<(), ChangeError> {
        let _pinned = Pinned::new(place.0, place.1);
        for entry in self.raw.entries(place.0) {
            let Some(key) = Raw::<K, V, S, true>::key(place.0, &entry) else {
                continue;
            };
            self.raw.remove_all(place, key)?;
        }
        Ok(())
    }

    /// Counts the values, including hidden ones, as [`HashMap::len`](crate::HashMap::len) counts
    /// entries.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// for name in ["x", "x", "y"] {
    ///     scopes.push(name, 1)?;
    /// }
    /// assert_eq!(scopes.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        let stack = |arena, entry: EntryWords| Raw::<K, V, S, true>::stack(arena, entry.value);
        self.raw
            .look(|arena, entries| entries.map(|entry| stack(arena, entry).count()).sum())
            .unwrap_or(0)
    }

    /// True if there is no value.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// assert!(scopes.is_empty());
    /// scopes.push("x", 1)?;
    /// assert!(!scopes.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

/// The values of a key; see [`MultiMap::get_all`].
///
/// It is not an `Iterator`, as a value is only valid as long as the `Bindings` exists.
///
/// ```
/// use shmkit::{MultiMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let scopes = pool.create(MultiMap::<str, u32>::new())?;
/// scopes.push("x", 1)?;
/// scopes.push("x", 2)?;
/// let (mut seen, mut all) = (Vec::new(), scopes.get_all("x"));
/// scopes.push("x", 3)?;
/// while let Some(&value) = all.next() {
///     seen.push(value);
/// }
/// assert_eq!(seen, [2, 1], "as they were");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bindings<'a, K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher = SipHash13> {
    _map: &'a MultiMap<K, V, S>,
    found: Option<(Arena, Stack, Pinned)>,
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> fmt::Debug for Bindings<'_, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bindings").finish_non_exhaustive()
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> Bindings<'_, K, V, S> {
    /// Returns the next value.
    ///
    /// ```
    /// # use shmkit::{MultiMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let scopes = pool.create(MultiMap::<str, u32>::new())?;
    /// scopes.push("x", 1)?;
    /// let mut all = scopes.get_all("x");
    /// assert_eq!((all.next().copied(), all.next()), (Some(1), None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(
        clippy::should_implement_trait,
        reason = "what it gives borrows from it"
    )]
    pub fn next(&mut self) -> Option<&V> {
        let (arena, nodes, _) = self.found.as_mut()?;
        Raw::<K, V, S, true>::node_value(*arena, nodes.next()?)
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> Default for MultiMap<K, V, S> {
    fn default() -> Self {
        MultiMap::with_hasher()
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> fmt::Debug for MultiMap<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiMap")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
