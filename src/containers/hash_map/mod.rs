//! A hash map whose readers never wait. How it works: `engines::map`.
//!
//! | module | what |
//! |--------|------|
//! | `key`  | [`Key`], and how a key and a value lie in a node |
//! | `iter` | what there is in a map |
//!
//! | operation | happens at | killed before | killed after |
//! |---|---|---|---|
//! | `insert`, `update`, `get_or_insert_with` | the store of the word | the new node is freed | the old one goes to limbo |
//! | `remove` | the store of the word | nothing | the node goes to limbo |
//! | `retain`, `clear` | each node's own store | what was removed by then is removed | |
//!
//! No code of users runs under a lock or an intent: closures run on what was found under a pin, and
//! what they gave is stored only if that still is what there is. (Keys are compared under the lock:
//! as bytes, by this library.)

mod iter;
mod key;

use std::fmt;
use std::marker::{PhantomData, PhantomPinned};
use std::mem::offset_of;

use self::key::Node;
use super::View;
use super::link::Pinned;
use super::store::{ChangeError, StoreError};
use crate::ShmSafe;
use crate::engines::map::{self, Edit};
use crate::layout::arena::Arena;
use crate::layout::{Engine, Field, TypeInfo};
use crate::participants::epoch;
use crate::participants::table::Slot;
use crate::participants::thread;
use crate::primitive::{AtomicU64, Ordering};

pub use self::iter::Iter;
pub use self::key::Key;

/// The address of a map's table.
#[repr(transparent)]
struct Root(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says whose engine knows what it owns.
unsafe impl ShmSafe for Root {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("Root", Engine::Map);
    const OWNS: bool = true;
}

/// A hash map in a pool: reads never wait for anybody.
///
/// Values are never changed in place; they are replaced, and looked at through a [`View`], which
/// keeps what it shows. Keys are hashed with a secret of the map's own. The map grows and shrinks a
/// little with each change.
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
pub struct HashMap<K: ?Sized + Key, V: ShmSafe + Unpin> {
    root: Root,
    entries: PhantomData<(fn(&K), V)>,
    _in_place: PhantomPinned,
}

// SAFETY: one atomic word, listed at its place; no drop glue.
unsafe impl<K: ?Sized + Key, V: ShmSafe + Unpin> ShmSafe for HashMap<K, V> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "HashMap",
        const {
            &[
                Field::at::<Root>("root", offset_of!(Self, root)),
                Field::mention::<K::Stored>("K"),
                Field::mention::<V>("V"),
            ]
        },
    );
    const IMAGE_BOUND: bool = V::IMAGE_BOUND || <K::Stored as ShmSafe>::IMAGE_BOUND;
    const OWNS: bool = true;
}

impl<K: ?Sized + Key, V: ShmSafe + Unpin> HashMap<K, V> {
    /// An empty map. It can be filled once it is in a pool.
    #[must_use]
    pub const fn new() -> Self {
        HashMap {
            root: Root(AtomicU64::new(0)),
            entries: PhantomData,
            _in_place: PhantomPinned,
        }
    }

    #[inline]
    fn arena(&self) -> Option<Arena> {
        Arena::containing(std::ptr::from_ref(self).addr())
    }

    /// The pool and this thread's slot in it.
    #[inline]
    fn place(&self) -> Result<(Arena, &'static Slot), ChangeError> {
        let arena = self.arena().ok_or(ChangeError::NotInPool)?;
        Ok((arena, thread::slot(arena)?))
    }

    /// The node of a key. The caller is pinned.
    #[inline]
    fn find(&self, arena: Arena, key: &K) -> Option<u64> {
        let root = self.root.0.load(Ordering::SeqCst);
        let hash = map::hash(map::seed_of(arena, root)?, key.bytes());
        map::find(arena, root, hash, |node| Self::is(node, key))
    }

    /// True if the node has the key.
    #[inline]
    fn is(node: u64, key: &K) -> bool {
        // SAFETY: a node that a word of this map named while we were pinned, as we still are.
        unsafe { Node::<K, V>::bytes(node) == key.bytes() }
    }

