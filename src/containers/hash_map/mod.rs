//! [`HashMap`]: a hash map whose readers never wait. For how it works, see `engines::map`.
//!
//! | module | what |
//! |--------|------|
//! | `raw`  | the part that it has in common with [`MultiMap`](crate::MultiMap) |
//! | `key`  | [`Key`], and how a key and a value are laid out in a node |
//! | `hasher` | [`KeyHasher`], and the two hashes |
//! | `entry` | [`MapEntry`]: a key on which one atomic operation is done |
//! | `looks` | look-ups and walks, which change nothing |
//! | `changes` | changes, given the value by reference |
//! | `bytes` | the same of a map whose values are bytes |
//! | `iter` | [`Iter`]: iteration over the entries |
//!
//! | operation | happens at | killed before | killed after |
//! |---|---|---|---|
//! | `insert`, `update`, `get_or_insert_with` | the store of a word | the new node, if any, is freed | the old one goes to limbo |
//! | `remove` | the store of a word | nothing | the node, if any, goes to limbo |
//! | `retain`, `clear` | each node's own store | what was removed by then is removed | |
//!
//! No user's code runs under a lock or an intent: closures run on what was found under a pin, and
//! what they return is stored only if the map still has what was found. (Keys are compared under
//! the lock, but as bytes, by this library.)

mod bytes;
mod changes;
mod entry;
mod hasher;
mod iter;
mod key;
mod looks;
mod raw;

use std::fmt;
use std::mem::offset_of;

use super::link::Pinned;
use super::store::{ChangeError, StoreError, with_room_for};
use super::{Value, View};
use crate::engines::map::{Guess, Mode};
use crate::layout::{Field, TypeInfo};
use crate::{Movable, ShmSafe};

use self::changes::Place;
pub use self::entry::{MapEntry, ModifyEntry};
pub use self::hasher::{FoldHash, KeyHasher, SipHash13};
pub use self::iter::Iter;
pub(super) use self::key::Bytes;
pub use self::key::{Key, is_key};
use self::raw::Stored;
pub(super) use self::raw::{Found, Raw, Root};

/// A hash map in a pool. Reads never wait for anybody.
///
/// Values are never changed in place: they are replaced as a whole, and looked at through a
/// [`View`], which keeps what it shows. Keys are hashed with a secret of the map's own. The map
/// grows and shrinks a little at a time, with each change.
///
/// Keys and values are of types with a fixed size, or of as many bytes as each of them has: keys are
/// `str` or `[u8]` then, and values `[u8]` (see [`insert_bytes`](Self::insert_bytes)).
///
/// ```
/// use shmkit::{HashMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let ages = pool.create(HashMap::<str, u32>::new())?;
/// ages.insert("Ada", 36)?;
/// assert_eq!(ages.get_copied("Ada"), Some(36));
/// assert_eq!(*ages.insert("Ada", 37)?.unwrap(), 36);
/// ages.update("Grace", |age| Some(age.map_or(85, |age| age + 1)))?;
/// assert_eq!(ages.len(), 2);
/// assert_eq!(*ages.remove("Ada").unwrap(), 37);
/// assert!(!ages.contains_key("Ada"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct HashMap<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher = SipHash13> {
    raw: Raw<K, V, S, false>,
}

// SAFETY: an atomic word, listed at its offset, and atomic hints; no drop glue.
unsafe impl<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> ShmSafe
    for HashMap<K, V, S>
{
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "HashMap",
        const {
            &[
                Field::at::<Root>("root", offset_of!(Self, raw.root)),
                Field::mention::<K::Stored>("K"),
                Field::mention::<V::Described>("V"),
                Field::mention::<S>("S"),
            ]
        },
    )
    .holding::<V::Described>();
    const IMAGE_BOUND: bool = V::Described::IMAGE_BOUND || <K::Stored as ShmSafe>::IMAGE_BOUND;
    const OWNS: bool = true;
}

impl<K: ?Sized + Key, V: ?Sized + Value + Movable> HashMap<K, V> {
    /// An empty map. It can be filled once it is in a pool.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let named = pool.create((7_u32, HashMap::<str, u32>::new()))?;
    /// named.1.insert("Ada", 36)?;
    /// assert_eq!(named.1.get_copied("Ada"), Some(36));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        HashMap::with_hasher()
    }
}

