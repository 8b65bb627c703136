//! [`Buffer`]: a stream of bytes at positions that never change. For how it works, see
//! `engines::buffer`.

use std::fmt;
use std::io;
use std::marker::PhantomPinned;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::buffer_io::{BytesView, Reader, Writer};
use crate::ShmSafe;
use crate::allocator::AllocError;
use crate::engines::buffer::{AppendRefusal, NO_CAPACITY, Words};
use crate::layout::{Engine, Field, TypeInfo};
use crate::participants::here::{from_nowhere, here};
use crate::participants::thread::NoSlot;
use crate::primitive::AtomicU64;

/// A position in a [`Buffer`]: the number of bytes that were appended before it. It never changes.
///
/// ```
/// use shmkit::{Buffer, Pool, Position};
///
/// let pool = Pool::builder().create()?;
/// let log = pool.create(Buffer::new())?;
/// log.append(b"header")?;
/// let body: Position = log.append(b"body")?;
/// log.truncate_front(body)?;
/// assert_eq!((body, log.view(body..body + 4)?.to_vec()), (6, b"body".to_vec()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Position = u64;

/// A stream of bytes that any number of processes append to, read in place, and delete from the
/// front.
///
/// An append is atomic, whatever its size: readers see all of it or nothing, and its bytes are
/// contiguous. Bytes keep their positions for ever, even when those before them are deleted.
/// Reading neither waits nor copies. A buffer may have a [capacity](Self::with_capacity); then
/// [writing](#impl-Write-for-%26Buffer) waits for room.
///
/// Appends of up to 8 KiB share chunks of up to 32 KiB; a longer one has a chunk of its own.
///
/// # Crash behaviour
///
/// A writer that is killed has appended everything or nothing. A writer that is stopped in the
/// middle of an append holds up nobody, but memory that is deleted meanwhile is freed only when it
/// goes on. An open [`BytesView`] delays the freeing of memory in the same way.
///
/// ```
/// use shmkit::{Buffer, Pool};
///
/// let pool = Pool::builder().create()?;
/// let log = pool.create(Buffer::new())?;
/// assert_eq!(log.append(b"first line\n")?, 0);
/// let second = log.append(b"second line\n")?;
/// log.truncate_front(second)?;
/// assert_eq!(log.start(), 11);
/// let view = log.view(second..log.end())?;
/// assert_eq!(view.to_vec(), b"second line\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Buffer {
    words: Words,
    _in_place: PhantomPinned,
}

