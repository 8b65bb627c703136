//! Changes of a map, for all kinds of values: they are given by reference, and copied into the map.
//!
//! Closures run on what was found under a pin, and what they return is stored only if the map still has what was
//! found.

use std::borrow::Borrow;

use super::{CompareError, Found, HashMap, Key, KeyHasher, Pinned, Raw, Stored};
use crate::Movable;
use crate::containers::store::{ChangeError, with_room_for};
use crate::containers::{Value, View};
use crate::engines::limbo;
use crate::engines::map::{Guess, Mode, Put};
use crate::layout::arena::Arena;
use crate::participants::epoch;
use crate::participants::table::Slot;

/// The pool of a map, and the caller's slot in it.
pub(super) type Place = (Arena, &'static Slot);

impl<K: ?Sized + Key, V: ?Sized + Value + Movable, S: KeyHasher> HashMap<K, V, S> {
    #[inline]
    pub(super) fn view<'a>(pinned: Pinned, found: Found) -> View<'a, V> {
        Raw::<K, V, S, false>::view(pinned, found)
    }

    #[inline]
    pub(super) fn value(found: &Found) -> &V {
        Raw::<K, V, S, false>::value(found)
    }

    /// Gives the key a value, whatever it has.
    #[inline]
    pub(super) fn put(
        &self,
        place: Place,
        key: (&K, Guess),
        value: &V,
    ) -> Result<Option<View<'_, V>>, ChangeError> {
        let put = || self.raw.put(place, key, value, Put::Replace, |_| true);
        with_room_for(place.0, || {
            if Raw::<K, V, S, false>::FLAT {
                // As in `get`.
                epoch::pin(place.0, place.1);
                let stored = put();
                epoch::unpin(place.1);
                limbo::collect_after_look(place.0, place.1);
                return Ok(stored?.replaced().map(Raw::<K, V, S, false>::copy));
            }
            let pinned = Pinned::new(place.0, place.1);
            let old = put()?.replaced();
            Ok(old.map(|old| Self::view(pinned, old)))
        })
    }

    /// Gives the key a value if it has none, and returns a view of the one that it has then.
    pub(super) fn put_new(&self, key: &K, value: &V) -> Result<View<'_, V>, ChangeError> {
        let place = self.raw.place()?;
        let (guess, _) = self.raw.guess(key);
        with_room_for(place.0, || {
            let pinned = Pinned::new(place.0, place.1);
            let none = |now: Option<Found>| now.is_none();
            let stored = self
                .raw
                .put(place, (key, guess), value, Put::Replace, none)?;
            let found = match stored {
                Stored::Put { new, .. } => new,
                Stored::Refused(found) => found.expect("refused because there is one"),
            };
            Ok(Self::view(pinned, found))
        })
    }

    /// Gives the key a value if it still has what was seen. The caller is pinned.
    pub(super) fn put_seen(
        &self,
        place: Place,
        key: &K,
        value: &V,
        seen: Option<Found>,
    ) -> Result<Stored, ChangeError> {
        let guess = self.raw.guess(key);
        let unchanged = |now| now == seen;
        if let Some(stored) = self.raw.put_at_once(place, guess, value, unchanged) {
            return Ok(stored);
        }
        self.raw
            .put(place, (key, guess.0), value, Put::Replace, unchanged)
    }

    /// Gives the key another value, or none, if it still has what was seen; false if it has not. The caller is pinned.
    fn exchange_seen(
        &self,
        place: Place,
        key: &K,
        seen: Option<Found>,
        new: Option<&V>,
    ) -> Result<bool, ChangeError> {
        match (new, seen) {
            (Some(value), _) => {
                let stored = self.put_seen(place, key, value, seen)?;
                Ok(matches!(stored, Stored::Put { .. }))
            }
            (None, Some(_)) => Ok(self.raw.remove_if(place, key, seen)?.is_some()),
            (None, None) => Ok(true),
        }
    }

    /// As [`update`](Self::update), for a closure that gives what a value can be borrowed from.
    pub(super) fn update_by<B: Borrow<V>>(
        &self,
        key: &K,
        mut f: impl FnMut(Option<&V>) -> Option<B>,
    ) -> Result<Option<View<'_, V>>, ChangeError> {
        let place = self.raw.place()?;
        with_room_for(place.0, || {
            loop {
                let pinned = Pinned::new(place.0, place.1);
                let seen = self.raw.find(place.0, key);
                let new = f(seen.as_ref().map(Self::value));
                if self.exchange_seen(place, key, seen, new.as_ref().map(B::borrow))? {
                    return Ok(seen.map(|seen| Self::view(pinned, seen)));
                }
            }
        })
    }

    /// As [`compare_exchange`](Self::compare_exchange), for a value by reference.
    pub(super) fn exchange_if(
        &self,
        key: &K,
        current: Option<&V>,
        new: Option<&V>,
    ) -> Result<Option<View<'_, V>>, CompareError<'_, V>>
    where
        V: PartialEq,
    {
        let place = self.raw.place().map_err(CompareError::Change)?;
        let attempt = || {
            loop {
                let pinned = Pinned::new(place.0, place.1);
                let seen = self.raw.find(place.0, key);
                let is_current = seen.as_ref().map(Self::value) == current;
                if !is_current || self.exchange_seen(place, key, seen, new)? {
                    return Ok((is_current, seen.map(|seen| Self::view(pinned, seen))));
                }
            }
        };
        match with_room_for(place.0, attempt) {
            Ok((true, was)) => Ok(was),
            Ok((false, other)) => Err(CompareError::Other(other)),
            Err(cause) => Err(CompareError::Change(cause)),
        }
    }
}
