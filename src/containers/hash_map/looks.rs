//! Look-ups in a map and walks over it, which do not change it. Everything is found under a pin.

use super::{HashMap, Iter, Key, KeyHasher, Raw};
use crate::Movable;
use crate::containers::link::Pinned;
use crate::containers::{Value, View};
use crate::engines::map::Mode;
use crate::participants::epoch;

impl<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> HashMap<K, V, S> {
    /// Returns a view of the value of a key; `None` if there is none (or the thread has no slot in
    /// the pool). While a view is open, nothing that it could see is freed.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let names = pool.create(HashMap::<u32, [u8; 20]>::new())?;
    /// names.insert(&7, *b"Augusta Ada Lovelace")?;
    /// let view = names.get(&7).unwrap();
    /// names.remove(&7);
    /// assert!(view.starts_with(b"Augusta"), "what is seen stays");
    /// assert!(names.get(&7).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<View<'_, V>> {
        let guess = self.raw.guess(key);
        let (arena, slot) = self.raw.place().ok()?;
        if Raw::<K, V, S, false>::FLAT {
            // The value is copied, so the pin ends here, and is not counted as a guard.
            epoch::pin(arena, slot);
            let found = self.raw.find_guessed(arena, key, guess);
            epoch::unpin(slot);
            return found.map(Raw::<K, V, S, false>::copy);
        }
        let pinned = Pinned::new(arena, slot);
        let found = self.raw.find_guessed(arena, key, guess)?;
        Some(Self::view(pinned, found))
    }

    /// Returns a copy of the value of a key.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// assert_eq!((ages.get_copied("Ada"), ages.get_copied("Bob")), (Some(36), None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn get_copied(&self, key: &K) -> Option<V>
    where
        V: Copy,
    {
        let guess = self.raw.guess(key);
        let (arena, slot) = self.raw.place().ok()?;
        epoch::pin(arena, slot);
        let found = self.raw.find_guessed(arena, key, guess);
        let value = found.map(|found| *Self::value(&found));
        epoch::unpin(slot);
        value
    }

    /// True if the key has a value. For a map that is not in a pool, and for a thread without a
    /// slot, no key has one.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// assert!(ages.contains_key("Ada"));
    /// assert!(!ages.contains_key("Bob"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        let guess = self.raw.guess(key);
        let Ok((arena, slot)) = self.raw.place() else {
            return false;
        };
        epoch::pin(arena, slot);
        let found = self.raw.find_guessed(arena, key, guess).is_some();
        epoch::unpin(slot);
        found
    }

    /// Returns an iterator over all entries, in no particular order. An entry that is there all the
    /// time is seen once; one that is inserted, removed or replaced meanwhile may be seen or not, or
    /// be seen both as it was and as it is.
    ///
    /// While the iterator exists, nothing that is removed is freed. An entry is only valid until the iterator goes
    /// on to the next one, so it cannot be used in a `for` loop: see also [`for_each`](Self::for_each) and
    /// [`iter_copied`](Self::iter_copied). For a map that is not in a pool, and for a thread without a slot, there
    /// are no entries.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// ages.insert("Emmy", 53)?;
    /// let (mut names, mut entries) = (Vec::new(), ages.iter());
    /// while let Some((name, age)) = entries.next() {
    ///     names.push(format!("{name}: {age}"));
    /// }
    /// names.sort();
    /// assert_eq!(names, ["Ada: 36", "Emmy: 53"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V, S> {
        Iter::new(self)
    }

    /// Calls `f` with every entry that [`iter`](Self::iter) would find. `f` may use the map.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// ages.insert("Ada", 36)?;
    /// ages.insert("Emmy", 53)?;
    /// let mut eldest = 0;
    /// ages.for_each(|_, &age| eldest = eldest.max(age));
    /// assert_eq!(eldest, 53);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each(&self, mut f: impl FnMut(&K, &V)) {
        let mut entries = self.iter();
        while let Some((key, value)) = entries.next() {
            f(key, value);
        }
    }

    /// Returns an iterator over copies of all entries that [`iter`](Self::iter) would find.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let squares = pool.create(HashMap::<u32, u64>::new())?;
    /// for i in 0..10 {
    ///     squares.insert(&i, u64::from(i * i))?;
    /// }
    /// let even = squares.iter_copied().filter(|(i, _)| i % 2 == 0);
    /// assert_eq!(even.map(|(_, square)| square).sum::<u64>(), 120);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter_copied(&self) -> impl Iterator<Item = (K, V)>
    where
        K: Copy,
        V: Copy,
    {
        let mut entries = self.iter();
        std::iter::from_fn(move || entries.next().map(|(&key, &value)| (key, value)))
    }

    /// Counts the entries, in time proportional to the size of the table. Entries that are there all the time
    /// count once; others count or not, and one that is removed and inserted again may count twice. For a map that
    /// is not in a pool, and for a thread without a slot, the result is 0.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// for (name, age) in [("Ada", 35), ("Emmy", 53), ("Ada", 36)] {
    ///     ages.insert(name, age)?;
    /// }
    /// assert_eq!(ages.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.look(|_, entries| entries.count()).unwrap_or(0)
    }

    /// True if there is no entry that [`len`](Self::len) would count.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ages = pool.create(HashMap::<str, u32>::new())?;
    /// assert!(ages.is_empty());
    /// ages.insert("Ada", 36)?;
    /// assert!(!ages.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}
