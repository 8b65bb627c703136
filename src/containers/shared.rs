//! Access to objects from outside of the pool: [`Shared`], a process's counted handle, and
//! [`Handle`], a descriptor that can be stored and sent.

use std::alloc::Layout;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, offset_of};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Key;
use crate::layout::arena::Arena;
use crate::layout::local::{self, Local};
use crate::layout::{Field, TypeInfo};
use crate::participants::thread::{self, NoSlot};
use crate::pool::handles::{self, Hold};
use crate::pool::{ObjectError, OutOfMemory, Pool, objects, types};
use crate::sys::memory::CommitError;
use crate::{KillSafe, ShmSafe};

/// A handle of an object in a pool. It keeps the object alive and gives access to it.
///
/// Handles are counted in the process's own memory, so cloning or dropping one does not touch the
/// pool, unless it is the process's last handle of the object. A forked child has its parent's
/// handles as its own.
///
/// # Crash behaviour
///
/// What a process held is released when the dead process is recovered.
///
/// ```
/// use shmkit::Pool;
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// let pool = Pool::builder().create()?;
/// let counter = pool.create(AtomicU32::new(1))?;
/// let again = counter.clone();
/// again.fetch_add(1, Ordering::Relaxed);
/// assert_eq!(counter.load(Ordering::Relaxed), 2);
/// // Printed, it is the object.
/// assert_eq!(pool.create(7)?.to_string(), "7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Shared<T: ShmSafe> {
    value: NonNull<T>,
    hold: Arc<Hold>,
}

// SAFETY: it gives shared access to a `T` that is Sync (by `ShmSafe`), and the hold is Send and
// Sync.
unsafe impl<T: ShmSafe> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: ShmSafe> Sync for Shared<T> {}

impl<T: ShmSafe> Shared<T> {
    /// True if this process has no other handle of the object.
    pub(crate) fn is_the_only_one_here(&self) -> bool {
        Arc::strong_count(&self.hold) == 1
    }

    /// The handle of an object of type `T` that is held; `None` if the pool is damaged, so that the
    /// object's entry leads to no place for a `T`.
    pub(crate) fn of(hold: Arc<Hold>) -> Option<Self> {
        let value = objects::address_of(hold.arena, hold.index, Layout::new::<T>())?.cast();
        Some(Shared { value, hold })
    }

    /// Returns a descriptor of the object. It does not keep the object alive.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let object = pool.create(7_u32)?;
    /// let handle = object.handle();
    /// assert_eq!(*handle.open()?, 7);
    /// drop(object);
    /// assert!(handle.open().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle<T> {
        let uuid = self.pool().uuid();
        Handle {
            uuid: [uuid as u64, (uuid >> 64) as u64],
            index: self.hold.index as u32,
            generation: self.hold.generation,
            target: PhantomData,
        }
    }

    /// True if two handles are of the same object.
    ///
    /// ```
    /// # use shmkit::{Pool, Shared};
    /// # let pool = Pool::builder().create()?;
    /// let (one, other) = (pool.create(1_u8)?, pool.create(1_u8)?);
    /// assert!(Shared::ptr_eq(&one, &one.clone()));
    /// assert!(!Shared::ptr_eq(&one, &other));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        // The descriptors are compared, as an object of size 0 has no address of its own.
        this.handle() == other.handle()
    }

    /// The pool that the object is in.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let object = pool.create(7_u32)?;
    /// let neighbour = object.pool().create(8_u32)?;
    /// assert_eq!((object.pool(), neighbour.pool()), (pool, pool));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pool(&self) -> Pool {
        Pool(self.hold.arena)
    }

    pub(crate) fn index(&self) -> usize {
        self.hold.index
    }
}

impl<T: ShmSafe> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared {
            value: self.value,
            hold: Arc::clone(&self.hold),
        }
    }
}

