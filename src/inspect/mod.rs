//! Reports about a pool, as data: who has how much, what lies where, what nobody can reach.
//!
//! All of it is counted from the pool's authoritative words when a report is requested; nothing is
//! kept. Nothing is printed: the reports can be examined, or shown (`Display`).
//!
//! ```
//! use shmkit::{Pool, inspect};
//!
//! let pool = Pool::builder().max_size(4 << 20).create()?;
//! let object = pool.create([1_u64; 1000])?;
//! let mine = &inspect::participants(pool)[0];
//! assert!(mine.process == std::process::id() && mine.allocated >= 8000);
//! println!("{}", inspect::map(pool));
//! assert!(inspect::leaks(pool).is_empty());
//! drop(object);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An [`Observer`] looks at a pool without taking part in it: it needs no slot and no cooperation,
//! only the right to read the file. The command `shmkit` shows what this module reports.
//!
//! | module | what |
//! |---|---|
//! | `participants` | who takes part, and who has how much |
//! | `map` | what lies where |
//! | `leaks` | what nobody can reach |
//! | `objects` | the objects and their types |
//! | `locks` | which threads hold what, and which wait for which |
//! | `observer` | [`Observer`]: all of this from outside |
//! | `files` | the named pools that exist |

mod files;
mod leaks;
mod locks;
mod map;
mod objects;
mod observer;
mod participants;

pub use crate::pool::remove::{Removable, RemoveError, remove, would_remove};
pub use files::{Listed, PoolState, list};
pub use leaks::{Leaks, leaks};
pub use locks::{LockReport, LockThread, Why};
pub use map::{Map, Part, Use, map};
pub use objects::ObjectReport;
pub use observer::{Info, Observer};
pub use participants::{Participant, ProcessReport, Span, participants};
