//! Objects by name. For the table of names, see `pool::names`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Shared;
use crate::ShmSafe;
use crate::allocator::AllocError;
use crate::participants::process;
use crate::participants::thread::{self, NoSlot};
use crate::pool::{ObjectError, Pool, handles, names, types};
use crate::sys::memory::CommitError;

/// Why a named object was not found or made.
///
/// ```
/// use shmkit::{NamedError, Pool};
///
/// let pool = Pool::builder().create()?;
/// pool.set_name("answer", &pool.create(42_u32)?)?;
/// assert_eq!(pool.named::<u8>("answer").err(), Some(NamedError::OtherType));
/// assert_eq!(pool.named::<u32>("question").err(), Some(NamedError::NotFound));
/// let taken = pool.set_name("answer", &pool.create(43_u32)?);
/// assert_eq!(taken, Err(NamedError::NameTaken));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NamedError {
    /// There is no object of that name.
    #[error("the pool has no object of that name")]
    NotFound,
    /// The object of that name is of another type.
    #[error("the object of that name is of another type")]
    OtherType,
    /// Another object has that name already.
    #[error("the pool has an object of that name already")]
    NameTaken,
    /// The object to be named is in another pool.
    #[error("the object is in another pool")]
    OtherPool,
    /// The pool is damaged: the object's entry leads to no block of its size.
    #[error("the object of that name is damaged")]
    Damaged,
    /// The name is empty or longer than 232 bytes.
    #[error("a name has 1 to 232 bytes")]
    InvalidName,
    /// The pool already has as many names as it can have.
    #[error("the pool's table of names is full")]
    TableFull,
    /// The object already has as many names and links as can be counted: 2^32 - 1.
    #[error("too many links lead to the object")]
    TooManyLinks,
    /// The object could not be made or held.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl From<NoSlot> for NamedError {
    fn from(no_slot: NoSlot) -> Self {
        NamedError::Object(no_slot.into())
    }
}

impl From<names::EnterFailure> for NamedError {
    fn from(failure: names::EnterFailure) -> Self {
        match failure {
            names::EnterFailure::TableFull => NamedError::TableFull,
            names::EnterFailure::NoMemory(error) => error.into(),
            names::EnterFailure::TooManyLinks => NamedError::TooManyLinks,
        }
    }
}

impl From<CommitError> for NamedError {
    fn from(error: CommitError) -> Self {
        NamedError::Object(AllocError::NoMemory(error).into())
    }
}

