//! Access to the bytes of a [`Buffer`]: in place, and as a stream that waits.

use std::fmt;
use std::io::{self, Read, Write};
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

use super::buffer::{AppendError, Buffer, Position, RangeError};
use super::link::unpin;
use crate::engines::bell::Bell;
use crate::engines::buffer::Found;
use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::epoch;
use crate::participants::here::{Here, here};
use crate::participants::tag::Tag;
use crate::participants::thread;

/// Bytes of a [`Buffer`], in place. While a view is open, nothing that is deleted is freed.
///
/// ```
/// use shmkit::{Buffer, Pool};
///
/// let pool = Pool::builder().create()?;
/// let log = pool.create(Buffer::new())?;
/// let (_, value) = (log.append(b"key")?, log.append(b"value")?);
/// let view = log.view(value..log.end())?;
/// log.clear()?;
/// assert_eq!(view.as_slice(), Some(&b"value"[..]), "as it was");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the bytes stay as long as the view does"]
pub struct BytesView<'a> {
    buffer: &'a Buffer,
    tag: Tag,
    range: Range<Position>,
    /// The chunk with the first byte, if there are any bytes.
    first: Option<Found>,
    _one_thread: PhantomData<*const ()>,
}

// SAFETY: a shared view gives access to bytes that nobody writes, and to nothing else.
unsafe impl Sync for BytesView<'_> {}

impl<'a> BytesView<'a> {
    pub(super) fn open(buffer: &'a Buffer, range: Range<Position>) -> Result<Self, RangeError> {
        if range.start > range.end {
            return Err(RangeError::Reversed);
        }
        let Here { arena, slot } = here(buffer)?;
        epoch::pin(arena, slot);
        // From here on, dropping the view unpins.
        thread::guard_made(slot);
        let mut view = BytesView {
            buffer,
            tag: slot.tag(),
            range,
            first: None,
            _one_thread: PhantomData,
        };
        let words = buffer.words();
        let start = words.start();
        if view.range.start < start {
            return Err(RangeError::Deleted { start });
        }
        let (end, _) = words.end(arena);
        if view.range.end > end {
            return Err(RangeError::BeyondEnd { end });
        }
        if !view.is_empty() {
            view.first = words.find(arena, view.range.start);
        }
        Ok(view)
    }

    /// The range of positions that the bytes have.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abcdef")?;
    /// assert_eq!(log.view(2..5)?.range(), 2..5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn range(&self) -> Range<Position> {
        self.range.clone()
    }

    /// The number of bytes.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abcdef")?;
    /// assert_eq!(log.view(2..5)?.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// True if there are no bytes.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abcdef")?;
    /// assert!(log.view(3..3)?.is_empty());
    /// assert!(!log.view(3..4)?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes, as the slices in which they are stored. The bytes of one append are all in one
    /// slice.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(&[1; 20_000])?;
    /// log.append(&[2; 30_000])?;
    /// let view = log.view(0..50_000)?;
    /// assert_eq!(view.chunks().map(<[u8]>::len).collect::<Vec<_>>(), [20_000, 30_000]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn chunks(&self) -> ByteChunks<'_> {
        ByteChunks {
            next: self.first,
            range: self.range.clone(),
            view: PhantomData,
        }
    }

    /// The bytes as one slice, if they are contiguous.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(&[1; 20_000])?;
    /// log.append(&[2; 30_000])?;
    /// assert_eq!(log.view(19_998..20_000)?.as_slice(), Some(&[1, 1][..]));
    /// assert_eq!(log.view(19_998..20_002)?.as_slice(), None, "of two appends");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        let slice = self.chunks().next().unwrap_or_default();
        (slice.len() == self.len()).then_some(slice)
    }

    /// A copy of the bytes.
    ///
    /// ```
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(&[1; 20_000])?;
    /// log.append(&[2; 30_000])?;
    /// assert_eq!(log.view(19_998..20_002)?.to_vec(), [1, 1, 2, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunks().collect::<Vec<_>>().concat()
    }
}

impl Drop for BytesView<'_> {
    fn drop(&mut self) {
        // A forked child has a copy of its parent's view, but not its pin.
        if let Some(slot) = thread::still_held(self.buffer, self.tag)
            && let Some(arena) = Arena::containing(std::ptr::from_ref(slot).addr())
        {
            let words = self.buffer.words();
            let old = words.has_old(arena);
            unpin(slot);
            if old {
                words.free_old(arena, slot);
            }
        }
    }
}