impl<T: ShmSafe> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the hold keeps the object alive, its type was checked when the handle was made,
        // and `T` may be shared between processes.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ShmSafe + fmt::Display> fmt::Display for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ShmSafe + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Pool {
    /// Puts a value into the pool, as an object that lives as long as somebody has a handle of it,
    /// or a link leads to it.
    ///
    /// # Errors
    ///
    /// The value is given back, with the reason.
    ///
    /// # Crash behaviour
    ///
    /// The object exists, held by this process, or it does not.
    ///
    /// ```
    /// # use shmkit::{Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let object = pool.create((Mutex::new(1_u64), [0_u8; 100]))?;
    /// let (number, bytes) = &*object;
    /// *number.lock().unwrap() += bytes.len() as u64;
    /// assert_eq!(*number.lock().unwrap(), 101);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create<T: ShmSafe>(self, value: T) -> Result<Shared<T>, OutOfMemory<T>> {
        let value = ManuallyDrop::new(value);
        let made = self.create_with(Layout::new::<T>(), |place| {
            // SAFETY: a new block of `T`'s layout, which nobody else has; the value is moved there,
            // and is not used again once the object is made.
            unsafe {
                place
                    .cast::<T>()
                    .copy_from_nonoverlapping(NonNull::from(&*value), 1)
            };
        });
        made.map_err(|cause| OutOfMemory {
            value: ManuallyDrop::into_inner(value),
            cause,
        })
    }

    /// Makes an object whose value `init` writes.
    pub(crate) fn create_with<T: ShmSafe>(
        self,
        layout: Layout,
        init: impl FnOnce(NonNull<u8>),
    ) -> Result<Shared<T>, ObjectError> {
        let slot = thread::slot(self.0)?;
        let kind = types::index_of::<T>(self.0, slot)?;
        let new = objects::NewObject { kind, layout };
        let hold = objects::create(self.0, slot, new, init)?;
        Ok(Shared::of(hold).expect("a block of the layout was made"))
    }
}

/// A descriptor of an object, which can be copied, stored in pools, and sent to other processes. It
/// does not keep the object alive; opening it says whether the object still exists.
///
/// A descriptor names the pool by its uuid, and the object by a number that is given to another
/// object only after 2^32 objects in the same place of the table. So it never leads to another
/// object.
///
/// ```
/// use shmkit::{Handle, Pool};
///
/// let pool = Pool::builder().create()?;
/// let object = pool.create(7_u8)?;
/// let handle: Handle<u8> = object.handle();
/// assert_eq!(*handle.open()?, 7);
/// drop(object);
/// assert!(handle.open().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It can be the key of maps, in pools and outside of them:
///
/// ```
/// use std::collections::HashSet;
/// use shmkit::{Handle, HashMap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let (one, two) = (pool.create(1_u8)?, pool.create(2_u8)?);
/// let uses = pool.create(HashMap::<Handle<u8>, u64>::new())?;
/// uses.insert(&one.handle(), 5)?;
/// assert_eq!(uses.get_copied(&one.clone().handle()), Some(5));
/// assert_eq!(uses.get_copied(&two.handle()), None);
/// assert!(HashSet::from([one.handle()]).contains(&one.handle()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
#[repr(C)]
pub struct Handle<T: ShmSafe> {
    uuid: [u64; 2],
    index: u32,
    generation: u32,
    #[serde(skip)]
    target: PhantomData<fn() -> T>,
}

// SAFETY: plain numbers, which mean the same everywhere; no drop glue.
unsafe impl<T: ShmSafe> ShmSafe for Handle<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Handle",
        const {
            &[
                Field::at::<[u64; 2]>("uuid", offset_of!(Self, uuid)),
                Field::at::<u32>("index", offset_of!(Self, index)),
                Field::at::<u32>("generation", offset_of!(Self, generation)),
                Field::mention::<T>("target"),
            ]
        },
    );
}
// SAFETY: any numbers form a descriptor; opening one checks every part.
unsafe impl<T: ShmSafe> KillSafe for Handle<T> {}