    /// The value of a node, as long as the caller is pinned.
    #[inline]
    fn value<'a>(node: u64) -> &'a V {
        // SAFETY: as in `is`; nobody writes to it.
        unsafe { Node::<K, V>::value(node).as_ref() }
    }

    /// A view of the value of a key; `None` if there is none (or the thread has no slot in the
    /// pool). While a view is open, nothing that it could see is freed.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<View<'_, V>> {
        let (arena, slot) = self.place().ok()?;
        epoch::pin(arena, slot);
        match self.find(arena, key) {
            Some(node) => Some(View::pinned(Self::value(node), slot)),
            None => {
                epoch::unpin(slot);
                None
            }
        }
    }

    /// A copy of the value of a key.
    #[inline]
    #[must_use]
    pub fn get_copied(&self, key: &K) -> Option<V>
    where
        V: Copy,
    {
        let (arena, slot) = self.place().ok()?;
        epoch::pin(arena, slot);
        let value = self.find(arena, key).map(|node| *Self::value(node));
        epoch::unpin(slot);
        value
    }

    /// True if the key has a value.
    #[inline]
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        let Ok((arena, slot)) = self.place() else {
            return false;
        };
        epoch::pin(arena, slot);
        let found = self.find(arena, key).is_some();
        epoch::unpin(slot);
        found
    }

    /// Locks what the key belongs to. The caller is pinned.
    #[inline]
    fn edit(
        &self,
        (arena, slot): (Arena, &'static Slot),
        key: &K,
        make: bool,
    ) -> Result<Option<Edit<'static>>, ChangeError> {
        let is_it = |node| Self::is(node, key);
        let edit = map::edit(arena, slot, &self.root.0, make, key.bytes(), is_it)?;
        Ok(edit)
    }

    /// Makes `value` the key's if `may` agrees to the node that it has; that node. The caller is
    /// pinned.
    #[inline]
    fn put(
        &self,
        place: (Arena, &'static Slot),
        key: &K,
        value: V,
        may: impl Fn(Option<u64>) -> bool,
    ) -> Result<Put<V>, StoreError<V>> {
        let bytes = key.bytes();
        let refused = |value, cause: ChangeError| Err(StoreError { value, cause });
        let layout = match Node::<K, V>::layout(bytes.len()) {
            Ok(layout) => layout,
            Err(cause) => return refused(value, cause.into()),
        };
        let mut value = Some(value);
        loop {
            let edit = match self.edit(place, key, true) {
                Ok(edit) => edit,
                Err(cause) => return refused(value.expect("not stored"), cause),
            };
            let mut edit = edit.expect("a table is made");
            let found = edit.found();
            if !may(found) {
                return Ok(Put::Refused(value.expect("not stored"), found));
            }
            let fill = |node| {
                let value = value.take().expect("stored once");
                // SAFETY: a new block, of the layout for the key.
                unsafe { Node::<K, V>::write(node, bytes, value) };
            };
            match edit.put(layout, Node::<K, V>::size(bytes.len()), fill) {
                Ok(Some(node)) => {
                    return Ok(Put::Stored {
                        new: node,
                        old: found,
                    });
                }
                // The chunk is full; it has a successor now.
                Ok(None) => {}
                Err(cause) => {
                    drop(edit);
                    return refused(value.expect("not stored"), cause.into());
                }
            }
        }
    }

    /// Gives the key a value; a view of the one that it had.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The key has the new value, or what it had.
    pub fn insert(&self, key: &K, value: V) -> Result<Option<View<'_, V>>, StoreError<V>> {
        let place = match self.place() {
            Ok(place) => place,
            Err(cause) => return Err(StoreError { value, cause }),
        };
        let pinned = Pinned::new(place.0, place.1);
        match self.put(place, key, value, |_| true)? {
            Put::Stored { old: Some(old), .. } => Ok(Some(pinned.view(Self::value(old)))),
            _ => Ok(None),
        }
    }

    /// Takes the key's value away; a view of it.
    ///
    /// A full pool is no obstacle, except while the map is moving to another table: a key whose part
    /// of the table cannot be moved stays, and `None` is the answer. [`try_remove`](Self::try_remove)
    /// tells the two apart.
    ///
    /// # Crash behaviour
    ///
    /// The key has its value or none.
    pub fn remove(&self, key: &K) -> Option<View<'_, V>> {
        self.try_remove(key).ok().flatten()
    }

    /// As [`remove`](Self::remove), and says why nothing was removed.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the map is as it was.
    pub fn try_remove(&self, key: &K) -> Result<Option<View<'_, V>>, ChangeError> {
        let place = self.place()?;
        let pinned = Pinned::new(place.0, place.1);
        let removed = self.remove_if(place, key, |_| true)?;
        Ok(removed.map(|node| pinned.view(Self::value(node))))
    }

    /// Removes the key's node if `may` agrees to it. The caller is pinned.
    fn remove_if(
        &self,
        place: (Arena, &'static Slot),
        key: &K,
        may: impl Fn(u64) -> bool,
    ) -> Result<Option<u64>, ChangeError> {
        let Some(mut edit) = self.edit(place, key, false)? else {
            return Ok(None);
        };
        let found = edit.found().filter(|&node| may(node));
        if found.is_some() {
            edit.remove(Node::<K, V>::size(key.bytes().len()));
        }
        Ok(found)
    }

    /// Gives the key what `f` makes of its value: `None` for no value, both ways. A view of the value
    /// that the key had before. `f` runs again if somebody else changes the key's value meanwhile;
    /// nothing is locked while it runs.
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
    pub fn update(
        &self,
        key: &K,
        mut f: impl FnMut(Option<&V>) -> Option<V>,
    ) -> Result<Option<View<'_, V>>, ChangeError> {
        let place = self.place()?;
        loop {
            let pinned = Pinned::new(place.0, place.1);
            let seen = self.find(place.0, key);
            let unchanged = match f(seen.map(Self::value)) {
                Some(value) => {
                    let put = self.put(place, key, value, |now| now == seen);
                    let put = put.map_err(|refused| refused.cause)?;
                    matches!(put, Put::Stored { .. })
                }
                None => match seen {
                    Some(node) => self.remove_if(place, key, |now| now == node)?.is_some(),
                    None => true,
                },
            };
            if unchanged {
                return Ok(seen.map(|node| pinned.view(Self::value(node))));
            }
        }
    }

    /// Stores `new` (`None` for no value) if the key's value is `current`; a view of what it was.
    ///
    /// # Errors
    ///
    /// [`CompareError::Other`] with a view of the value that the key has instead; or why the new
    /// value was not stored. The map is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`insert`](Self::insert).
    pub fn compare_exchange(
        &self,
        key: &K,
        current: Option<&V>,
        new: Option<V>,
    ) -> Result<Option<View<'_, V>>, CompareError<'_, V>>
    where
        V: PartialEq + Clone,
    {
        let place = self.place().map_err(CompareError::Change)?;
        loop {
            let pinned = Pinned::new(place.0, place.1);
            let seen = self.find(place.0, key);
            if seen.map(Self::value) != current {
                return Err(CompareError::Other(
                    seen.map(|node| pinned.view(Self::value(node))),
                ));
            }
            let unchanged = match (&new, seen) {
                (Some(value), _) => {
                    let put = self.put(place, key, value.clone(), |now| now == seen);
                    let put = put.map_err(|refused| CompareError::Change(refused.cause))?;
                    matches!(put, Put::Stored { .. })
                }
                (None, Some(node)) => {
                    let removed = self.remove_if(place, key, |now| now == node);
                    removed.map_err(CompareError::Change)?.is_some()
                }
                (None, None) => true,
            };
            if unchanged {
                return Ok(seen.map(|node| pinned.view(Self::value(node))));
            }
        }
    }

    /// A view of the key's value, which is what `f` gives if it has none. Of several who do this at
    /// a time one stores its value, and the others get to see that.
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
    pub fn get_or_insert_with(
        &self,
        key: &K,
        f: impl FnOnce() -> V,
    ) -> Result<View<'_, V>, StoreError<V>> {
        if let Some(found) = self.get(key) {
            return Ok(found);
        }
        let value = f();
        let place = match self.place() {
            Ok(place) => place,
            Err(cause) => return Err(StoreError { value, cause }),
        };
        let pinned = Pinned::new(place.0, place.1);
        let node = match self.put(place, key, value, |now| now.is_none())? {
            Put::Stored { new, .. } => new,
            Put::Refused(_, found) => found.expect("refused because there is one"),
        };
        Ok(pinned.view(Self::value(node)))
    }

    /// Removes all entries of which `f` does not hold. Each is removed on its own; what is inserted or
    /// replaced meanwhile may stay without having been asked about.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; some may have been removed.
    ///
    /// # Panics
    ///
    /// If `f` does.
    pub fn retain(&self, mut f: impl FnMut(&K, &V) -> bool) -> Result<(), ChangeError> {
        let place = self.place()?;
        let _pinned = Pinned::new(place.0, place.1);
        for node in self.nodes(place.0) {
            // SAFETY: a node of this map, found under the pin.
            let key = unsafe { Node::<K, V>::key(node) };
            if !f(key, Self::value(node)) {
                self.remove_if(place, key, |now| now == node)?;
            }
        }
        Ok(())
    }

    /// Removes all entries, each on its own.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; some may have been removed.
    pub fn clear(&self) -> Result<(), ChangeError> {
        self.retain(|_, _| false)
    }

    fn nodes(&self, arena: Arena) -> map::Nodes {
        map::Nodes::new(arena, self.root.0.load(Ordering::SeqCst))
    }

    /// All entries, in no order. An entry that is there all the time is seen once; one that is
    /// inserted, removed or replaced meanwhile may be seen or not, also both as it was and as it is.
    ///
    /// The iterator keeps what it shows: while it is there, nothing that is removed is freed.
    /// Outside of a pool, and for a thread without a slot, there is nothing.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter::new(self)
    }

    /// How many entries there are: counted, which takes time in proportion to the size of the table.
    /// Entries that are there all the time count once, others once or not at all.
    #[must_use]
    pub fn len(&self) -> usize {
        let Ok((arena, slot)) = self.place() else {
            return 0;
        };
        let _pinned = Pinned::new(arena, slot);
        self.nodes(arena).count()
    }

    /// True if there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Ok((arena, slot)) = self.place() else {
            return true;
        };
        let _pinned = Pinned::new(arena, slot);
        self.nodes(arena).next().is_none()
    }
}

