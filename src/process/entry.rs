//! [`Entry`]: a function that can be started as a process of its own.
//!
//! All workers are forked from one master, so they have the same program image at the same
//! addresses, and a request carries two addresses: that of the entry's function, and that of the
//! function that knows its types. Both are code. The entry itself may be data that only its worker
//! has, and nobody else reads it. A third word, a hash of both with the image's nonce, says that
//! they come from this image; the master's children call nothing that lacks it.
//!
//! Programs that were built separately share no addresses. Between them a request carries two
//! numbers, the hash of the entry's name and the signature of its types (`signature.rs`), and is
//! answered by a program that has [defined](super::Config::define) an entry with both.

use std::sync::OnceLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::encode::{Encoded, decode};
use super::jobs::{Job, PayloadKind};
use super::{Worker, signature};
use crate::layout::fingerprint::image_nonce;
use crate::layout::fnv;
use crate::primitive::Ordering;

/// What can be passed to a worker and back: everything that serde serialises. For an object in a
/// pool, its [`Handle`](crate::Handle) is passed; errors of containers and locks that are plain
/// values can be passed, too.
///
/// ```
/// use shmkit::process::Wire;
/// use shmkit::{Handle, PopError, Queue};
///
/// fn assert_wire<T: Wire>() {}
/// assert_wire::<Vec<(String, u64)>>();
/// assert_wire::<Handle<Queue<u64>>>();
/// assert_wire::<Result<u64, PopError>>();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel to a worker and back",
    label = "not `Wire`",
    note = "what travels is serialised by serde: derive `serde::Serialize` and `serde::Deserialize`; of an object in \
            a pool its `Handle` travels, which `Shared::handle` gives and `Handle::open` takes"
)]
pub trait Wire: Serialize + DeserializeOwned {}

impl<T: Serialize + DeserializeOwned> Wire for T {}

/// An entry point: a function with which workers can be started, by name and with its types.
///
/// Usually it is a static; an entry that a worker has made or leaked works too, since a worker is
/// started with the function and not with the entry. The function belongs to the program, or to a
/// library that was loaded before [`run`](super::run): what one worker loads, others do not have.
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
    /// and with types that look the same to serde. A worker that is started with it waits for such
    /// a program; in a run without a [name](super::Config::name), which no other program can find,
    /// it is refused ([`JoinError::NotStarted`](super::JoinError::NotStarted)).
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

/// The result of a call: bytes, and what they are.
pub(super) type Answer = (PayloadKind, Encoded);

/// A call of an [`Entry`] whose types are erased.
type Call = fn(usize, &Worker, &[u8]) -> Answer;

fn call<A: Wire, R: Wire>(function: usize, worker: &Worker, argument: &[u8]) -> Answer {
    let function = std::ptr::with_exposed_provenance::<()>(function);
    // SAFETY: `pair` made it from a function of this very type, together with the address of this
    // one, and `described` has found both to be of this image, where code is at one address.
    let function = unsafe { std::mem::transmute::<*const (), fn(&Worker, A) -> R>(function) };
    let argument = match decode(argument) {
        Ok(argument) => argument,
        Err(why) => return (PayloadKind::BadArgument, why.as_str().into()),
    };
    let value = function(worker, argument);
    let encoded = Encoded::of(&value);
    // The value now belongs to whoever joins; a worker ends without destructors.
    std::mem::forget(value);
    match encoded {
        Ok(bytes) => (PayloadKind::Value, bytes),
        Err(why) => (PayloadKind::EncodeFailed, why.as_str().into()),
    }
}

/// What a call needs: the function that knows the types, and the address of the entry's function.
fn pair<A: Wire, R: Wire>(function: fn(&Worker, A) -> R) -> (Call, usize) {
    (call::<A, R>, (function as *const ()).expose_provenance())
}

fn seal(words: [u64; 2]) -> u64 {
    let start = fnv::step(fnv::START, image_nonce());
    words.into_iter().fold(start, fnv::step)
}

/// An entry that other programs find by its name.
#[derive(Clone, Copy)]
pub(super) struct Defined {
    pub(super) name: &'static str,
    pub(super) known: Known,
    pair: (Call, usize),
}

/// What identifies an entry between programs.
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
    Some(Defined {
        name: entry.name,
        known: Known::of(entry),
        pair: pair(entry.function?),
    })
}

/// Stores in the job what is to be called. Between programs (`by_name`) that is a name.
pub(super) fn describe<A: Wire, R: Wire>(job: &Job, entry: &'static Entry<A, R>, by_name: bool) {
    let words = match entry.function {
        Some(function) if !by_name => {
            let (call, function) = pair(function);
            let call = (call as *const ()).expose_provenance() as u64;
            let function = function as u64;
            [call, function, seal([call, function])]
        }
        _ => {
            let Known { name, signature } = Known::of(entry);
            [0, name, signature]
        }
    };
    for (word, value) in job.call.iter().zip(words) {
        word.store(value, Ordering::Relaxed);
    }
}

/// The name of what is to be called, if it is called by its name.
pub(super) fn wanted(job: &Job) -> Option<Known> {
    let [call, name, signature] = [0, 1, 2].map(|i| job.call[i].load(Ordering::Relaxed));
    (call == 0).then_some(Known { name, signature })
}

/// The function that knows the types, and what is to be called. `None` if no process of this image
/// stored that, and it is not one of the entries that this program has defined.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn described(job: &Job, defined: &[Defined]) -> Option<(Call, usize)> {
    if let Some(wanted) = wanted(job) {
        let found = defined.iter().find(|defined| defined.known == wanted)?;
        return Some(found.pair);
    }
    let [call, function, sealed] = [0, 1, 2].map(|i| job.call[i].load(Ordering::Relaxed));
    if seal([call, function]) != sealed {
        return None;
    }
    let call = std::ptr::with_exposed_provenance::<()>(call as usize);
    // SAFETY: stored by `describe`, in a process of this image, where the same function is at the
    // same address: a fork copies all that is mapped, and unloading code that is in use is unsafe.
    let call = unsafe { std::mem::transmute::<*const (), Call>(call) };
    Some((call, function as usize))
}