/// The first word of a buffer, which owns its chunks.
#[repr(transparent)]
struct Chain(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says that the word owns what the engine says.
unsafe impl ShmSafe for Chain {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("Chain", Engine::Buffer);
    const OWNS: bool = true;
}

// SAFETY: atomics, and chunks that the engine finds from the first word. No drop glue.
unsafe impl ShmSafe for Buffer {
    const TYPE: &'static TypeInfo =
        &TypeInfo::library::<Self>("Buffer", const { &[Field::at::<Chain>("chunks", 0)] });
    const OWNS: bool = true;
}

/// Why nothing was appended.
///
/// ```
/// use shmkit::{AppendError, Buffer, Pool};
///
/// let pool = Pool::builder().create()?;
/// let small = pool.create(Buffer::with_capacity(8))?;
/// assert_eq!(small.append(&[0; 9]), Err(AppendError::TooLong { len: 9 }));
/// small.append(&[0; 8])?;
/// assert_eq!(small.append(&[0]), Err(AppendError::Full));
/// small.close()?;
/// assert_eq!(small.append(&[0]), Err(AppendError::Closed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AppendError {
    /// There is no room for the bytes now.
    #[error("the buffer is full")]
    Full,
    /// There will never be room for the bytes: they are longer than the buffer's capacity.
    #[error("{len} bytes are more than the buffer's capacity")]
    TooLong {
        /// The number of bytes.
        len: usize,
    },
    /// There was no room for the bytes in time; see [`Writer::append`](crate::Writer::append).
    #[error("there was no room in the buffer in time")]
    TimedOut,
    /// The buffer is closed.
    #[error("the buffer is closed")]
    Closed,
    /// There is no memory for the bytes.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The buffer is not part of an object in a pool.
    #[error("the buffer is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> Self {
        let kind = match error {
            AppendError::Full => io::ErrorKind::WouldBlock,
            AppendError::TimedOut => io::ErrorKind::TimedOut,
            AppendError::Closed => io::ErrorKind::BrokenPipe,
            AppendError::Alloc(_) | AppendError::NoSlot(_) => io::ErrorKind::OutOfMemory,
            AppendError::TooLong { .. } | AppendError::NotInPool => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

/// Why bytes could not be read or deleted, or a buffer not be closed.
///
/// ```
/// use shmkit::{Buffer, Pool, RangeError};
///
/// let pool = Pool::builder().create()?;
/// let log = pool.create(Buffer::new())?;
/// log.append(b"abcdef")?;
/// log.truncate_front(2)?;
/// assert_eq!(log.view(0..4).err(), Some(RangeError::Deleted { start: 2 }));
/// assert_eq!(log.view(2..7).err(), Some(RangeError::BeyondEnd { end: 6 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RangeError {
    /// Some of the bytes have been deleted.
    #[error("bytes before position {start} have been deleted")]
    Deleted {
        /// Where the buffer starts.
        start: Position,
    },
    /// Some of the bytes have not been appended yet.
    #[error("the buffer ends at position {end}")]
    BeyondEnd {
        /// Where the buffer ended.
        end: Position,
    },
    /// The range ends before it starts.
    #[error("the range ends before it starts")]
    Reversed,
    /// The buffer is not part of an object in a pool.
    #[error("the buffer is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(AppendError, RangeError);

impl From<RangeError> for io::Error {
    fn from(error: RangeError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

impl Buffer {
    /// An empty buffer without a bound on its size, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(&[7; 100_000])?;
    /// assert_eq!((log.len(), log.capacity()), (100_000, None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self::of_capacity(NO_CAPACITY)
    }

    /// An empty buffer that holds no more than `capacity` bytes at a time. One with a capacity of 0
    /// refuses every append ([`AppendError::TooLong`]).
    ///
    /// ```
    /// # use shmkit::{AppendError, Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let small = pool.create(Buffer::with_capacity(4))?;
    /// small.append(b"1234")?;
    /// assert_eq!(small.append(b"5"), Err(AppendError::Full));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn with_capacity(capacity: u64) -> Self {
        Self::of_capacity(capacity)
    }

    const fn of_capacity(capacity: u64) -> Self {
        Buffer {
            words: Words::new(capacity),
            _in_place: PhantomPinned,
        }
    }

    pub(super) fn words(&self) -> &Words {
        &self.words
    }

    /// Appends bytes, and returns the position of the first. It does not wait.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]. Nothing was appended.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has appended all bytes or none.
    ///
    /// ```
    /// # use shmkit::{AppendError, Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let small = pool.create(Buffer::with_capacity(8))?;
    /// small.append(b"12345")?;
    /// assert_eq!(small.append(b"6789"), Err(AppendError::Full));
    /// small.truncate_front(3)?;
    /// assert_eq!(small.append(b"6789")?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn append(&self, bytes: &[u8]) -> Result<Position, AppendError> {
        let here = here(self)?;
        if self
            .words
            .capacity()
            .is_some_and(|c| bytes.len() as u64 > c)
        {
            return Err(AppendError::TooLong { len: bytes.len() });
        }
        if bytes.is_empty() {
            let (end, closed) = here.pinned(|| self.words.end(here.arena));
            return if closed {
                Err(AppendError::Closed)
            } else {
                Ok(end)
            };
        }
        let appended = self.words.append(here.arena, here.slot, bytes);
        appended.map_err(|refusal| match refusal {
            AppendRefusal::Full => AppendError::Full,
            AppendRefusal::Closed => AppendError::Closed,
            AppendRefusal::Alloc(error) => AppendError::Alloc(error),
        })
    }

    /// A view of the bytes of a range, in place. They stay as long as the view exists, even if
    /// somebody deletes them.
    ///
    /// # Errors
    ///
    /// See [`RangeError`].
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// let at = log.append(b"one piece")?;
    /// let view = log.view(at..at + 9)?;
    /// // What was appended at once is next to each other.
    /// assert_eq!(view.as_slice(), Some(&b"one piece"[..]));
    /// log.clear()?;
    /// assert_eq!(view.chunks().map(<[u8]>::len).sum::<usize>(), 9);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn view(&self, range: Range<Position>) -> Result<BytesView<'_>, RangeError> {
        BytesView::open(self, range)
    }

    /// Copies bytes, starting at a position: as many as there are and as fit. Returns how many.
    ///
    /// # Errors
    ///
    /// See [`RangeError`]. It is no error to read at the end itself: nothing is copied.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abcdef")?;
    /// let mut room = [0; 4];
    /// assert_eq!(log.read_at(3, &mut room)?, 3);
    /// assert_eq!(&room, b"def\0");
    /// assert_eq!(log.read_at(6, &mut room)?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_at(&self, from: Position, into: &mut [u8]) -> Result<usize, RangeError> {
        let end = self.end();
        let to = from.saturating_add(into.len() as u64).min(end.max(from));
        let view = self.view(from..to)?;
        let mut done = 0;
        for chunk in view.chunks() {
            into[done..done + chunk.len()].copy_from_slice(chunk);
            done += chunk.len();
        }
        Ok(done)
    }

    /// A reader that begins at a position. It waits for bytes that have not been appended yet,
    /// until the buffer is [closed](Self::close).
    ///
    /// ```
    /// # use std::io::Read;
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"skipped, read")?;
    /// log.close()?;
    /// let mut text = String::new();
    /// log.reader(9).read_to_string(&mut text)?;
    /// assert_eq!(text, "read");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn reader(&self, from: Position) -> Reader<'_> {
        Reader::new(self, from)
    }

    /// A writer that appends through [`std::io::Write`] and waits for room, for a limited time if that
    /// is set. `&Buffer` does the same without a time limit.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::with_capacity(1 << 16))?;
    /// // Whole, whoever else writes; and once there is room for it.
    /// log.writer().append(format!("{} lines\n", 1).as_bytes())?;
    /// assert_eq!(log.len(), 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(self)
    }

    /// Deletes all bytes before a position. Their memory is freed when nobody is looking at them any
    /// more. Nothing happens if they have been deleted already.
    ///
    /// # Errors
    ///
    /// See [`RangeError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has deleted the bytes, or it has not. Memory that it had not freed by
    /// then is freed by the next caller that deletes.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool, RangeError};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abcdef")?;
    /// log.truncate_front(4)?;
    /// log.truncate_front(1)?;
    /// assert_eq!((log.start(), log.end()), (4, 6));
    /// assert_eq!(log.truncate_front(7), Err(RangeError::BeyondEnd { end: 6 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn truncate_front(&self, to: Position) -> Result<(), RangeError> {
        let here = here(self)?;
        let truncated = self.words.truncate(here.arena, here.slot, to);
        truncated.map_err(|end| RangeError::BeyondEnd { end })
    }

    /// Deletes all bytes that are in the buffer at some moment of the call. Positions continue from
    /// there.
    ///
    /// # Errors
    ///
    /// See [`RangeError`].
    ///
    /// # Crash behaviour
    ///
    /// As for [`truncate_front`](Self::truncate_front).
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abc")?;
    /// log.clear()?;
    /// assert!(log.is_empty());
    /// assert_eq!(log.append(b"d")?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self) -> Result<(), RangeError> {
        self.truncate_front(self.end())
    }

    /// The position of the first byte that is not deleted.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// assert_eq!((log.append(b"abc")?, log.start()), (0, 0));
    /// log.truncate_front(2)?;
    /// assert_eq!(log.start(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn start(&self) -> Position {
        self.words.start()
    }

    /// The position after the last byte. (0 if the thread has no slot in the pool.)
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abc")?;
    /// log.truncate_front(2)?;
    /// assert_eq!(log.end(), 3);
    /// assert_eq!(log.append(b"d")?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn end(&self) -> Position {
        match here(self) {
            Ok(here) => here.pinned(|| self.words.end(here.arena).0),
            _ => 0,
        }
    }

    /// The number of bytes. (0 if the thread has no slot in the pool.)
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abc")?;
    /// log.truncate_front(1)?;
    /// assert_eq!(log.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> u64 {
        // The start is read first: it never passes an end that is read later.
        let start = self.start();
        self.end().saturating_sub(start)
    }

    /// True if there are no bytes. (Also if the thread has no slot in the pool.)
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// assert!(log.is_empty());
    /// log.append(b"abc")?;
    /// assert!(!log.is_empty());
    /// log.truncate_front(3)?;
    /// assert!(log.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The greatest number of bytes that the buffer holds at a time; `None` if there is no bound.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// assert_eq!(pool.create(Buffer::with_capacity(8))?.capacity(), Some(8));
    /// assert_eq!(pool.create(Buffer::new())?.capacity(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn capacity(&self) -> Option<u64> {
        self.words.capacity()
    }

    /// Closes the buffer, so that nothing can be appended any more: readers come to the end,
    /// writers fail.
    ///
    /// # Errors
    ///
    /// See [`RangeError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has closed the buffer, or it has not.
    ///
    /// ```
    /// # use std::io::Read;
    /// # use shmkit::{AppendError, Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pipe = pool.create(Buffer::new())?;
    /// pipe.append(b"all of it")?;
    /// pipe.close()?;
    /// assert_eq!(pipe.append(b"more"), Err(AppendError::Closed));
    /// // The reader need not wait for more.
    /// assert_eq!(pipe.reader(0).read_to_end(&mut Vec::new())?, 9);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) -> Result<(), RangeError> {
        let here = here(self)?;
        self.words.close(here.arena, here.slot);
        Ok(())
    }

    /// The number of bytes that its chunks take. Nobody uses the buffer meanwhile.
    #[cfg(feature = "testing")]
    pub(crate) fn memory(&self) -> usize {
        match here(self) {
            Ok(here) => here.pinned(|| self.words.memory(here.arena)),
            _ => 0,
        }
    }

    /// True if the buffer is closed. (False if the thread has no slot in the pool.)
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pipe = pool.create(Buffer::new())?;
    /// assert!(!pipe.is_closed());
    /// pipe.close()?;
    /// assert!(pipe.is_closed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match here(self) {
            Ok(here) => here.pinned(|| self.words.end(here.arena).1),
            _ => false,
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::new()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("start", &self.start())
            .field("end", &self.end())
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}
