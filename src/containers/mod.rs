//! What lives in pools and is used from several processes at once.
//!
//! | module   | what |
//! |----------|------|
//! | `shared` | [`Shared`], [`Handle`]: objects from the outside |
//! | `link`   | [`Link`], [`View`]: objects from within the pool |
//! | `array`  | [`Array`]: elements, or claimed ranges as slices |
//! | `matrix` | [`Matrix`]: the same by rows |
//! | `claims` | who uses which elements of an array |
//! | `ranges` | [`Claim`], [`ClaimMut`]: claimed ranges |
//! | `refusals` | the errors of arrays |
//! | `elements` | how elements are copied |
//! | `queue`  | [`Queue`]: first in, first out |
//! | `mailbox`| [`Mailbox`]: many senders, one receiver |
//! | `foreign`| [`PoolAlloc`], [`Foreign`]: other crates' collections |

mod array;
mod claims;
mod elements;
mod foreign;
mod link;
mod mailbox;
mod matrix;
mod queue;
mod ranges;
mod refusals;
mod shared;

pub use array::Array;
pub use foreign::{Foreign, PoolAlloc};
pub use link::{Link, LinkError, View};
pub use mailbox::{Mailbox, Receiver, ReceiverError, RecvError};
pub use matrix::{Matrix, RowBand, RowBandMut, Rows, RowsMut, ShapeError};
pub use queue::{Lease, PopError, PushError, PushRefusal, Queue, Snapshot};
pub use ranges::{Claim, ClaimMut};
pub use refusals::{ClaimError, ElementError, ResizeError};
pub use shared::{Handle, HandleError, Shared};
