//! Matrices, arrays and numbers to and from `.npy` files.

use std::fs::{File, Metadata};
use std::io::{BufReader, BufWriter, Write};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use npyz::{NpyFile, Order, WriterBuilder};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use shmkit::numbers::Numbers;

use crate::failure::{Code, Failure, Outcome};

/// What a file holds: elements in row-major order and this machine's byte order.
pub struct Read {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Runs `$code` for the type that `$dtype` names, as `T`.
macro_rules! with_type {
    ($dtype:expr, |$t:ident| $code:expr, $other:expr) => {
        with_type!(@ $dtype, $t, $code, $other,
            "<f8" f64, "<f4" f32, "|u1" u8, "<u2" u16, "<u4" u32, "<u8" u64,
            "|i1" i8, "<i2" i16, "<i4" i32, "<i8" i64)
    };
    (@ $dtype:expr, $t:ident, $code:expr, $other:expr, $($name:literal $ty:ty),*) => {
        match $dtype {
            $($name => { type $t = $ty; $code })*
            _ => $other,
        }
    };
}

/// Whether a path stands for standard output: `-`, or a path that leads to the same file, such as
/// `/dev/stdout`.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-" || leads_to(path, rustix::fs::fstat(std::io::stdout()))
}

/// Whether a path leads to a file that is open.
pub fn are_one(path: &Path, other: BorrowedFd<'_>) -> bool {
    leads_to(path, rustix::fs::fstat(other))
}

fn leads_to(path: &Path, file: rustix::io::Result<Stat>) -> bool {
    let place = |stat: Stat| (stat.st_dev, stat.st_ino);
    let file = file.map(place);
    file.is_ok() && file == rustix::fs::stat(path).map(place)
}

/// Writes a file. A file that cannot be written completely is not left behind, and what was there
/// stays.
pub fn write(path: &Path, to_stdout: bool, numbers: &Numbers, bytes: &[u8]) -> Outcome {
    let written = match std::fs::metadata(path) {
        _ if to_stdout => match write_to(std::io::stdout().lock(), numbers, bytes) {
            // The reader has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        },
        // Written directly into a device or a pipe.
        Ok(there) if !there.is_file() => open(path).and_then(|file| write_to(file, numbers, bytes)),
        Err(_) if path.is_symlink() => {
            Err(std::io::Error::other("it is a link that leads nowhere"))
        }
        there => replace(path, there.ok().as_ref(), numbers, bytes),
    };
    written.map_err(|error| Failure::from(error).about(&path.display().to_string()))
}

/// A new file in the same directory. It has no name, so that it goes with this process, if the file
/// system supports such files and `/proc`, which is needed to name the file in the end, is there.
/// Otherwise it has a name, and stays if this process is killed.
fn beside(path: &Path) -> std::io::Result<(Option<PathBuf>, File)> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    // The same mode as for other new files: the process's mask is subtracted from it.
    match rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) if Path::new("/proc/self/fd").exists() => return Ok((None, file.into())),
        Ok(_) => {}
        // What a file system, or a kernel, returns that does not support such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let (name, file) = named(path, |name| File::create_new(name))?;
    Ok((Some(name), file))
}

/// Makes something in the same directory, with a name that nothing else there has.
fn named<T>(
    path: &Path,
    make: impl Fn(&Path) -> std::io::Result<T>,
) -> std::io::Result<(PathBuf, T)> {
    let mut number = u64::from(std::process::id());
    loop {
        let new = path.with_file_name(format!(".shmkit-export-{number}"));
        match make(&new) {
            // The file of a process that was killed.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            made => return Ok((new, made?)),
        }
    }
}

/// Gives a name to a file without one.
fn link(file: &File, name: &Path) -> std::io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(
        CWD,
        from,
        CWD,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().write(true).open(path)
}

/// Puts a new file in the place of an existing one, once the new file is complete.
fn replace(
    path: &Path,
    there: Option<&Metadata>,
    numbers: &Numbers,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut path = path.to_owned();
    if there.is_some() {
        // Only a file that may be written to is replaced; if the path is a symbolic link, its
        // target is, and not the link.
        open(&path)?;
        path = path.canonicalize()?;
    }
    let (mut name, file) = beside(&path)?;
    let written = write_to(&file, numbers, bytes).and_then(|()| {
        if let Some(there) = there {
            // If this user may. Before the mode is set, since this clears a part of the mode.
            let _ = fchown(&file, Some(there.uid()), Some(there.gid()));
            file.set_permissions(there.permissions())?;
        }
        let new = match &name {
            Some(new) => new,
            None if there.is_none() && link(&file, &path).is_ok() => return Ok(()),
            // Only a file with a name can take the place of another, in the next step.
            None => name.insert(named(&path, |new| link(&file, new))?.0),
        };
        std::fs::rename(new, &path)
    });
    if let (Err(_), Some(name)) = (&written, &name) {
        let _ = std::fs::remove_file(name);
    }
    written
}