impl<T: ShmSafe> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ShmSafe> Copy for Handle<T> {}

impl<T: ShmSafe> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}.{})", self.index, self.generation)
    }
}

impl<T: ShmSafe> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.uuid, self.index, self.generation) == (other.uuid, other.index, other.generation)
    }
}

impl<T: ShmSafe> Eq for Handle<T> {}

impl<T: ShmSafe> Hash for Handle<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.uuid, self.index, self.generation).hash(state);
    }
}

// SAFETY: 24 bytes of integers without padding, which are equal exactly if two descriptors are the
// same; any bytes form a descriptor.
unsafe impl<T: ShmSafe> Key for Handle<T> {
    type Stored = Self;
    const LEN: Option<usize> = Some(size_of::<Self>());
    const ALIGN: usize = align_of::<Self>();

    fn bytes(&self) -> &[u8] {
        const { assert!(size_of::<Self>() == size_of::<[u64; 2]>() + 2 * size_of::<u32>()) };
        // SAFETY: the value's own bytes, all of them initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    unsafe fn from_bytes(bytes: &[u8]) -> &Self {
        // SAFETY: by the caller's promise they are a descriptor's bytes, aligned.
        unsafe { &*bytes.as_ptr().cast() }
    }
}

/// Why a descriptor was not opened.
///
/// ```
/// use shmkit::{HandleError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let object = pool.create(7_u32)?;
/// let handle = object.handle();
/// drop(object);
/// // Perhaps in the same place.
/// let another = pool.create(8_u32)?;
/// assert_eq!(handle.open().err(), Some(HandleError::Gone));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HandleError {
    /// This process has not attached the pool that the object is in.
    #[error("the object's pool is not attached")]
    PoolNotAttached,
    /// The object has been destroyed.
    #[error("the object is gone")]
    Gone,
    /// The object is of another type: the descriptor was made from other bytes, not from a handle
    /// of the object.
    #[error("the object is of another type")]
    OtherType,
    /// The pool is damaged: the object's entry leads to no block of its size.
    #[error("the object is damaged")]
    Damaged,
    /// There is no memory to note that the process holds the object.
    #[error(transparent)]
    NoMemory(#[from] CommitError),
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

impl<T: ShmSafe> Handle<T> {
    /// Returns a handle of the object, if it still exists.
    ///
    /// # Errors
    ///
    /// See [`HandleError`].
    ///
    /// ```
    /// # use shmkit::{HandleError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let object = pool.create(7_u32)?;
    /// let handle = object.handle();
    /// let again = handle.open()?;
    /// drop(object);
    /// assert_eq!(*again, 7, "this one keeps it alive");
    /// drop(again);
    /// assert_eq!(handle.open().err(), Some(HandleError::Gone));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(self) -> Result<Shared<T>, HandleError> {
        self.open_if(Local::is_shown)
    }

    /// The same for an object whose pool may be one that is not shown to the user.
    pub(crate) fn open_hidden(self) -> Result<Shared<T>, HandleError> {
        self.open_if(Local::is_mapped)
    }

    fn open_if(self, is_meant: impl Fn(&Local) -> bool) -> Result<Shared<T>, HandleError> {
        let is_it = |&arena: &Arena| {
            let local = local::of(arena);
            local.uuid() == self.uuid && is_meant(local)
        };
        let arena = local::mapped()
            .find(is_it)
            .ok_or(HandleError::PoolNotAttached)?;
        thread::slot(arena)?;
        let hold =
            handles::open(arena, self.index as usize, self.generation)?.ok_or(HandleError::Gone)?;
        if !Pool(arena).is_type::<T>(hold.index) {
            return Err(HandleError::OtherType);
        }
        Shared::of(hold).ok_or(HandleError::Damaged)
    }
}
