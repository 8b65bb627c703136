//! A map from keys to nodes: what `HashMap` and `MultiMap` have in common.

use std::marker::{PhantomData, PhantomPinned};

use super::key::{Key, Node};
use crate::ShmSafe;
use crate::containers::store::{ChangeError, StoreError};
use crate::engines::map::{self, Edit, Make, Put};
use crate::layout::arena::Arena;
use crate::layout::{Engine, TypeInfo};
use crate::participants::table::Slot;
use crate::participants::thread;
use crate::primitive::{AtomicU64, Ordering};

/// The address of a map's table.
#[repr(transparent)]
pub(in crate::containers) struct Root(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says whose engine knows what it owns.
unsafe impl ShmSafe for Root {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("Root", Engine::Map);
    const OWNS: bool = true;
}

/// The one word of a map. `STACKED`: nodes hide others.
#[repr(C)]
pub(in crate::containers) struct Raw<K: ?Sized, V, const STACKED: bool> {
    pub(in crate::containers) root: Root,
    keys: PhantomData<fn(&K)>,
    values: PhantomData<V>,
    _in_place: PhantomPinned,
}

/// What came of storing a value.
pub(in crate::containers) enum Stored<V> {
    /// It is stored in a node, in place of another.
    Put { new: u64, old: Option<u64> },
    /// What the key has was not agreed to; the value is back.
    Refused(
        #[allow(dead_code, reason = "dropped without a lock held")] V,
        Option<u64>,
    ),
}

impl<K: ?Sized + Key, V: ShmSafe + Unpin, const STACKED: bool> Raw<K, V, STACKED> {
    pub(in crate::containers) const fn new() -> Self {
        Raw {
            root: Root(AtomicU64::new(0)),
            keys: PhantomData,
            values: PhantomData,
            _in_place: PhantomPinned,
        }
    }

    #[inline]
    fn arena(&self) -> Option<Arena> {
        Arena::containing(std::ptr::from_ref(self).addr())
    }

    /// The pool and this thread's slot in it.
    #[inline]
    pub(in crate::containers) fn place(&self) -> Result<(Arena, &'static Slot), ChangeError> {
        let arena = self.arena().ok_or(ChangeError::NotInPool)?;
        Ok((arena, thread::slot(arena)?))
    }

    /// The node of a key. The caller is pinned.
    #[inline]
    pub(in crate::containers) fn find(&self, arena: Arena, key: &K) -> Option<u64> {
        let root = self.root.0.load(Ordering::SeqCst);
        let hash = map::hash(map::seed_of(arena, root)?, key.bytes());
        map::find(arena, root, hash, |node| Self::is(node, key))
    }

    /// True if the node has the key.
    #[inline]
    fn is(node: u64, key: &K) -> bool {
        // SAFETY: a node that a word of this map named while we were pinned, as we still are.
        unsafe { Node::<K, V, STACKED>::bytes(node) == key.bytes() }
    }

    /// The value of a node, as long as the caller is pinned.
    #[inline]
    pub(in crate::containers) fn value<'a>(node: u64) -> &'a V {
        // SAFETY: as in `is`; nobody writes to it.
        unsafe { Node::<K, V, STACKED>::value(node).as_ref() }
    }

    /// Locks what the key belongs to. The caller is pinned.
    #[inline]
    fn edit(
        &self,
        (arena, slot): (Arena, &'static Slot),
        key: &K,
        make: Make,
    ) -> Result<Option<Edit<'_>>, ChangeError> {
        let is_it = |node| Self::is(node, key);
        let edit = map::edit(arena, slot, &self.root.0, make, key.bytes(), is_it)?;
        Ok(edit)
    }

    /// Gives the key a node with `value` if `may` agrees to the node that it has. The caller
    /// is pinned.
    #[inline]
    pub(in crate::containers) fn put(
        &self,
        place: (Arena, &'static Slot),
        key: &K,
        value: V,
        put: Put,
        may: impl Fn(Option<u64>) -> bool,
    ) -> Result<Stored<V>, StoreError<V>> {
        let bytes = key.bytes();
        let refused = |value, cause: ChangeError| Err(StoreError { value, cause });
        let layout = match Node::<K, V, STACKED>::layout(bytes.len()) {
            Ok(layout) => layout,
            Err(cause) => return refused(value, cause.into()),
        };
        let mut value = Some(value);
        loop {
            let edit = match self.edit(
                place,
                key,
                if STACKED { Make::Stacked } else { Make::Plain },
            ) {
                Ok(edit) => edit,
                Err(cause) => return refused(value.expect("not stored"), cause),
            };
            let mut edit = edit.expect("a table is made");
            let found = edit.found();
            if !may(found) {
                return Ok(Stored::Refused(value.expect("not stored"), found));
            }
            let fill = |node| {
                let value = value.take().expect("stored once");
                // SAFETY: a new block, of the layout for the key.
                unsafe { Node::<K, V, STACKED>::write(node, bytes, value) };
            };
            match edit.put(layout, Node::<K, V, STACKED>::size(bytes.len()), put, fill) {
                Ok(Some(node)) => {
                    return Ok(Stored::Put {
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

    /// Removes the key's node if `may` agrees to it. The caller is pinned.
    pub(in crate::containers) fn remove_if(
        &self,
        place: (Arena, &'static Slot),
        key: &K,
        may: impl Fn(u64) -> bool,
    ) -> Result<Option<u64>, ChangeError> {
        let Some(mut edit) = self.edit(place, key, Make::Nothing)? else {
            return Ok(None);
        };
        let found = edit.found().filter(|&node| may(node));
        if found.is_some() {
            let size = Node::<K, V, STACKED>::size(key.bytes().len());
            if STACKED {
                edit.pop(size);
            } else {
                edit.remove(size);
            }
        }
        Ok(found)
    }

    pub(in crate::containers) fn nodes(&self, arena: Arena) -> map::Nodes {
        map::Nodes::new(arena, self.root.0.load(Ordering::SeqCst))
    }
}
