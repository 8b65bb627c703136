//! [`MapEntry`]: a key of a map, on which one atomic operation is done.
//!
//! Nothing is locked between [`HashMap::entry`] and the call that does something. That call is one
//! operation of the map, and takes effect by one store.

use std::fmt;

use super::raw::Stored;
use super::{HashMap, Key, KeyHasher, Pinned, SipHash13, StoreError, View};
use crate::containers::ChangeError;
use crate::containers::store::{with_room, with_room_for};
use crate::{Movable, ShmSafe};

/// A key of a map; see [`HashMap::entry`].
///
/// ```
/// # use shmkit::{HashMap, Pool};
/// # let pool = Pool::builder().create()?;
/// let stock = pool.create(HashMap::<str, u32>::new())?;
/// stock.insert("apples", 3)?;
/// let left = stock.entry("apples").and_modify(|n| n - 1).or_nothing()?;
/// assert_eq!(left.as_deref(), Some(&2));
/// assert!(stock.entry("pears").and_modify(|n| n - 1).or_nothing()?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing was done with the entry yet"]
pub struct MapEntry<'m, 'k, K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher = SipHash13> {
    map: &'m HashMap<K, V, S>,
    key: &'k K,
}

impl<'m, 'k, K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> MapEntry<'m, 'k, K, V, S> {
    pub(super) fn new(map: &'m HashMap<K, V, S>, key: &'k K) -> Self {
        MapEntry { map, key }
    }

    /// The key.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// assert_eq!(stock.entry("pears").key(), "pears");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn key(&self) -> &'k K {
        self.key
    }

    /// Returns a view of the key's value, as [`HashMap::get`] does.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// stock.insert("apples", 3)?;
    /// assert_eq!(stock.entry("apples").get().as_deref(), Some(&3));
    /// assert!(stock.entry("pears").get().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn get(&self) -> Option<View<'m, V>> {
        self.map.get(self.key)
    }

    /// Gives the key a value, as [`HashMap::insert`] does.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the map is as it was.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// assert!(stock.entry("apples").insert(3)?.is_none());
    /// assert_eq!(stock.entry("apples").insert(5)?.as_deref(), Some(&3));
    /// assert_eq!(stock.get_copied("apples"), Some(5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert(self, value: V) -> Result<Option<View<'m, V>>, StoreError<V>> {
        self.map.insert(self.key, value)
    }

    /// Removes the key's value, as [`HashMap::try_remove`] does.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// stock.insert("apples", 3)?;
    /// assert_eq!(stock.entry("apples").remove()?.as_deref(), Some(&3));
    /// assert!(stock.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove(self) -> Result<Option<View<'m, V>>, ChangeError> {
        self.map.try_remove(self.key)
    }

    /// Gives the key this value if it has none, and returns a view of the key's value.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the map is as it was.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// assert_eq!(*stock.entry("apples").or_insert(3)?, 3);
    /// assert_eq!(*stock.entry("apples").or_insert(5)?, 3);
    /// // The view does not need the key.
    /// let pears = stock.entry(&String::from("pears")).or_insert(7)?;
    /// assert_eq!(*pears, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn or_insert(self, value: V) -> Result<View<'m, V>, StoreError<V>> {
        self.map.get_or_insert_with(self.key, || value)
    }

    /// As [`or_insert`](Self::or_insert), with a value that `f` makes if it is needed. `f` runs at
    /// most once, even if somebody else stores a value first.
    ///
    /// # Errors
    ///
    /// As for [`or_insert`](Self::or_insert).
    ///
    /// # Panics
    ///
    /// If `f` does. The map is as it was.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let lengths = pool.create(HashMap::<str, usize>::new())?;
    /// assert_eq!(*lengths.entry("apples").or_insert_with(|| "apples".len())?, 6);
    /// assert_eq!(*lengths.entry("apples").or_insert_with(|| unreachable!("it is there"))?, 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn or_insert_with(self, f: impl FnOnce() -> V) -> Result<View<'m, V>, StoreError<V>> {
        self.map.get_or_insert_with(self.key, f)
    }

    /// Says that the key's value, if it has one, is to become what `f` makes of it. The next call says
    /// what happens if the key has none. The two are one operation.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let visits = pool.create(HashMap::<str, u32>::new())?;
    /// for _ in 0..3 {
    ///     visits.entry("Ada").and_modify(|n| n + 1).or_insert(1)?;
    /// }
    /// assert_eq!(visits.get_copied("Ada"), Some(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn and_modify<F: FnMut(&V) -> V>(self, f: F) -> ModifyEntry<'m, 'k, K, V, S, F> {
        ModifyEntry { entry: self, f }
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> fmt::Debug for MapEntry<'_, '_, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapEntry").finish_non_exhaustive()
    }
}