impl fmt::Debug for BytesView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BytesView")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// The slices of a [`BytesView`].
///
/// ```
/// use std::io::Write;
/// use shmkit::{Buffer, Pool};
///
/// let pool = Pool::builder().create()?;
/// let log = pool.create(Buffer::new())?;
/// log.append(&[1; 20_000])?;
/// log.append(&[2; 30_000])?;
/// let mut file = Vec::new();
/// for chunk in log.view(10_000..50_000)?.chunks() {
///     file.write_all(chunk)?;
/// }
/// assert_eq!((file.len(), file[9_999], file[10_000]), (40_000, 1, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ByteChunks<'a> {
    next: Option<Found>,
    /// The positions that are still to come.
    range: Range<Position>,
    view: PhantomData<&'a BytesView<'a>>,
}

impl<'a> Iterator for ByteChunks<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.range.is_empty() {
            let chunk = self.next?;
            // SAFETY: the view, which lives for `'a`, has pinned before it found the first chunk.
            let (bytes, next) = unsafe { chunk.bytes::<'a>(self.range.start, self.range.end) };
            self.next = next;
            self.range.start += bytes.len() as u64;
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
        None
    }
}

impl FusedIterator for ByteChunks<'_> {}

impl fmt::Debug for ByteChunks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteChunks")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// Reads a [`Buffer`] from a position on, and waits for bytes that have not been appended yet, up
/// to a [time limit](Self::set_timeout) if there is one. It deletes nothing.
///
/// If bytes were deleted before they were read, the result is an error of kind `InvalidInput`, with
/// a [`RangeError`] inside. After [`Buffer::close`] the reader comes to an end.
///
/// ```
/// use std::io::{Read, Write};
/// use shmkit::{Buffer, Pool};
///
/// let pool = Pool::builder().create()?;
/// let pipe = pool.create(Buffer::new())?;
/// (&mut &*pipe).write_all(b"news")?;
/// pipe.close()?;
/// let mut text = String::new();
/// pipe.reader(0).read_to_string(&mut text)?;
/// assert_eq!(text, "news");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    buffer: &'a Buffer,
    position: Position,
    timeout: Option<Duration>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(buffer: &'a Buffer, position: Position) -> Self {
        Reader {
            buffer,
            position,
            timeout: None,
        }
    }

    /// The position of the next byte to be read.
    ///
    /// ```
    /// # use std::io::Read;
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let log = pool.create(Buffer::new())?;
    /// log.append(b"abcdef")?;
    /// let mut reader = log.reader(1);
    /// reader.read_exact(&mut [0; 3])?;
    /// assert_eq!(reader.position(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Sets how long each read waits at most: for ever with `None`, which is the default. A read
    /// that has waited in vain gives an error of kind `TimedOut`, and has read nothing.
    ///
    /// ```
    /// # use std::io::{ErrorKind, Read};
    /// # use std::time::Duration;
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pipe = pool.create(Buffer::new())?;
    /// let mut reader = pipe.reader(0);
    /// reader.set_timeout(Some(Duration::from_millis(1)));
    /// let nothing = reader.read(&mut [0; 9]);
    /// assert_eq!(nothing.unwrap_err().kind(), ErrorKind::TimedOut);
    /// pipe.append(b"late")?;
    /// assert_eq!(reader.read(&mut [0; 9])?, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let here = here(self.buffer).map_err(RangeError::from)?;
        let words = self.buffer.words();
        let state = || here.pinned(|| words.end(here.arena));
        let ready = || {
            let (end, closed) = state();
            end > self.position || closed || words.start() > self.position
        };
        let deadline = self.timeout.map_or(Deadline::NEVER, Deadline::after);
        if !wait(&words.arrivals, here, deadline, ready) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let read = match self.buffer.read_at(self.position, into) {
            // The position is beyond the end of a closed buffer.
            Err(RangeError::BeyondEnd { .. }) => 0,
            read => read?,
        };
        self.position += read as u64;
        Ok(read)
    }
}

/// Waits until `ready` holds. Whoever makes it so rings the bell. False if that does not happen in time.
fn wait(bell: &Bell, here: Here, deadline: Deadline, ready: impl Fn() -> bool) -> bool {
    let look = || ready().then_some(());
    look().or_else(|| bell.wait(here, deadline, look)).is_some()
}

