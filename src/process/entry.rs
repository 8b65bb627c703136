//! [`Entry`]: a function that can be started as a process of its own.
//!
//! All workers are forked from one master, so they have the same program image at the same
//! addresses, and a request carries two addresses: of the entry, and of the function that knows
//! its types. A third word, a hash of both with the image's nonce, says that they come from this
//! image; the master's children call nothing that has none.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Worker;
use super::jobs::{Job, Kind};
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
    function: fn(&Worker, A) -> R,
}

impl<A: Wire, R: Wire> Entry<A, R> {
    /// An entry point. The name is for messages.
    #[must_use]
    pub const fn new(name: &'static str, function: fn(&Worker, A) -> R) -> Self {
        Entry { name, function }
    }

    /// The name.
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
pub(super) type Answer = (Kind, Vec<u8>);

/// A call of an [`Entry`] whose types are forgotten.
type Call = fn(usize, &Worker, &[u8]) -> Answer;

fn call<A: Wire, R: Wire>(entry: usize, worker: &Worker, argument: &[u8]) -> Answer {
    // SAFETY: `describe` stored the address of a static of this very type together with this
    // function, and `described` has found both to be of this image.
    let entry = unsafe { &*std::ptr::with_exposed_provenance::<Entry<A, R>>(entry) };
    let argument = match decode(argument) {
        Ok(argument) => argument,
        Err(why) => return (Kind::BadArgument, why.into_bytes()),
    };
    let value = (entry.function)(worker, argument);
    let encoded = postcard::to_stdvec(&value);
    // The value's owner is whoever joins; a worker ends without destructors.
    std::mem::forget(value);
    match encoded {
        Ok(bytes) => (Kind::Value, bytes),
        Err(error) => (Kind::EncodeFailed, error.to_string().into_bytes()),
    }
}

/// A value of all the bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(format!("{} bytes are left over", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// FNV-1a (Fowler, Noll, Vo), a word at a time.
fn seal(words: [u64; 2]) -> u64 {
    let hash = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x100_0000_01b3);
    words
        .into_iter()
        .fold(hash(0xcbf2_9ce4_8422_2325, image_nonce()), hash)
}

/// Says in the job what is to be called.
pub(super) fn describe<A: Wire, R: Wire>(job: &Job, entry: &'static Entry<A, R>) {
    let function: Call = call::<A, R>;
    let words = [
        (function as *const ()).expose_provenance() as u64,
        std::ptr::from_ref(entry).expose_provenance() as u64,
    ];
    for (word, value) in job.call.iter().zip([words[0], words[1], seal(words)]) {
        word.store(value, Ordering::Relaxed);
    }
}

/// What is to be called, and with which entry; `None` if no process of this image said so.
pub(super) fn described(job: &Job) -> Option<(Call, usize)> {
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