/// A key of a map whose value is to be changed; see [`MapEntry::and_modify`].
///
/// ```
/// # use shmkit::{HashMap, Pool};
/// # let pool = Pool::builder().create()?;
/// let stock = pool.create(HashMap::<str, u32>::new())?;
/// stock.insert("apples", 3)?;
/// let sale = stock.entry("apples").and_modify(|n| n - 1);
/// assert_eq!(stock.get_copied("apples"), Some(3), "nothing was done yet");
/// sale.or_nothing()?;
/// assert_eq!(stock.get_copied("apples"), Some(2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is done before it is said what if there is no value"]
pub struct ModifyEntry<'m, 'k, K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher, F> {
    entry: MapEntry<'m, 'k, K, V, S>,
    f: F,
}

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher, F> fmt::Debug
    for ModifyEntry<'_, '_, K, V, S, F>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModifyEntry").finish_non_exhaustive()
    }
}

impl<'m, 'k, K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher, F: FnMut(&V) -> V>
    ModifyEntry<'m, 'k, K, V, S, F>
{
    /// Changes the key's value, or gives the key this one if it has none. Returns a view of the
    /// value that the key has then.
    ///
    /// The closure of [`and_modify`](MapEntry::and_modify) runs again if somebody else changes the
    /// key's value meanwhile, or if there was no room until memory was given back. It runs without a
    /// lock.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value that was not stored; the map is as it was.
    ///
    /// # Panics
    ///
    /// If the closure does. The map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`HashMap::insert`].
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let visits = pool.create(HashMap::<str, u32>::new())?;
    /// assert_eq!(*visits.entry("Ada").and_modify(|n| n + 1).or_insert(1)?, 1);
    /// assert_eq!(*visits.entry("Ada").and_modify(|n| n + 1).or_insert(1)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn or_insert(self, value: V) -> Result<View<'m, V>, StoreError<V>> {
        self.or_insert_with(|| value)
    }

    /// As [`or_insert`](Self::or_insert), with a value that `make` makes if it is needed. `make`
    /// runs at most once.
    ///
    /// # Errors
    ///
    /// As for [`or_insert`](Self::or_insert).
    ///
    /// # Panics
    ///
    /// If one of the closures does. The map is as it was.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let visits = pool.create(HashMap::<str, [u32; 2]>::new())?;
    /// let visit = |name| {
    ///     visits.entry(name).and_modify(|&[n, id]| [n + 1, id]).or_insert_with(|| [1, 77])
    /// };
    /// assert_eq!(*visit("Ada")?, [1, 77]);
    /// assert_eq!(*visit("Ada")?, [2, 77]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn or_insert_with(self, make: impl FnOnce() -> V) -> Result<View<'m, V>, StoreError<V>> {
        let (MapEntry { map, key }, mut f) = (self.entry, self.f);
        let place = match map.raw.place() {
            Ok(place) => place,
            Err(cause) => {
                return Err(StoreError {
                    value: make(),
                    cause,
                });
            }
        };
        let mut make = Some(make);
        // The first of the pair is what was made but not stored; the second, after an error, is
        // what `f` gave.
        let attempt = |(mut made, _): (Option<V>, Option<V>)| loop {
            let pinned = Pinned::new(place.0, place.1);
            let seen = map.raw.find(place.0, key);
            let value = match &seen {
                Some(seen) => f(HashMap::<K, V, S>::value(seen)),
                None => match made.take() {
                    Some(value) => value,
                    None => make.take().expect("what it made is kept")(),
                },
            };
            match map.put_seen(place, key, &value, seen) {
                Ok(Stored::Put { new, .. }) => return Ok(HashMap::<K, V, S>::view(pinned, new)),
                Ok(Stored::Refused(_)) if seen.is_none() => made = Some(value),
                Ok(Stored::Refused(_)) => {}
                Err(cause) => {
                    let value = match seen {
                        None => (Some(value), None),
                        Some(_) => (made, Some(value)),
                    };
                    return Err(StoreError { value, cause });
                }
            }
        };
        with_room(place.0, (None, None), attempt).map_err(|refused| {
            let (made, other) = refused.value;
            StoreError {
                value: other.or(made).expect("one of them was not stored"),
                cause: refused.cause,
            }
        })
    }

    /// Changes the key's value if it has one, and returns a view of the value that it has then.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]: the map is as it was.
    ///
    /// # Panics
    ///
    /// If the closure does. The map is as it was.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let stock = pool.create(HashMap::<str, u32>::new())?;
    /// stock.insert("apples", 3)?;
    /// assert_eq!(stock.entry("apples").and_modify(|n| n - 1).or_nothing()?.as_deref(), Some(&2));
    /// assert!(stock.entry("pears").and_modify(|n| n - 1).or_nothing()?.is_none());
    /// assert!(!stock.contains_key("pears"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn or_nothing(self) -> Result<Option<View<'m, V>>, ChangeError> {
        let (MapEntry { map, key }, mut f) = (self.entry, self.f);
        let place = map.raw.place()?;
        with_room_for(place.0, || {
            loop {
                let pinned = Pinned::new(place.0, place.1);
                let Some(seen) = map.raw.find(place.0, key) else {
                    return Ok(None);
                };
                let value = f(HashMap::<K, V, S>::value(&seen));
                let put = map.put_seen(place, key, &value, Some(seen));
                if let Stored::Put { new, .. } = put? {
                    return Ok(Some(HashMap::<K, V, S>::view(pinned, new)));
                }
            }
        })
    }
}