/// What came of storing a value.
enum Put<V> {
    /// It is stored in a node, in place of another.
    Stored { new: u64, old: Option<u64> },
    /// What the key has was not agreed to; the value is back.
    Refused(
        #[allow(dead_code, reason = "dropped without a lock held")] V,
        Option<u64>,
    ),
}

/// Why a [`HashMap::compare_exchange`] changed nothing.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CompareError<'a, V: ShmSafe> {
    /// The key has another value, or none.
    #[error("the key has another value")]
    Other(Option<View<'a, V>>),
    /// The new value was not stored.
    #[error(transparent)]
    Change(ChangeError),
}

impl<V: ShmSafe> fmt::Debug for CompareError<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompareError::Other(None) => f.write_str("Other(None)"),
            CompareError::Other(Some(_)) => f.write_str("Other(Some(..))"),
            CompareError::Change(cause) => f.debug_tuple("Change").field(cause).finish(),
        }
    }
}

impl<K: ?Sized + Key, V: ShmSafe + Unpin> Default for HashMap<K, V> {
    fn default() -> Self {
        HashMap::new()
    }
}

impl<K: ?Sized + Key + fmt::Debug, V: ShmSafe + Unpin + fmt::Debug> fmt::Debug for HashMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        let mut iter = self.iter();
        while let Some((key, value)) = iter.next() {
            map.entry(&key, &value);
        }
        map.finish()
    }
}