impl Pool {
    /// Returns the object of that name.
    ///
    /// # Errors
    ///
    /// [`NamedError::NotFound`]; [`NamedError::OtherType`] if it is not of type `T`; [`NamedError::Object`] if
    /// this process cannot hold it; [`NamedError::Damaged`].
    ///
    /// ```
    /// # use shmkit::{NamedError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// pool.set_name("answer", &pool.create(42_u32)?)?;
    /// assert_eq!(*pool.named::<u32>("answer")?, 42);
    /// assert!(matches!(pool.named::<u8>("answer"), Err(NamedError::OtherType)));
    /// assert!(matches!(pool.named::<u32>("question"), Err(NamedError::NotFound)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn named<T: ShmSafe>(self, name: &str) -> Result<Shared<T>, NamedError> {
        let slot = thread::slot(self.0)?;
        process::current(self.0).ok_or(NoSlot)?;
        let hold = names::locked(self.0, slot, || self.find_named::<T>(name))?;
        let hold = hold.ok_or(NamedError::NotFound)?;
        Shared::of(hold).ok_or(NamedError::Damaged)
    }

    /// Holds the object of that name, if there is one. The caller holds the names' lock.
    fn find_named<T: ShmSafe>(self, name: &str) -> Result<Option<Arc<handles::Hold>>, NamedError> {
        let Some(index) = names::find(self.0, name) else {
            return Ok(None);
        };
        let entry = self.0.object(index).ok_or(NamedError::Damaged)?;
        if !types::is(self.0, entry.kind(), T::TYPE.fingerprint()) {
            return Err(NamedError::OtherType);
        }
        // A name keeps its object alive, and while we have the lock the name cannot go.
        let hold = handles::open(self.0, index, entry.state().generation)?;
        hold.map(Some).ok_or(NamedError::Damaged)
    }

    /// Gives an object a name, by which other processes find it. The name keeps the object alive.
    ///
    /// # Errors
    ///
    /// See [`NamedError`].
    ///
    /// # Crash behaviour
    ///
    /// The object has the name and is kept alive by it, or it does not have the name.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let primes = pool.create([2_u32, 3, 5])?;
    /// pool.set_name("primes", &primes)?;
    /// drop(primes);
    /// assert_eq!(*pool.named::<[u32; 3]>("primes")?, [2, 3, 5]);
    /// assert_eq!(pool.names(), ["primes"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_name<T: ShmSafe>(self, name: &str, object: &Shared<T>) -> Result<(), NamedError> {
        if name.is_empty() || name.len() > names::MAX_NAME {
            return Err(NamedError::InvalidName);
        }
        if object.pool() != self {
            return Err(NamedError::OtherPool);
        }
        let slot = thread::slot(self.0)?;
        names::locked(self.0, slot, || {
            if names::find(self.0, name).is_some() {
                return Err(NamedError::NameTaken);
            }
            Ok(names::enter(self.0, slot, name, object.index())?)
        })
    }

    /// Gives the name of an object to another one of the same type, in one step. Whoever looks for the
    /// name finds the one or the other.
    pub(crate) fn pass_name_on<T: ShmSafe>(
        self,
        name: &str,
        from: &Shared<T>,
        to: &Shared<T>,
    ) -> Result<(), NamedError> {
        let slot = thread::slot(self.0)?;
        let both = [from.index(), to.index()];
        let passed = names::locked(self.0, slot, || names::pass_on(self.0, slot, name, both))?;
        passed.then_some(()).ok_or(NamedError::NotFound)
    }

    /// Returns the object of that name, and makes it with `init` if there is none. If several
    /// callers make it at once, one of them wins, and all get the same object; the values of the
    /// others are dropped, so `init` may run in vain.
    ///
    /// # Errors
    ///
    /// See [`NamedError`].
    ///
    /// # Panics
    ///
    /// If `init` does. Nothing was made.
    ///
    /// # Crash behaviour
    ///
    /// The whole object exists under its name, or there is none. `init` runs while nothing is locked.
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU64, Ordering};
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// for _ in 0..2 {
    ///     let visits = pool.named_or_create("visits", || AtomicU64::new(0))?;
    ///     visits.fetch_add(1, Ordering::Relaxed);
    /// }
    /// assert_eq!(pool.named::<AtomicU64>("visits")?.load(Ordering::Relaxed), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn named_or_create<T: ShmSafe>(
        self,
        name: &str,
        init: impl FnOnce() -> T,
    ) -> Result<Shared<T>, NamedError> {
        match self.named(name) {
            Err(NamedError::NotFound) => {}
            other => return other,
        }
        let made = self.create(init()).map_err(|refused| refused.cause)?;
        loop {
            match self.set_name(name, &made) {
                Ok(()) => return Ok(made),
                Err(NamedError::NameTaken) => {}
                Err(error) => return Err(error),
            }
            match self.named(name) {
                // The other object was removed in between: ours may get the name now.
                Err(NamedError::NotFound) => {}
                other => return other,
            }
        }
    }

    /// Removes a name. The object is destroyed when nothing else holds it.
    ///
    /// # Errors
    ///
    /// [`NamedError::NotFound`]; [`NamedError::Object`] if the thread has no slot in the pool.
    ///
    /// # Crash behaviour
    ///
    /// The name is there, or it is gone. An object that nothing holds then is destroyed, if need be by
    /// others.
    ///
    /// ```
    /// # use shmkit::{NamedError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// pool.set_name("answer", &pool.create(42_u32)?)?;
    /// let handle = pool.named::<u32>("answer")?.handle();
    /// pool.remove_name("answer")?;
    /// assert_eq!(pool.remove_name("answer"), Err(NamedError::NotFound));
    /// assert!(handle.open().is_err(), "nothing else held it");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove_name(self, name: &str) -> Result<(), NamedError> {
        let slot = thread::slot(self.0)?;
        let removed = names::locked(self.0, slot, || names::remove(self.0, slot, name));
        let object = removed.ok_or(NamedError::NotFound)?;
        names::dispose(self.0, object);
        Ok(())
    }

    /// Returns every name in the pool.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// pool.set_name("one", &pool.create(1_u32)?)?;
    /// pool.set_name("two", &pool.create(2_u32)?)?;
    /// let mut names = pool.names();
    /// names.sort();
    /// assert_eq!(names, ["one", "two"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn names(self) -> Vec<String> {
        names::all(self.0)
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }
}