/// Writes to a [`Buffer`], and waits for room, up to a [time limit](Self::set_timeout) if there is
/// one. Each call of `write` appends as many bytes as there is room for, as one append. Records that
/// must stay whole are [appended](Self::append) instead: `write_all` and `writeln!` make several
/// calls.
///
/// A full pool, a closed buffer or a buffer with a capacity of 0 gives an error at once, with an
/// [`AppendError`] inside.
///
/// ```
/// use std::io::Write;
/// use shmkit::{Buffer, Pool};
///
/// let pool = Pool::builder().create()?;
/// let pipe = pool.create(Buffer::with_capacity(6))?;
/// assert_eq!(pipe.writer().write(b"first, second")?, 6);
/// assert_eq!(pipe.view(0..6)?.to_vec(), b"first,");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Writer<'a> {
    buffer: &'a Buffer,
    timeout: Option<Duration>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(buffer: &'a Buffer) -> Self {
        let timeout = None;
        Writer { buffer, timeout }
    }

    /// Sets how long each `write` and [`append`](Self::append) waits at most: for ever with `None`,
    /// which is the default. One that has waited in vain gives an error of kind `TimedOut`, and has
    /// written nothing.
    ///
    /// ```
    /// # use std::io::{ErrorKind, Write};
    /// # use std::time::Duration;
    /// # use shmkit::{Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pipe = pool.create(Buffer::with_capacity(5))?;
    /// let mut writer = pipe.writer();
    /// writer.set_timeout(Some(Duration::from_millis(1)));
    /// writer.write_all(b"early")?;
    /// assert_eq!(writer.write(b"late").unwrap_err().kind(), ErrorKind::TimedOut);
    /// pipe.truncate_front(5)?;
    /// writer.write_all(b"late")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Appends all of the bytes, as one append, as soon as there is room for all of them. Returns
    /// the position of the first one.
    ///
    /// [`write`](Write::write), and what is made of it, as [`write_all`](Write::write_all) and
    /// `writeln!`, may append in several parts, between which others may append; this does not. A
    /// long append may wait for long while others take what room there is for short ones.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]; [`AppendError::TimedOut`] if there was no room within the
    /// [time limit](Self::set_timeout). Nothing was appended then.
    ///
    /// # Crash behaviour
    ///
    /// As for [`Buffer::append`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{AppendError, Buffer, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pipe = pool.create(Buffer::with_capacity(12))?;
    /// let mut writer = pipe.writer();
    /// writer.set_timeout(Some(Duration::from_millis(1)));
    /// assert_eq!(writer.append(b"one line\n"), Ok(0));
    /// assert_eq!(writer.append(b"another\n"), Err(AppendError::TimedOut));
    /// pipe.truncate_front(9)?;
    /// assert_eq!(writer.append(b"another\n"), Ok(9));
    /// assert_eq!(writer.append(&[0; 13]), Err(AppendError::TooLong { len: 13 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn append(&mut self, bytes: &[u8]) -> Result<Position, AppendError> {
        let (position, _) = self.append_some(bytes, bytes.len())?;
        Ok(position)
    }

    /// Appends as many bytes as there is room for, once that is `least` of them: where, and how many.
    fn append_some(&self, bytes: &[u8], least: usize) -> Result<(Position, usize), AppendError> {
        let here = here(self.buffer)?;
        let words = self.buffer.words();
        let room = || {
            let start = words.start();
            let (end, closed) = here.pinned(|| words.end(here.arena));
            match words.capacity() {
                // More than there will ever be room for is refused at once.
                Some(capacity) if !closed && least as u64 <= capacity => {
                    capacity.saturating_sub(end.saturating_sub(start))
                }
                _ => u64::MAX,
            }
        };
        let deadline = self.timeout.map_or(Deadline::NEVER, Deadline::after);
        loop {
            let len = (bytes.len() as u64).min(room()) as usize;
            if len >= least {
                match self.buffer.append(&bytes[..len]) {
                    // Others took the room first.
                    Err(AppendError::Full) if deadline.is_over() => {
                        return Err(AppendError::TimedOut);
                    }
                    Err(AppendError::Full) => {}
                    appended => return appended.map(|position| (position, len)),
                }
            }
            if !wait(&words.departures, here, deadline, || room() >= least as u64) {
                return Err(AppendError::TimedOut);
            }
        }
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        Ok(self.append_some(bytes, 1).map(|(_, len)| len)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes as [`Buffer::writer`] does, without a time limit.
impl Write for &Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
