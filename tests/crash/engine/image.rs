//! Images of an arena: taking them, following their changes, and putting a process on one.
//!
//! An arena may be a terabyte of mapping over a file of a few megabytes with a few hundred kilobytes in it, so
//! everything here works on data extents (`SEEK_DATA`, `SEEK_HOLE`), never on the mapping as a whole. A hole and
//! a page of zeros are the same image: reading a hole through a mapping turns it into the other.
//!
//! A [`View`] is the harness's access to the live memory of a stopped victim, an [`Image`] is what was seen there
//! last, and a [`Delta`] is one step from image to image. A trail of deltas can be replayed to any image on the way,
//! at a cost in memory that depends on what was written and not on the size of the arena.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::Arena;

pub const PAGE: u64 = 4096;
type Bytes = [u8; PAGE as usize];
static ZEROS: Bytes = [0; PAGE as usize];

fn check(result: i64) -> io::Result<i64> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The contents of an arena's file.
#[derive(Clone, Default)]
pub struct Image {
    length: u64,
    /// By page number. What is absent is zeros.
    pages: BTreeMap<u64, Box<Bytes>>,
}

/// A change of an [`Image`]: the new length of the file, and the new bytes by offset.
#[derive(Clone, Default)]
pub struct Delta {
    length: u64,
    ranges: Vec<(u64, Box<[u8]>)>,
}

impl Delta {
    /// Where the first changed byte is.
    pub fn first_offset(&self) -> Option<u64> {
        self.ranges.first().map(|range| range.0)
    }
}

impl Image {
    /// The change that changes nothing.
    pub fn same(&self) -> Delta {
        Delta {
            length: self.length,
            ranges: Vec::new(),
        }
    }

    pub fn apply(&mut self, delta: &Delta) {
        self.length = delta.length;
        for (offset, bytes) in &delta.ranges {
            self.write(*offset, bytes);
        }
        let end = self.length.div_ceil(PAGE);
        self.pages.split_off(&end);
    }

    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = (offset % PAGE) as usize;
            let count = bytes.len().min(PAGE as usize - within);
            let page = self
                .pages
                .entry(offset / PAGE)
                .or_insert_with(|| Box::new(ZEROS));
            page[within..within + count].copy_from_slice(&bytes[..count]);
            offset += count as u64;
            bytes = &bytes[count..];
        }
    }

    fn page(&self, number: u64) -> &Bytes {
        self.pages.get(&number).map_or(&ZEROS, |page| page)
    }

    /// A new memfd with these contents.
    pub fn to_memfd(&self, seals: i32) -> io::Result<OwnedFd> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string.
        let fd = check(i64::from(unsafe {
            libc::memfd_create(c"crash-image".as_ptr(), flags)
        }))?;
        // SAFETY: just opened, and owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // SAFETY: ftruncate reads no memory.
        check(i64::from(unsafe {
            libc::ftruncate(file.as_raw_fd(), self.length as i64)
        }))?;
        let mut run: Vec<libc::iovec> = Vec::with_capacity(64);
        let mut start = 0;
        for (&number, page) in &self.pages {
            if number != start + run.len() as u64 || run.len() == 1024 {
                write_run(&file, start, &run)?;
                run.clear();
                start = number;
            }
            run.push(libc::iovec {
                iov_base: page.as_ptr() as *mut _,
                iov_len: PAGE as usize,
            });
        }
        write_run(&file, start, &run)?;
        // The last page may reach past the end that the file had.
        // SAFETY: neither call reads memory.
        unsafe {
            check(i64::from(libc::ftruncate(
                file.as_raw_fd(),
                self.length as i64,
            )))?;
            check(i64::from(libc::fcntl(
                file.as_raw_fd(),
                libc::F_ADD_SEALS,
                seals,
            )))?;
        }
        Ok(file)
    }
}

fn write_run(file: &OwnedFd, start: u64, run: &[libc::iovec]) -> io::Result<()> {
    if run.is_empty() {
        return Ok(());
    }
    let offset = (start * PAGE) as i64;
    // SAFETY: each vector names a whole page of an image, which outlives the call and is only read.
    let wrote = unsafe { libc::pwritev(file.as_raw_fd(), run.as_ptr(), run.len() as i32, offset) };
    let expected = run.len() as i64 * PAGE as i64;
    if check(wrote as i64)? == expected {
        Ok(())
    } else {
        Err(io::Error::other("short write of an image"))
    }
}

/// The seals of the arena's file, which its images get too. A file that knows no seals has none.
pub fn seals_of(fd: RawFd) -> i32 {
    // SAFETY: F_GET_SEALS takes no argument.
    unsafe { libc::fcntl(fd, libc::F_GET_SEALS) }.max(0)
}

