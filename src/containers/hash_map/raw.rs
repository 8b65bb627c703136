//! A map from keys to values: the part that `HashMap` and `MultiMap` have in common.
//!
//! If keys and values fit into a word each, they are in the table itself (a *flat* map); all others
//! are in nodes.

use std::marker::{PhantomData, PhantomPinned};

use super::hasher::KeyHasher;
use super::key::{Key, Node, key_of, word_of};
use crate::containers::Contained;
use crate::containers::link::Pinned;
use crate::containers::store::ChangeError;
use crate::containers::{Value, View};
use crate::engines::map::{self, Edit, Entries, Guess, Hints, Mode, Near, Put, Stack};
use crate::layout::arena::Arena;
use crate::layout::{Engine, TypeInfo};
use crate::participants::epoch;
use crate::participants::here::{Here, here};
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use crate::{AllocError, ShmSafe};

/// The address of a map's table.
#[repr(transparent)]
pub(in crate::containers) struct Root(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says which engine knows what it owns.
unsafe impl ShmSafe for Root {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("Root", Engine::Map);
    const OWNS: bool = true;
}

/// A map: one word, and hints. If it is `STACKED`, nodes hide others.
#[repr(C)]
pub(in crate::containers) struct Raw<K: ?Sized, V: ?Sized, S, const STACKED: bool> {
    pub(in crate::containers) root: Root,
    hints: Hints,
    keys: PhantomData<fn(&K) -> &K>,
    values: Contained<V>,
    hasher: PhantomData<fn(S) -> S>,
    _in_place: PhantomPinned,
}

/// A value that was found: in a flat map the value itself, otherwise its node's address. As long as
/// the finder is pinned, two words that are the same stand for the same value of a key (in a flat
/// map, equal values cannot be told apart).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::containers) struct Found(u64);

/// The outcome of storing a value.
pub(in crate::containers) enum Stored {
    /// The value is stored, perhaps in place of another.
    Put { new: Found, old: Option<Found> },
    /// The value that the key has was not agreed to.
    Refused(Option<Found>),
}

impl Stored {
    /// What the value has replaced.
    #[inline]
    pub(in crate::containers) fn replaced(self) -> Option<Found> {
        match self {
            Stored::Put { old, .. } => old,
            Stored::Refused(..) => None,
        }
    }
}

impl<K: ?Sized + Key, V: ?Sized + Value, S: KeyHasher, const STACKED: bool> Mode
    for Raw<K, V, S, STACKED>
{
    const FLAT: bool =
        !STACKED && matches!(K::LEN, Some(len) if len <= 8) && K::ALIGN <= 8 && V::FITS_WORD;
    const STACKED: bool = STACKED;

    #[inline]
    fn hash_of(seed: [u64; 2], key: u64) -> u64 {
        match K::LEN {
            Some(len) if Self::FLAT => S::hash(seed, &key.to_ne_bytes()[..len]),
            _ => key,
        }
    }
}

impl<K: ?Sized + Key, V: ?Sized + Value, S: KeyHasher, const STACKED: bool> Raw<K, V, S, STACKED> {
    pub(in crate::containers) const fn new() -> Self {
        Raw {
            root: Root(AtomicU64::new(0)),
            hints: Hints::new(),
            keys: PhantomData,
            values: PhantomData,
            hasher: PhantomData,
            _in_place: PhantomPinned,
        }
    }

    /// The pool and this thread's slot in it.
    #[inline]
    pub(in crate::containers) fn place(&self) -> Result<(Arena, &'static Slot), ChangeError> {
        let Here { arena, slot } = here(&self.root)?;
        Ok((arena, slot))
    }

    /// What the engine needs to know of a key.
    #[inline(always)]
    fn words_of(seed: [u64; 2], key: &[u8]) -> Guess {
        let hash = S::hash(seed, key);
        let key = if Self::FLAT { word_of(key) } else { hash };
        Guess { seed, hash, key }
    }

    /// Hashes a key, and begins to fetch its line. It is best called before anything else, and is inlined, so
    /// that what is known stays in registers.
    #[inline(always)]
    pub(in crate::containers) fn guess(&self, key: &K) -> (Guess, Near) {
        let guess = Self::words_of(self.hints.seed(), key.bytes());
        (guess, self.hints.fetch(guess.hash))
    }

    /// The value that a key has. The caller is pinned.
    #[inline(always)]
    pub(in crate::containers) fn find(&self, arena: Arena, key: &K) -> Option<Found> {
        self.find_guessed(arena, key, self.guess(key))
    }

    /// The same, after [`guess`](Self::guess).
    #[inline(always)]
    pub(in crate::containers) fn find_guessed(
        &self,
        arena: Arena,
        key: &K,
        guess: (Guess, Near),
    ) -> Option<Found> {
        let root = self.root.0.load(Ordering::SeqCst);
        let bytes = key.bytes();
        // Captured by value: if the key is found at once, none of this has to be in memory.
        let words = move |seed| Self::words_of(seed, bytes);
        let is_it = move |value| Self::is(arena, value, bytes);
        map::find(arena, root, guess, words, is_it).map(Found)
    }

    /// True if a slot that begins with a key's first word is the key's.
    #[inline]
    fn is(arena: Arena, value: u64, key: &[u8]) -> bool {
        // SAFETY: a node that a word of this map named while we were pinned, as we still are.
        Self::FLAT || unsafe { Node::<K, V, STACKED>::bytes(arena, value) == Some(key) }
    }

    /// The value that was found. It is valid as long as the caller is pinned.
    #[inline]
    pub(in crate::containers) fn value(found: &Found) -> &V {
        if Self::FLAT {
            // SAFETY: the word begins with the value's bytes, and is aligned for it, by `FLAT`.
            unsafe { V::at((&raw const found.0).cast()) }
        } else {
            Self::in_node(*found)
        }
    }

    #[inline]
    fn in_node<'a>(found: Found) -> &'a V {
        // SAFETY: as in `is`, and it has a key; nobody writes to it.
        unsafe { V::at(Node::<K, V, STACKED>::value(found.0)) }
    }

    /// The nodes of a key whose node on top is `top` (0 for none), that one first. The caller is
    /// pinned from before it found `top` until it is done.
    pub(in crate::containers) fn stack(arena: Arena, top: u64) -> Stack {
        const { assert!(STACKED) };
        Stack::new(arena, top)
    }

    /// The value in a node of a [`stack`](Self::stack), valid as long as the caller is pinned;
    /// `None` if no node can be at that address.
    #[inline]
    pub(in crate::containers) fn node_value<'a>(arena: Arena, node: u64) -> Option<&'a V> {
        const { assert!(STACKED) };
        // SAFETY: as in `is`.
        let is_whole = unsafe { Node::<K, V, STACKED>::bytes(arena, node).is_some() };
        is_whole.then(|| Self::in_node(Found(node)))
    }

    /// A view of a value that was found under the pin.
    #[inline]
    pub(in crate::containers) fn view<'a>(pinned: Pinned, found: Found) -> View<'a, V> {
        if Self::FLAT {
            Self::copy(found)
        } else {
            // SAFETY: as in `in_node`, as long as it is pinned.
            unsafe { pinned.view(Node::<K, V, STACKED>::value(found.0).cast()) }
        }
    }

    /// A view of a value that was found in a flat map.
    #[inline]
    pub(in crate::containers) fn copy<'a>(found: Found) -> View<'a, V> {
        assert!(Self::FLAT);
        // SAFETY: the word of a plain value, by `FLAT`.
        unsafe { View::of_word(found.0) }
    }

    /// The key of an entry, valid as long as the caller is pinned; `None` for what cannot be an
    /// entry, which has no value either.
    #[inline]
    pub(in crate::containers) fn key(arena: Arena, entry: &map::EntryWords) -> Option<&K> {
        // SAFETY: a flat map's slots begin with the key's bytes, and are aligned for it by `FLAT`; a
        // node of this map was found while we were pinned, as we still are.
        unsafe {
            match K::LEN {
                Some(len) if Self::FLAT => key_of(&entry.key, len),
                _ => Node::<K, V, STACKED>::key(arena, entry.value),
            }
        }
    }

    pub(in crate::containers) fn found(entry: &map::EntryWords) -> Found {
        Found(entry.value)
    }

    /// The address of the node that was found, in a map that has nodes.
    pub(in crate::containers) fn node(found: Found) -> u64 {
        const { assert!(STACKED) };
        found.0
    }

    /// Has `with` change something under the lock of the chunk that the key belongs to. The caller
    /// is pinned.
    #[inline]
    fn edit<R>(
        &self,
        (arena, slot): (Arena, &'static Slot),
        (key, guess): (&[u8], Guess),
        make: bool,
        with: impl FnOnce(&mut Edit<'_, Self>) -> R,
    ) -> Result<Option<R>, ChangeError> {
        let words = |seed| Self::words_of(seed, key);
        let is_it = |value| Self::is(arena, value, key);
        let map = (&self.root.0, &self.hints);
        Ok(map::edit(
            arena,
            slot,
            map,
            make,
            guess,
            (words, is_it),
            with,
        )?)
    }

    /// Gives the key of a flat map a value if `may` agrees to the one that it has. Gives `None`, and does nothing, if
    /// this is not the simple and common case.
    #[inline]
    pub(in crate::containers) fn put_at_once(
        &self,
        (arena, slot): (Arena, &'static Slot),
        (guess, near): (Guess, Near),
        value: &V,
        may: impl Fn(Option<Found>) -> bool,
    ) -> Option<Stored> {
        if !Self::FLAT || near.is_none() {
            return None;
        }
        let word = Self::word_of_value(value);
        epoch::pin(arena, slot);
        let root = self.root.0.load(Ordering::SeqCst);
        let may = |old: Option<u64>| may(old.map(Found));
        let put = map::put_at_once((arena, slot), root, near, (guess, word), may);
        epoch::unpin(slot);
        let (new, old) = (Found(word), put?.map(Found));
        Some(Stored::Put { new, old })
    }

    /// Gives the key a value if `may` agrees to the one that it has. The caller is pinned.
    #[inline]
    pub(in crate::containers) fn put(
        &self,
        place: (Arena, &'static Slot),
        (key, guess): (&K, Guess),
        value: &V,
        put: Put,
        may: impl Fn(Option<Found>) -> bool,
    ) -> Result<Stored, ChangeError> {
        let bytes = key.bytes();
        let layout = Node::<K, V, STACKED>::layout(bytes.len(), value)?;
        loop {
            let done = self.edit(place, (bytes, guess), true, |edit| {
                let old = edit.found().map(Found);
                if !may(old) {
                    self.is_what_is_found(place.0, key, old)?;
                    return Ok(Some((None, old)));
                }
                let new = if Self::FLAT {
                    let word = Self::word_of_value(value);
                    edit.put_flat(word).map(|done| done.then_some(word))
                } else {
                    let fill = |node| {
                        // SAFETY: a new block, of the layout for the key and the value.
                        unsafe { Node::<K, V, STACKED>::write(node, bytes, value) };
                    };
                    edit.put(layout, Self::size_of(old, bytes), put, fill)
                };
                new.map(|new| new.map(|new| (Some(Found(new)), old)))
            })?;
            match done.transpose()?.flatten() {
                Some((Some(new), old)) => return Ok(Stored::Put { new, old }),
                Some((None, old)) => return Ok(Stored::Refused(old)),
                // The chunk was full; the table has a successor now.
                None => {}
            }
        }
    }

    /// The word of a value of a flat map.
    #[inline]
    fn word_of_value(value: &V) -> u64 {
        const { assert!(!Self::FLAT || V::FITS_WORD) };
        let first = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: the value's own bytes, all of them initialised, as it is plain by `FLAT`.
        word_of(unsafe { std::slice::from_raw_parts(first, V::SIZE) })
    }

    /// The size of the node that the key has; 0 if there is none.
    #[inline]
    fn size_of(found: Option<Found>, key: &[u8]) -> usize {
        found.map_or(0, |found| {
            // SAFETY: a node that was found, under the pin, to have this key.
            unsafe { Node::<K, V, STACKED>::size_of(found.0, key.len()) }
        })
    }

    /// Removes the key; if `only` is given, only if the key has that value. The caller is pinned.
    pub(in crate::containers) fn remove_if(
        &self,
        place: (Arena, &'static Slot),
        key: &K,
        only: Option<Found>,
    ) -> Result<Option<Found>, ChangeError> {
        let bytes = key.bytes();
        let (guess, _) = self.guess(key);
        let removed = self.edit(place, (bytes, guess), false, |edit| {
            let found = edit.found().map(Found);
            if only.is_some() && found != only {
                self.is_what_is_found(place.0, key, found)?;
                return Ok(None);
            }
            if found.is_none() {
                return Ok(None);
            }
            if STACKED {
                edit.pop(Self::size_of(found, bytes));
            } else if Self::FLAT {
                edit.remove(0);
            } else {
                edit.remove(Self::size_of(found, bytes));
            }
            Ok(found)
        })?;
        let removed: Option<Result<_, AllocError>> = removed;
        Ok(removed.transpose()?.flatten())
    }

    /// Removes all values of the key, while nobody else changes them. The caller is pinned.
    pub(in crate::containers) fn remove_all(
        &self,
        place: (Arena, &'static Slot),
        key: &K,
    ) -> Result<(), ChangeError> {
        const { assert!(STACKED) };
        let bytes = key.bytes();
        let (guess, _) = self.guess(key);
        let removed = self.edit(place, (bytes, guess), false, |edit| {
            // All values of a stacked map have the same size.
            edit.pop_all(Self::size_of(edit.found().map(Found), bytes));
        });
        removed.map(drop)
    }

    /// Checks that a search, under the key's lock, finds what the key has. In a damaged table it may not; a
    /// caller that goes by what a search has found, and tries again if the key has something else, would then
    /// never end.
    #[cold]
    fn is_what_is_found(
        &self,
        arena: Arena,
        key: &K,
        has: Option<Found>,
    ) -> Result<(), AllocError> {
        if self.find(arena, key) == has {
            Ok(())
        } else {
            Err(map::DAMAGED)
        }
    }

    /// What `f` makes of the entries; `None` for a map that is not in a pool, and for a thread
    /// without a slot.
    pub(in crate::containers) fn look<R>(
        &self,
        f: impl FnOnce(Arena, Entries<Self>) -> R,
    ) -> Option<R> {
        let (arena, slot) = self.place().ok()?;
        let _pinned = Pinned::new(arena, slot);
        Some(f(arena, self.entries(arena)))
    }

    /// True if there is no entry.
    pub(in crate::containers) fn is_empty(&self) -> bool {
        self.look(|_, mut entries| entries.next().is_none())
            .unwrap_or(true)
    }

    pub(in crate::containers) fn entries(&self, arena: Arena) -> Entries<Self> {
        Entries::new(arena, self.root.0.load(Ordering::SeqCst))
    }
}
