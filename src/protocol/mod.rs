//! The protocols on shared words, independent of the pool that contains the words.
//!
//! The code here must be right under every interleaving and after a death at every write, and is
//! checked for that: `tests/loom` runs this very code. What a step needs from the pool is passed in
//! as a closure. The module imports only `primitive`.
//!
//! | module      | what | used by |
//! |-------------|------|---------|
//! | `tag`       | (slot, generation), the name of an owner | everybody |
//! | `bell`      | a word to sleep on until it is rung | `engines::bell` |
//! | `bitmap`    | which blocks of a span are free | `allocator::span` |
//! | `cells`     | the words of a queue's cells | `engines::queue` |
//! | `claimed`   | ranges of an array that are claimed | `containers::claims` |
//! | `detect`    | a compare-exchange whose outcome is known after its author's death | `participants::detect` |
//! | `foremost`  | which element of a queue was reported as the first | `containers::queue` |
//! | `lock_word` | a lock whose word names its owner | `participants::lock` |
//! | `permits`   | how many permits of a semaphore are left, and which thread holds which | `participants::permits` |
//! | `pins`      | keeps what may still be looked at from being freed | `participants::epoch` |
//! | `readers`   | which threads read under which lock | `participants::readers` |
//! | `lifecycle` | the states of an object: held, retired, destroyed | `pool::objects`, `pool::dispose` |
//! | `keeping`   | objects that are retired and not destroyed at once | `pool::dispose`, `participants` |
//! | `leased`    | the entries that elements of a queue are leased into | `engines::leases` |
//! | `left`      | whether something was left behind | `engines::limbo` |
//! | `lines`     | entries of a hash map, and how they are looked at and changed | `engines::map` |
//! | `moving`    | how these entries move from a table to the next one | `engines::map` |
//! | `ring`      | which thread has which cell of a queue, and in what order | `engines::queue`, `containers::queue` |
//! | `rounds`    | which parties have arrived at a barrier, and which are missing | `sync::barrier` |
//! | `sweep`     | a walk over a table, of which several threads make a piece each | `pool::dispose` |
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

/// Called when an exchange has failed because others were faster. They get more done with the cache lines that they
/// have now if nobody takes these away at once. `docs/measurements.md` says how much this gains.
#[cold]
pub(crate) fn step_back() {
    /// The number of processor pauses, which together last as long as several operations.
    const PAUSES: u32 = 32;
    for _ in 0..PAUSES {
        std::hint::spin_loop();
    }
}
