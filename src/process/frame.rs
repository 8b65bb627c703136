//! The file that carries one result from a child to its parent.
//!
//! It is a memfd made before the fork, so parent and child share it without a name, it needs no
//! reader while it is written (a pipe would block the child at 64 KiB until the parent joins), and
//! it vanishes with its last descriptor. It is written and read by `pwrite` and `pread`: mapping
//! it would cost more than copying a small result does.
//!
//! ```text
//! offset  0      4      8          16
//!         magic  kind   length     payload ...
//! ```
//!
//! The payload is the value in postcard's encoding, or a message.
//!
//! # Crash behaviour
//!
//! The child may be killed at any instruction, even inside a system call. A frame counts only if
//! its header is there *and* the file is exactly as long as the header says. A result of more than
//! [`LARGE`] bytes is streamed into the file behind a header of zeros, and the header is written
//! last. A smaller one is written with its header by a single call; the kernel lengthens a file
//! only after the bytes are in it, and from the front, so a file of the full length is whole.
//!
//! A child that cannot write for lack of memory says so in a frame without payload, and if even
//! that fails, exits with code 74 (`EX_IOERR`), which its join reports as an exit.

use std::io;
use std::os::fd::BorrowedFd;

use postcard::ser_flavors::Flavor;
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, retry_on_intr};
use serde::Serialize;

use crate::sys::descriptor::Kept;
use crate::sys::file_size;

const MAGIC: u32 = u32::from_le_bytes(*b"SHMR");
const HEADER: usize = size_of::<Header>();
/// The longest frame that is read by one system call.
const SMALL: usize = 256;
/// The longest frame that is written by one system call.
const LARGE: usize = 1 << 16;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    magic: u32,
    kind: u32,
    /// Of the payload only.
    length: u64,
}

const _: () = assert!(HEADER == 16);

/// What the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum FrameKind {
    /// The value that the closure returned.
    Value = 1,
    /// The message of a panic.
    Panic = 2,
    /// Why the value could not be serialised.
    EncodeFailed = 3,
    /// The error number for which the value could not be written, as decimal digits.
    WriteFailed = 4,
}

impl FrameKind {
    fn from_raw(raw: u32) -> Option<FrameKind> {
        [
            FrameKind::Value,
            FrameKind::Panic,
            FrameKind::EncodeFailed,
            FrameKind::WriteFailed,
        ]
        .into_iter()
        .find(|&kind| kind as u32 == raw)
    }
}

/// An empty file for one frame.
pub(super) fn create() -> io::Result<Kept> {
    let file = rustix::fs::memfd_create(c"shmkit-result", MemfdFlags::CLOEXEC)?;
    Ok(Kept::new(file)?)
}

/// Writes `value`, or why it could not be written.
///
/// # Errors
///
/// Not even the reason could be written.
pub(super) fn write_value<T: Serialize>(file: BorrowedFd<'_>, value: &T) -> Result<(), Errno> {
    let mut writer = Writer::new(file);
    let encoded = postcard::serialize_with_flavor(value, Sink(&mut writer));
    let written = match (writer.failed, encoded) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => return replace(file, FrameKind::EncodeFailed, &error.to_string()),
        (None, Ok(())) => writer.finish(FrameKind::Value),
    };
    let Err(error) = written else {
        return Ok(());
    };
    let message = error.raw_os_error().to_string();
    replace(file, FrameKind::WriteFailed, &message)
}

/// Writes a message in place of whatever the file holds.
pub(super) fn replace(file: BorrowedFd<'_>, kind: FrameKind, message: &str) -> Result<(), Errno> {
    rustix::fs::ftruncate(file, 0)?;
    let mut writer = Writer::new(file);
    writer.extend(message.as_bytes())?;
    writer.finish(kind)
}

struct Writer<'a> {
    file: BorrowedFd<'a>,
    /// Holds a small frame. Each page touched after a fork is a page copied, so it is small, too.
    small: [u8; SMALL],
    /// Takes the place of `small` when that is full; empty until then.
    large: Vec<u8>,
    /// How many bytes of the buffer are in use; they follow the first `written` bytes of the file.
    used: usize,
    written: u64,
    /// The error that ended the writing: postcard's own errors have no room for it.
    failed: Option<Errno>,
}

impl<'a> Writer<'a> {
    fn new(file: BorrowedFd<'a>) -> Self {
        // The header's place is reserved from the start, with zeros.
        Writer {
            file,
            small: [0; SMALL],
            large: Vec::new(),
            used: HEADER,
            written: 0,
            failed: None,
        }
    }

    #[inline]
    fn buffer(&mut self) -> &mut [u8] {
        if self.large.is_empty() {
            &mut self.small
        } else {
            &mut self.large
        }
    }