impl<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> HashMap<K, V, S> {
    /// An empty map whose keys are hashed by `S`. It can be filled once it is in a pool.
    ///
    /// ```
    /// # use shmkit::{FoldHash, HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let names = pool.create(HashMap::<u64, char, FoldHash>::with_hasher())?;
    /// names.insert(&7, 'g')?;
    /// assert_eq!(names.get_copied(&7), Some('g'));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn with_hasher() -> Self {
        HashMap { raw: Raw::new() }
    }

    /// Removes the key's value, and returns a view of it.
    ///
    /// A full pool is no obstacle, except while the map is moving to another table: a key whose part
    /// of the table cannot be moved stays, and the result is `None`. [`try_remove`](Self::try_remove)
    /// distinguishes this from a key without a value.
    ///
    /// # Crash behaviour
    ///
    /// The key has its value, or none.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// assert_eq!(ages.remove("Ada").as_deref(), Some(&36));
    /// assert!(ages.remove("Ada").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove(&self, key: &K) -> Option<View<'_, V>> {
        self.try_remove(key).ok().flatten()
    }

    /// As [`remove`](Self::remove), but if nothing could be removed, says why.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The entry is removed, and its memory comes back once nobody looks at it; or the map is as it was.
    ///
    /// ```
    /// # use shmkit::{ChangeError, HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// assert_eq!(ages.try_remove("Ada")?.as_deref(), Some(&36));
    /// assert!(ages.try_remove("Ada")?.is_none());
    /// let nowhere = HashMap::<str, u32>::new();
    /// assert_eq!(nowhere.try_remove("Ada").err(), Some(ChangeError::NotInPool));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_remove(&self, key: &K) -> Result<Option<View<'_, V>>, ChangeError> {
        let place = self.raw.place()?;
        with_room_for(place.0, || {
            let pinned = Pinned::new(place.0, place.1);
            let removed = self.raw.remove_if(place, key, None)?;
            Ok(removed.map(|found| Self::view(pinned, found)))
        })
    }

    /// Removes all entries for which `f` returns `false`. Each is removed on its own; what is inserted
    /// or replaced meanwhile may stay without `f` having been called for it. If there was no room
    /// until memory was given back, `f` is called again for the entries that are left.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; some entries may have been removed.
    ///
    /// # Panics
    ///
    /// If `f` does.
    ///
    /// # Crash behaviour
    ///
    /// What was removed before the caller died is removed; the rest stays.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// stock.insert("apples", 3)?;
    /// stock.insert("pears", 0)?;
    /// stock.retain(|_, &left| left > 0)?;
    /// assert_eq!(stock.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retain(&self, mut f: impl FnMut(&K, &V) -> bool) -> Result<(), ChangeError> {
        let place = self.raw.place()?;
        with_room_for(place.0, || self.retain_once(place, &mut f))
    }

    fn retain_once(
        &self,
        place: Place,
        f: &mut impl FnMut(&K, &V) -> bool,
    ) -> Result<(), ChangeError> {
        let _pinned = Pinned::new(place.0, place.1);
        for entry in self.raw.entries(place.0) {
            // It was found under the pin.
            let found = Raw::<K, V, S, false>::found(&entry);
            let Some(key) = Raw::<K, V, S, false>::key(place.0, &entry) else {
                continue;
            };
            if !f(key, Self::value(&found)) {
                self.raw.remove_if(place, key, Some(found))?;
            }
        }
        Ok(())
    }

    /// Removes all entries, each on its own.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; some entries may have been removed.
    ///
    /// # Crash behaviour
    ///
    /// As for [`retain`](Self::retain).
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let squares = pool.create(HashMap::<u64, u64>::new())?;
    /// for n in 0..10 {
    ///     squares.insert(&n, n * n)?;
    /// }
    /// squares.clear()?;
    /// assert_eq!(squares.len(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self) -> Result<(), ChangeError> {
        self.retain(|_, _| false)
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> HashMap<K, V, S> {
    /// Gives the key a value, and returns a view of the one that it had.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The key has the new value, or what it had before.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// assert!(ages.insert("Ada", 35)?.is_none());
    /// assert_eq!(ages.insert("Ada", 36)?.as_deref(), Some(&35));
    /// assert_eq!(ages.get_copied("Ada"), Some(36));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert(&self, key: &K, value: V) -> Result<Option<View<'_, V>>, StoreError<V>> {
        let guess = self.raw.guess(key);
        let place = match self.raw.place() {
            Ok(place) => place,
            Err(cause) => return Err(StoreError { value, cause }),
        };
        match self.raw.put_at_once(place, guess, &value, |_| true) {
            Some(stored) => Ok(stored.replaced().map(Raw::<K, V, S, false>::copy)),
            None if Raw::<K, V, S, false>::FLAT => self.insert_apart(place, (key, guess.0), value),
            None => self.insert_anyhow(place, (key, guess.0), value),
        }
    }

    #[inline(never)]
    fn insert_apart(
        &self,
        place: Place,
        key: (&K, Guess),
        value: V,
    ) -> Result<Option<View<'_, V>>, StoreError<V>> {
        self.insert_anyhow(place, key, value)
    }

    #[inline]
    fn insert_anyhow(
        &self,
        place: Place,
        key: (&K, Guess),
        value: V,
    ) -> Result<Option<View<'_, V>>, StoreError<V>> {
        self.put(place, key, &value)
            .map_err(|cause| StoreError { value, cause })
    }

    /// Returns an entry for a key, on which one operation is then done: each of the calls that end
    /// an entry is atomic.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let counts = pool.create(HashMap::<str, u64>::new())?;
    /// for word in "the cat and the dog and the bird".split(' ') {
    ///     counts.entry(word).and_modify(|n| n + 1).or_insert(1)?;
    /// }
    /// assert_eq!(counts.get_copied("the"), Some(3));
    /// assert_eq!(*counts.entry("fish").or_insert(0)?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn entry<'m, 'k>(&'m self, key: &'k K) -> MapEntry<'m, 'k, K, V, S> {
        MapEntry::new(self, key)
    }

    /// Gives the key what `f` makes of its value, and returns a view of the value that the key had
    /// before. `f` is given `None` if the key has no value, and returns `None` to leave it without
    /// one. `f` runs again if the key's value has changed meanwhile, or if there was no room until
    /// memory was given back; nothing is locked while it runs. (So an `f` that itself changes the
    /// value of this key each time would run for ever.)
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Panics
    ///
    /// If `f` does. The map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert`](Self::insert).
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let counts = pool.create(HashMap::<str, u64>::new())?;
    /// for word in ["a", "b", "a"] {
    ///     counts.update(word, |count| Some(count.map_or(1, |n| n + 1)))?;
    /// }
    /// assert_eq!(counts.get_copied("a"), Some(2));
    /// counts.update("b", |_| None)?;
    /// assert!(!counts.contains_key("b"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update(
        &self,
        key: &K,
        f: impl FnMut(Option<&V>) -> Option<V>,
    ) -> Result<Option<View<'_, V>>, ChangeError> {
        self.update_by(key, f)
    }

    /// Stores `new` (`None` for no value) if the key's value is `current`, and returns a view of
    /// what it was.
    ///
    /// # Errors
    ///
    /// [`CompareError::Other`], with a view of the value that the key has instead; or the reason
    /// why the new value was not stored. The map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert`](Self::insert).
    ///
    /// ```
    /// # use shmkit::{CompareError, HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let owners = pool.create(HashMap::<u32, u32>::new())?;
    /// assert!(owners.compare_exchange(&7, None, Some(1)).is_ok());
    /// match owners.compare_exchange(&7, None, Some(2)) {
    ///     Err(CompareError::Other(Some(owner))) => assert_eq!(*owner, 1),
    ///     _ => unreachable!("it has an owner"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn compare_exchange(
        &self,
        key: &K,
        current: Option<&V>,
        new: Option<V>,
    ) -> Result<Option<View<'_, V>>, CompareError<'_, V>>
    where
        V: PartialEq,
    {
        self.exchange_if(key, current, new.as_ref())
    }

    /// Returns a view of the key's value; if it has none, gives it the one that `f` makes. If
    /// several callers do this at the same time, one of them stores its value, and the others see
    /// that value.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the map is as it was.
    ///
    /// # Panics
    ///
    /// If `f` does. The map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert`](Self::insert).
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let squares = pool.create(HashMap::<u64, u64>::new())?;
    /// assert_eq!(*squares.get_or_insert_with(&12, || 12 * 12)?, 144);
    /// assert_eq!(*squares.get_or_insert_with(&12, || unreachable!("it is there"))?, 144);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_or_insert_with(
        &self,
        key: &K,
        f: impl FnOnce() -> V,
    ) -> Result<View<'_, V>, StoreError<V>> {
        if let Some(found) = self.get(key) {
            return Ok(found);
        }
        let value = f();
        self.put_new(key, &value)
            .map_err(|cause| StoreError { value, cause })
    }
}

