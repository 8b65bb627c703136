//! Looking at what there is in a map, without changing it: what is found is found under a pin.

use super::{HashMap, Iter, Key, KeyHasher, Raw};
use crate::containers::View;
use crate::containers::link::Pinned;
use crate::engines::map::Mode;
use crate::participants::epoch;
use crate::{Movable, ShmSafe};

impl<K: ?Sized + Key, V: ShmSafe + Movable, S: KeyHasher> HashMap<K, V, S> {
    /// A view of the value of a key; `None` if there is none (or the thread has no slot in the
    /// pool). While a view is open, nothing that it could see is freed.
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
            // A copy, for which the pin goes on no longer than this: so it is no guard.
            epoch::pin(arena, slot);
            let found = self.raw.find_guessed(arena, key, guess);
            epoch::unpin(slot);
            return found.map(Raw::<K, V, S, false>::copy);
        }
        let pinned = Pinned::new(arena, slot);
        let found = self.raw.find_guessed(arena, key, guess)?;
        Some(Self::view(pinned, found))
    }

    /// A copy of the value of a key.
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

    /// True if the key has a value. Outside of a pool, and for a thread without a slot, none has.
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

    /// All entries, in no order. An entry that is there all the time is seen once; one that is
    /// inserted, removed or replaced meanwhile may be seen or not, also both as it was and as it is.
    ///
    /// The iterator keeps what it shows: while it is there, nothing that is removed is freed. It shows each entry
    /// until it goes on to the next one, so a `for` loop does not take it: see also [`for_each`](Self::for_each) and
    /// [`iter_copied`](Self::iter_copied). Outside of a pool, and for a thread without a slot, there is nothing.
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

    /// Calls `f` with every entry, as [`iter`](Self::iter) finds them. It may use the map.
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

    /// Copies of all entries, as [`iter`](Self::iter) finds them.
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

    /// How many entries there are: counted, which takes time in proportion to the size of the table.
    /// Entries that are there all the time count once; others count or not, one that is removed and inserted again
    /// perhaps twice. Outside of a pool, and for a thread without a slot, there are none.
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

    /// True if there is no entry, as [`len`](Self::len) counts.
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