    #[inline]
    fn extend(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let used = self.used;
        let Some(room) = self.buffer().get_mut(used..used + bytes.len()) else {
            return self.extend_full(bytes);
        };
        room.copy_from_slice(bytes);
        self.used += bytes.len();
        Ok(())
    }

    #[cold]
    fn extend_full(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if self.large.is_empty() {
            let enlarged = self.large.try_reserve_exact(LARGE);
            if enlarged.is_err() {
                self.failed = Some(Errno::NOMEM);
                return Err(Errno::NOMEM);
            }
            self.large.resize(LARGE, 0);
            self.large[..self.used].copy_from_slice(&self.small[..self.used]);
            return self.extend(bytes);
        }
        self.flush()?;
        if bytes.len() < LARGE {
            return self.extend(bytes);
        }
        let done = write_all(self.file, bytes, self.written);
        self.account(done, bytes.len())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let (file, used, written) = (self.file, self.used, self.written);
        let done = write_all(file, &self.buffer()[..used], written);
        self.account(done, used)?;
        self.used = 0;
        Ok(())
    }

    fn account(&mut self, done: Result<(), Errno>, length: usize) -> Result<(), Errno> {
        // The first error counts: the code that serialises may ignore an error, and go on.
        self.failed = self.failed.or(done.err());
        self.written += length as u64;
        done
    }

    fn finish(&mut self, kind: FrameKind) -> Result<(), Errno> {
        let length = self.written + self.used as u64 - HEADER as u64;
        let header = Header {
            magic: MAGIC,
            kind: kind as u32,
            length,
        };
        let header = bytemuck::bytes_of(&header);
        if self.written == 0 {
            self.buffer()[..HEADER].copy_from_slice(header);
            return self.flush();
        }
        self.flush()?;
        write_all(self.file, header, 0)
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    file_size::check_write(offset + bytes.len() as u64)?;
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lets postcard stream into a [`Writer`].
struct Sink<'a, 'file>(&'a mut Writer<'file>);

impl Flavor for Sink<'_, '_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0
            .extend(bytes)
            .map_err(|_| postcard::Error::SerializeBufferFull)
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// A frame that was written to its end.
pub(super) struct Frame<'a> {
    file: BorrowedFd<'a>,
    kind: FrameKind,
    length: u64,
    /// The first bytes of the file, header included; all of it, if it is no longer than that.
    head: [u8; SMALL],
}

impl<'a> Frame<'a> {
    /// Reads the header; `None` if there is no complete frame.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn load(file: BorrowedFd<'a>) -> io::Result<Option<Frame<'a>>> {
        let mut head = [0; SMALL];
        let read = retry_on_intr(|| rustix::io::pread(file, &mut head, 0))?;
        // A read from a file in memory is short only at its end.
        let size = match read {
            SMALL => rustix::fs::fstat(file)?.st_size.unsigned_abs(),
            short => short as u64,
        };
        let Header {
            magic,
            kind,
            length,
        } = bytemuck::pod_read_unaligned(&head[..HEADER]);
        let Some(kind) = FrameKind::from_raw(kind).filter(|_| magic == MAGIC) else {
            return Ok(None);
        };
        let whole = length.checked_add(HEADER as u64) == Some(size);
        Ok(whole.then_some(Frame {
            file,
            kind,
            length,
            head,
        }))
    }

    pub(super) fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Calls `f` with the payload.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or memory is short.
    pub(super) fn payload<R>(&self, f: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
        let length = usize::try_from(self.length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if let Some(payload) = self.head[HEADER..].get(..length) {
            return Ok(f(payload));
        }
        let mut payload = Vec::new();
        payload.try_reserve_exact(length)?;
        while payload.len() < length {
            let offset = (HEADER + payload.len()) as u64;
            match rustix::io::pread(
                self.file,
                rustix::buffer::spare_capacity(&mut payload),
                offset,
            ) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(f(&payload[..length]))
    }

    /// The payload as a message.
    pub(super) fn message(&self) -> io::Result<String> {
        self.payload(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// A type's code may go on after an error, although what was to be written is not there.
    #[test]
    fn a_write_that_failed_is_not_made_good_by_the_next() {
        let (closed, file) = (std::fs::File::open("/dev/null").unwrap(), create().unwrap());
        let mut writer = Writer::new(closed.as_fd());
        assert_eq!(writer.extend(&[1; 2 * LARGE]), Err(Errno::BADF));
        writer.file = file.get().unwrap();
        assert_eq!(writer.extend(&[1; 2 * LARGE]), Ok(()));
        assert_eq!(writer.failed, Some(Errno::BADF));
    }
}