/// Why a [`HashMap::compare_exchange`] changed nothing.
///
/// ```
/// use shmkit::{CompareError, HashMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let owners = pool.create(HashMap::<u32, u32>::new())?;
/// owners.insert(&7, 1)?;
/// match owners.compare_exchange(&7, Some(&2), None) {
///     Err(CompareError::Other(owner)) => assert_eq!(owner.as_deref(), Some(&1)),
///     other => unreachable!("{other:?}"),
/// }
/// assert!(owners.contains_key(&7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CompareError<'a, V: ?Sized + Value> {
    /// The key has another value, or none.
    #[error("the key has another value")]
    Other(Option<View<'a, V>>),
    /// The new value was not stored.
    #[error(transparent)]
    Change(ChangeError),
}

impl<V: ?Sized + Value> fmt::Debug for CompareError<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompareError::Other(None) => f.write_str("Other(None)"),
            CompareError::Other(Some(_)) => f.write_str("Other(Some(..))"),
            CompareError::Change(cause) => f.debug_tuple("Change").field(cause).finish(),
        }
    }
}

impl<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> Default for HashMap<K, V, S> {
    fn default() -> Self {
        HashMap::with_hasher()
    }
}

impl<K: ?Sized + Key + fmt::Debug, V: ?Sized + Value + Movable + fmt::Debug, S: KeyHasher>
    fmt::Debug for HashMap<K, V, S>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        let mut iter = self.iter();
        while let Some((key, value)) = iter.next() {
            map.entry(&key, &value);
        }
        map.finish()
    }
}
