//! [`Entry`]: a function that can be started as a process of its own.
//!
//! All workers are forked from one master, so they have the same program image at the same
//! addresses, and a request carries two addresses: of the entry, and of the function that knows
//! its types. A third word, a hash of both with the image's nonce, says that they come from this
//! image; the master's children call nothing that has none.
//!
//! Programs that were built separately share no addresses. Between them a request carries two
//! numbers, the hash of the entry's name and the signature of its types (`signature.rs`), and is
//! answered by who has [defined](super::Config::define) an entry with both.

use std::sync::OnceLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::encode::{Encoded, decode};
use super::jobs::{Job, Kind};
use super::{Worker, signature};
use crate::layout::fingerprint::image_nonce;
use crate::primitive::Ordering;

/// What can travel to a worker and back: everything that serde serialises.
///
/// ```
/// fn assert_wire<T: shmkit::process::Wire>() {}
/// assert_wire::<Vec<(String, u64)>>();
/// ```
pub trait Wire: Serialize + DeserializeOwned {}

impl<T: Serialize + DeserializeOwned> Wire for T {}

/// An entry point: a function that workers can be started with, by name and with its types.
///
/// It is a static, so that its address means the same in every worker:
///
/// ```
/// use shmkit::process::{Config, Entry, Worker, run};
///
/// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
/// static SUM: Entry<u64, u64> = Entry::new("sum", sum);
///
/// fn sum(worker: &Worker, n: u64) -> u64 {
///     let squares: Vec<_> = (1..=n).map(|i| worker.start(&SQUARE, &i).unwrap()).collect();
///     squares.into_iter().map(|square| square.join().unwrap()).sum()
/// }
///
/// assert_eq!(run(&Config::new(), &SUM, 3)?, 14);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
pub struct Entry<A, R> {
    name: &'static str,
    /// `None`: another program has it.
    function: Option<fn(&Worker, A) -> R>,
    signature: OnceLock<u64>,
}

impl<A: Wire, R: Wire> Entry<A, R> {
    /// An entry point of this program. The name is for messages, and for other programs: see
    /// [`Peer`](super::Peer).
    ///
    /// ```
    /// use shmkit::process::Entry;
    /// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
    /// ```
    #[must_use]
    pub const fn new(name: &'static str, function: fn(&Worker, A) -> R) -> Self {
        Entry {
            name,
            function: Some(function),
            signature: OnceLock::new(),
        }
    }

    /// An entry point of another program, which has [defined](super::Peer::define) one of that name
    /// and with types that look the same to serde. What is started with it waits for such a
    /// program.
    ///
    /// ```
    /// use shmkit::process::Entry;
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::external("square");
    /// assert_eq!(SQUARE.name(), "square");
    /// ```
    #[must_use]
    pub const fn external(name: &'static str) -> Self {
        Entry {
            name,
            function: None,
            signature: OnceLock::new(),
        }
    }

    pub(super) fn signature(&self) -> u64 {
        *self.signature.get_or_init(signature::signature::<A, R>)
    }

    /// The name.
    ///
    /// ```
    /// use shmkit::process::Entry;
    /// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
    /// assert_eq!(SQUARE.name(), "square");
    /// ```
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<A, R> std::fmt::Debug for Entry<A, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Entry").field(&self.name).finish()
    }
}

/// What a call gave: bytes, and what they are.
pub(super) type Answer = (Kind, Encoded);

/// A call of an [`Entry`] whose types are forgotten.
type Call = fn(usize, &Worker, &[u8]) -> Answer;

fn call<A: Wire, R: Wire>(entry: usize, worker: &Worker, argument: &[u8]) -> Answer {
    // SAFETY: `describe` stored the address of a static of this very type together with this
    // function, and `described` has found both to be of this image.
    let entry = unsafe { &*std::ptr::with_exposed_provenance::<Entry<A, R>>(entry) };
    let argument = match decode(argument) {
        Ok(argument) => argument,
        Err(why) => return (Kind::BadArgument, why.as_str().into()),
    };
    let Some(function) = entry.function else {
        return (
            Kind::BadArgument,
            "the entry point is another program's".into(),
        );
    };
    let value = function(worker, argument);
    let encoded = Encoded::of(&value);
    // The value's owner is whoever joins; a worker ends without destructors.
    std::mem::forget(value);
    match encoded {
        Ok(bytes) => (Kind::Value, bytes),
        Err(why) => (Kind::EncodeFailed, why.as_str().into()),
    }
}

/// FNV-1a (Fowler, Noll, Vo), a word at a time.
fn seal(words: [u64; 2]) -> u64 {
    let hash = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x100_0000_01b3);
    words
        .into_iter()
        .fold(hash(0xcbf2_9ce4_8422_2325, image_nonce()), hash)
}

/// An entry that programs find by its name.
#[derive(Clone, Copy)]
pub(super) struct Defined {
    pub(super) name: &'static str,
    pub(super) known: Known,
    call: Call,
    entry: usize,
}

/// What stands for an entry between programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: u64,
    pub(super) signature: u64,
}

impl Known {
    pub(super) fn new(name: &str, signature: u64) -> Known {
        Known {
            name: signature::hash(name.as_bytes()),
            signature,
        }
    }

    fn of<A: Wire, R: Wire>(entry: &Entry<A, R>) -> Known {
        Known::new(entry.name, entry.signature())
    }
}

/// `None` if the entry is another program's.
pub(super) fn define<A: Wire, R: Wire>(entry: &'static Entry<A, R>) -> Option<Defined> {
    entry.function?;
    Some(Defined {
        name: entry.name,
        known: Known::of(entry),
        call: call::<A, R>,
        entry: std::ptr::from_ref(entry).expose_provenance(),
    })
}

/// Says in the job what is to be called. Between programs (`by_name`) that is a name.
pub(super) fn describe<A: Wire, R: Wire>(job: &Job, entry: &'static Entry<A, R>, by_name: bool) {
    let words = if by_name || entry.function.is_none() {
        let Known { name, signature } = Known::of(entry);
        [0, name, signature]
    } else {
        let function: Call = call::<A, R>;
        let function = (function as *const ()).expose_provenance() as u64;
        let entry = std::ptr::from_ref(entry).expose_provenance() as u64;
        [function, entry, seal([function, entry])]
    };
    for (word, value) in job.call.iter().zip(words) {
        word.store(value, Ordering::Relaxed);
    }
}

/// The name of what is to be called, if it is called by its name.
pub(super) fn wanted(job: &Job) -> Option<Known> {
    let [function, name, signature] = [0, 1, 2].map(|i| job.call[i].load(Ordering::Relaxed));
    (function == 0).then_some(Known { name, signature })
}

/// What is to be called, and with which entry; `None` if no process of this image said so, and it
/// is none of those that this program has defined.
pub(super) fn described(job: &Job, defined: &[Defined]) -> Option<(Call, usize)> {
    if let Some(wanted) = wanted(job) {
        let found = defined.iter().find(|defined| defined.known == wanted)?;
        return Some((found.call, found.entry));
    }
    let [function, entry, sealed] = [0, 1, 2].map(|i| job.call[i].load(Ordering::Relaxed));
    if seal([function, entry]) != sealed {
        return None;
    }
    let function = std::ptr::with_exposed_provenance::<()>(function as usize);
    // SAFETY: stored by `describe`, in a process of this image, where the same function is at the
    // same address: a fork copies all that is mapped, and unloading code that is in use is unsafe.
    let function = unsafe { std::mem::transmute::<*const (), Call>(function) };
    Some((function, entry as usize))
}