fn write_to(out: impl Write, numbers: &Numbers, bytes: &[u8]) -> std::io::Result<()> {
    let shape: Vec<u64> = numbers.shape.iter().map(|&len| len as u64).collect();
    let mut out = BufWriter::new(out);
    with_type!(
        numbers.dtype,
        |T| {
            let elements = bytes.as_chunks::<{ size_of::<T>() }>().0;
            let mut writer = npyz::WriteOptions::new()
                .default_dtype()
                .shape(&shape)
                .writer(&mut out)
                .begin_nd()?;
            writer.extend(elements.iter().map(|element| T::from_le_bytes(*element)))?;
            writer.finish()?;
        },
        unreachable!("numbers of a pool have one of these types")
    );
    out.flush()
}

/// Whether a file's header has more brackets than its own and its shape's, as it has for types of
/// several fields. The reader takes twice as long for each bracket that lies in another. Every
/// opening bracket counts: whether one belongs to a string is only known to code that parses the
/// header.
fn is_nested(file: &File) -> std::io::Result<bool> {
    /// Much more than the header of anything that can be stored needs.
    const MOST: usize = 4096;
    let mut bytes = [0; MOST];
    let mut length = 0;
    while length < MOST {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // The version is behind the magic number, followed by the header's length.
    let (start, end) = match bytes {
        // A file of another kind has no header.
        _ if !bytes.starts_with(b"\x93NUMPY") => return Ok(false),
        [_, _, _, _, _, _, 1, _, a, b, ..] => (10, 10 + usize::from(u16::from_le_bytes([a, b]))),
        [_, _, _, _, _, _, _, _, a, b, c, d, ..] => {
            (12, 12 + u32::from_le_bytes([a, b, c, d]) as usize)
        }
    };
    let header = &bytes[start..end.clamp(start, MOST)];
    let opens = |byte: &&u8| matches!(byte, b'(' | b'[' | b'{');
    Ok(end > MOST || header.iter().filter(opens).count() > 2)
}

/// Reads a file.
pub fn read(path: &Path) -> Outcome<Read> {
    let name = path.display().to_string();
    let unsuitable = |why: String| Failure::new(Code::Unsuitable, why).about(&name);
    let file = File::open(path).map_err(|error| Failure::from(error).about(&name))?;
    let length = file.metadata().map_or(0, |file| file.len());
    if is_nested(&file).map_err(|error| unsuitable(format!("this is no .npy file: {error}")))? {
        return Err(unsuitable("its elements are no plain numbers".into()));
    }
    // The reader multiplies the lengths without checking, which panics in builds with overflow
    // checks.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let opened = std::panic::catch_unwind(move || NpyFile::new(BufReader::new(file)));
    std::panic::set_hook(hook);
    let npy = opened
        .map_err(|_| unsuitable("its shape overflows".into()))?
        .map_err(|error| unsuitable(format!("this is no .npy file: {error}")))?;
    let shape = npy.shape().to_vec();
    if shape.len() > 2 {
        return Err(unsuitable(format!(
            "it has {} dimensions; numbers have none, arrays one and matrices two",
            shape.len()
        )));
    }
    let described = npy.dtype().descr();
    let described = described.trim_matches('\'');
    // The reader converts big-endian elements.
    let dtype = described.replacen('>', "<", 1);
    let order = npy.order();
    let whole = |len: u64| usize::try_from(len).map_err(|_| unsuitable("it is too large".into()));
    let shape = shape.into_iter().map(whole).collect::<Outcome<Vec<_>>>()?;
    let count = shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
    let unreadable =
        |error: &dyn std::error::Error| unsuitable(format!("it cannot be read: {error}"));
    let mut bytes = Vec::new();
    with_type!(
        dtype.as_str(),
        |T| {
            const SIZE: usize = size_of::<T>();
            let needed = count.and_then(|count| count.checked_mul(SIZE));
            let needed = needed.filter(|&needed| needed as u64 <= length);
            let needed =
                needed.ok_or_else(|| unsuitable("it is shorter than its shape says".into()))?;
            bytes.try_reserve_exact(needed).map_err(|_| {
                let why = format!("there is no memory for {needed} bytes");
                Failure::new(Code::System, why).about(&name)
            })?;
            bytes.resize(needed, 0);
            let places = bytes.as_chunks_mut::<SIZE>().0;
            let elements = npy.data::<T>().map_err(|error| unreadable(&error))?;
            for (i, element) in elements.enumerate() {
                let at = match (order, shape.as_slice()) {
                    (Order::Fortran, &[rows, columns]) => i % rows * columns + i / rows,
                    _ => i,
                };
                places[at] = element.map_err(|error| unreadable(&error))?.to_ne_bytes();
            }
        },
        return Err(unsuitable(format!(
            "elements of the type {described} cannot be stored"
        )))
    );
    Ok(Read {
        dtype,
        shape,
        bytes,
    })
}
