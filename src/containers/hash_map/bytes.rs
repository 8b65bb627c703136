//! Changes of a [`HashMap`] whose values are bytes, as many as each of them has. All else is as in other maps.
//!
//! They have names of their own: if there were two `insert`s, the compiler could not tell from the first use of a map
//! what its values are.

use std::borrow::Borrow;

use super::{CompareError, HashMap, Key, KeyHasher};
use crate::containers::View;
use crate::containers::store::ChangeError;

/// A map of byte strings. They are handed over and looked at as slices, whatever their length. Text and serialised
/// values are such bytes.
///
/// ```
/// use shmkit::{HashMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let pages = pool.create(HashMap::<str, [u8]>::new())?;
/// pages.insert_bytes("/", b"<html>")?;
/// pages.insert_bytes("/numbers", &postcard::to_stdvec(&[1_u32, 2, 3])?)?;
/// assert_eq!(pages.get("/").as_deref(), Some(&b"<html>"[..]));
/// let numbers: [u32; 3] = postcard::from_bytes(&pages.get("/numbers").unwrap())?;
/// assert_eq!(numbers, [1, 2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl<K: ?Sized + Key, S: KeyHasher> HashMap<K, [u8], S> {
    /// Gives the key these bytes, and returns a view of those that it had.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The key has the bytes that it had or the new ones, all of them.
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pages = pool.create(HashMap::<str, [u8]>::new())?;
    /// assert!(pages.insert_bytes("/", b"hello")?.is_none());
    /// let old = pages.insert_bytes("/", &[b'.'; 1000])?;
    /// assert_eq!(old.as_deref(), Some(&b"hello"[..]));
    /// assert_eq!(pages.get("/").unwrap().len(), 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert_bytes(
        &self,
        key: &K,
        value: &[u8],
    ) -> Result<Option<View<'_, [u8]>>, ChangeError> {
        let (guess, _) = self.raw.guess(key);
        self.put(self.raw.place()?, (key, guess), value)
    }

    /// Changes what the key has: `f` is given the bytes (`None` if the key has none), and returns others, which replace
    /// them, or `None`, which removes the key. It runs again if another thread has changed the key's value meanwhile,
    /// or if there was no room at first. Returns a view of what the key had.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Panics
    ///
    /// If `f` does; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert_bytes`](Self::insert_bytes).
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let logs = pool.create(HashMap::<str, [u8]>::new())?;
    /// for line in ["one\n", "two\n"] {
    ///     logs.update_bytes("all", |log| Some([log.unwrap_or_default(), line.as_bytes()].concat()))?;
    /// }
    /// assert_eq!(logs.get("all").as_deref(), Some(&b"one\ntwo\n"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update_bytes<B: Borrow<[u8]>>(
        &self,
        key: &K,
        f: impl FnMut(Option<&[u8]>) -> Option<B>,
    ) -> Result<Option<View<'_, [u8]>>, ChangeError> {
        self.update_by(key, f)
    }

    /// Stores `new` (`None` for no value) if the key's bytes are `current`, and returns a view of what they were.
    ///
    /// # Errors
    ///
    /// [`CompareError::Other`], with a view of what the key has instead; or the reason why the new bytes were not
    /// stored. The map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert_bytes`](Self::insert_bytes).
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let owners = pool.create(HashMap::<u32, [u8]>::new())?;
    /// assert!(owners.compare_exchange_bytes(&7, None, Some(b"Ada")).is_ok());
    /// assert!(owners.compare_exchange_bytes(&7, Some(b"Ada"), Some(b"Grace")).is_ok());
    /// assert!(owners.compare_exchange_bytes(&7, Some(b"Ada"), None).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn compare_exchange_bytes(
        &self,
        key: &K,
        current: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Option<View<'_, [u8]>>, CompareError<'_, [u8]>> {
        self.exchange_if(key, current, new)
    }

    /// Returns a view of the key's bytes. If it has none, it gets those that `f` makes; if another thread gives it some
    /// first, the result is that thread's.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    ///
    /// # Panics
    ///
    /// If `f` does; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert_bytes`](Self::insert_bytes).
    ///
    /// ```
    /// # use shmkit::{HashMap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let squares = pool.create(HashMap::<u64, [u8]>::new())?;
    /// let text = squares.get_or_insert_bytes_with(&7, || (7 * 7).to_string().into_bytes())?;
    /// assert_eq!(*text, *b"49");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_or_insert_bytes_with<B: Borrow<[u8]>>(
        &self,
        key: &K,
        f: impl FnOnce() -> B,
    ) -> Result<View<'_, [u8]>, ChangeError> {
        match self.get(key) {
            Some(found) => Ok(found),
            None => self.put_new(key, f().borrow()),
        }
    }
}
