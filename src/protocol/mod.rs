//! The protocols on shared words, apart from the pool that the words are in.
//!
//! What is here must be right under every interleaving and after a death at every write, and is
//! checked for that: `tests/loom` runs this very code. What a step needs of the pool comes in as a
//! closure. Imports `primitive` alone.
//!
//! | module      | what | used by |
//! |-------------|------|---------|
//! | `tag`       | (slot, generation), the name of an owner | everybody |
//! | `bell`      | a word to sleep on until it is rung | `engines::bell` |
//! | `bitmap`    | which blocks of a span are free | `allocator::span` |
//! | `cells`     | the words of a queue's cells | `engines::queue` |
//! | `claimed`   | ranges of an array that somebody uses alone | `containers::claims` |
//! | `detect`    | a compare-exchange whose outcome can be told after its author's death | `participants::detect` |
//! | `foremost`  | which element of a queue was told to be the first | `containers::queue` |
//! | `lock_word` | a lock whose word names its owner | `participants::lock` |
//! | `permits`   | how many permits of a semaphore are left, and who holds which | `participants::permits` |
//! | `pins`      | what may still be looked at is not freed | `participants::epoch` |
//! | `readers`   | who reads under which lock | `participants::readers` |
//! | `lifecycle` | held, retired, destroyed | `pool::objects`, `pool::dispose` |
//! | `keeping`   | what is retired and not destroyed at once | `pool::dispose`, `participants` |
//! | `leased`    | entries that elements of a queue are leased into | `engines::leases` |
//! | `left`      | whether something was left behind | `engines::limbo` |
//! | `lines`     | entries of a hash map that are looked at and changed | `engines::map` |
//! | `moving`    | how they move from a table to the next one | `engines::map` |
//! | `ring`      | who has which cell of a queue, and in what order | `engines::queue`, `containers::queue` |
//! | `rounds`    | who has arrived at a barrier, and who is missing | `sync::barrier` |
//! | `sweep`     | a walk over a table that many make, a piece each | `pool::dispose` |
//!
//! Items are `pub` for the models; outside of them the module is private.

pub mod bell;
pub mod bitmap;
pub mod cells;
pub mod claimed;
pub mod detect;
pub mod foremost;
pub mod keeping;
pub mod leased;
pub mod left;
pub mod lifecycle;
pub mod lines;
pub mod lock_word;
pub mod moving;
pub mod permits;
pub mod pins;
pub mod readers;
pub mod ring;
pub mod rounds;
pub mod sweep;
pub mod tag;

/// An exchange was lost, as others were faster: they do more with the lines that they have now, if nobody takes those
/// away at once. `docs/measurements.md` has what that gives.
#[cold]
pub(crate) fn step_back() {
    /// Pauses of the processor: as long as several operations take.
    const PAUSES: u32 = 32;
    for _ in 0..PAUSES {
        std::hint::spin_loop();
    }
}