/// Puts this process onto `image`: its mapping takes the arena's place, its descriptor the arena's number.
pub fn take_over(arena: &dyn Arena, image: &OwnedFd) -> io::Result<()> {
    // SAFETY: replaces the arena's mapping by one of the same length and protection; what pointed into the arena
    // then points to the image, and that is the purpose. No reference into the arena is held across this call:
    // the process has only just been forked for it.
    let at = unsafe {
        libc::mmap(
            arena.base() as *mut _,
            arena.mapped_len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
            image.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: dup3 reads no memory; that the arena's number now means the image is the purpose.
    check(i64::from(unsafe {
        libc::dup3(image.as_raw_fd(), arena.fd(), libc::O_CLOEXEC)
    }))?;
    arena.has_another_file();
    Ok(())
}

/// The harness's eye on the memory of a victim.
pub struct View {
    /// Its own open file description: seeking in it moves nobody's position.
    file: OwnedFd,
    at: *const u8,
    mapped: usize,
    /// Whether `at` is this view's own mapping, to be unmapped with it.
    own: bool,
}

impl View {
    /// On the arena itself, through the mapping that the harness has of it.
    pub fn of_arena(arena: &dyn Arena) -> io::Result<View> {
        let file = reopen(arena.fd())?;
        Ok(View {
            file,
            at: arena.base() as *const u8,
            mapped: arena.mapped_len(),
            own: false,
        })
    }

    /// On an image, through a mapping of its own.
    pub fn of_image(image: &OwnedFd, mapped: usize) -> io::Result<View> {
        let file = reopen(image.as_raw_fd())?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address the kernel chooses disturbs nothing.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(View {
            file,
            at: at.cast(),
            mapped,
            own: true,
        })
    }

    fn length(&self) -> io::Result<u64> {
        // SAFETY: all-zero is a valid stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is a valid place.
        check(i64::from(unsafe {
            libc::fstat(self.file.as_raw_fd(), &mut stat)
        }))?;
        Ok(stat.st_size as u64)
    }

    fn seek(&self, from: u64, whence: i32) -> io::Result<Option<u64>> {
        // SAFETY: lseek reads no memory.
        match check(unsafe { libc::lseek(self.file.as_raw_fd(), from as i64, whence) }) {
            Ok(offset) => Ok(Some(offset as u64)),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The difference of `count` bytes at `offset` from `old`, without the equal ends.
    ///
    /// The bytes must be within the file (`length`), or the read would be a SIGBUS.
    fn differ(&self, offset: u64, old: &[u8]) -> Option<(u64, Box<[u8]>)> {
        debug_assert!(offset + old.len() as u64 <= self.mapped as u64);
        // SAFETY: within the mapping, by the caller within the file; `old` is as long. The memory is shared, so it is
        // read through pointers only, and is at rest while its only writer is stopped.
        let same = unsafe {
            libc::memcmp(
                self.at.add(offset as usize).cast(),
                old.as_ptr().cast(),
                old.len(),
            ) == 0
        };
        if same {
            return None;
        }
        let mut new = vec![0; old.len()];
        // SAFETY: as above, into a vector of that length.
        unsafe {
            ptr::copy_nonoverlapping(self.at.add(offset as usize), new.as_mut_ptr(), old.len())
        };
        let first = new.iter().zip(old).position(|(a, b)| a != b)?;
        let last = new.iter().zip(old).rposition(|(a, b)| a != b)?;
        Some((offset + first as u64, new[first..=last].into()))
    }

    /// Compares all there is in the file with `image`, brings `image` up to date, and says what had changed.
    pub fn scan(&self, image: &mut Image) -> io::Result<Option<Delta>> {
        let length = self.length()?.min(self.mapped as u64);
        let mut delta = Delta {
            length,
            ranges: Vec::new(),
        };
        let mut done = 0;
        while let Some(start) = self
            .seek(done, libc::SEEK_DATA)?
            .filter(|start| *start < length)
        {
            let end = self
                .seek(start, libc::SEEK_HOLE)?
                .unwrap_or(length)
                .min(length);
            zeroed(image, done..start, &mut delta);
            for number in start / PAGE..end.div_ceil(PAGE) {
                let within = (length - number * PAGE).min(PAGE) as usize;
                delta
                    .ranges
                    .extend(self.differ(number * PAGE, &image.page(number)[..within]));
            }
            done = end;
        }
        zeroed(image, done..length, &mut delta);
        Ok(settle(image, delta))
    }

    /// As [`scan`](View::scan), for the given ranges only, as (offset, length).
    pub fn compare(&self, image: &mut Image, written: &[(u64, u64)]) -> io::Result<Option<Delta>> {
        let mut delta = image.same();
        for &(offset, count) in written {
            if offset + count > delta.length {
                // Another process has made the file longer, or the write is about to fail.
                return self.scan(image);
            }
            let (mut at, end) = (offset, offset + count);
            while at < end {
                let next = ((at / PAGE + 1) * PAGE).min(end);
                let within = (at % PAGE) as usize;
                delta.ranges.extend(self.differ(
                    at,
                    &image.page(at / PAGE)[within..within + (next - at) as usize],
                ));
                at = next;
            }
        }
        Ok(settle(image, delta))
    }
}

/// Notes the pages of `image` within a hole of the file that are not zeros yet.
fn zeroed(image: &Image, hole: std::ops::Range<u64>, delta: &mut Delta) {
    for (number, page) in image
        .pages
        .range(hole.start.div_ceil(PAGE)..hole.end.div_ceil(PAGE))
    {
        if **page != ZEROS {
            let within = (hole.end - number * PAGE).min(PAGE) as usize;
            delta.ranges.push((number * PAGE, ZEROS[..within].into()));
        }
    }
}

fn settle(image: &mut Image, delta: Delta) -> Option<Delta> {
    if delta.ranges.is_empty() && delta.length == image.length {
        return None;
    }
    image.apply(&delta);
    Some(delta)
}

fn reopen(fd: RawFd) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/self/fd/{fd}"))?.into())
}

impl Drop for View {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: this view mapped exactly this, and lends nothing out.
            unsafe { libc::munmap(self.at as *mut _, self.mapped) };
        }
    }
}
