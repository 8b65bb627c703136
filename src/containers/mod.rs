//! Containers and handles: what lives in pools and is used by several processes at once.
//!
//! | module   | what |
//! |----------|------|
//! | `shared` | [`Shared`], [`Handle`]: objects from the outside |
//! | `named`  | objects by name |
//! | `link`   | [`Link`], [`View`]: objects from within the pool |
//! | `array`  | [`Array`]: elements, or claimed ranges as slices |
//! | `cell`   | [`SharedCell`]: a value that is only replaced as a whole |
//! | `matrix` | [`Matrix`]: an array with rows and columns |
//! | `buffer` | [`Buffer`]: a stream of bytes at positions that never change |
//! | `buffer_io` | [`BytesView`], [`Reader`]: a buffer's bytes, in place and as a stream |
//! | `hash_map` | [`HashMap`]: values by keys |
//! | `heap` | [`Heap`]: objects that refer to each other, changed by transactions |
//! | `multi_map` | [`MultiMap`]: stacks of values by keys |
//! | `claims` | which participant uses which elements of an array |
//! | `ranges` | [`Claim`], [`ClaimMut`]: claimed ranges |
//! | `refusals` | the errors of arrays |
//! | `store`  | the errors of containers that allocate |
//! | `elements` | how elements are copied |
//! | `value`  | [`Value`]: what maps hold and views show |
//! | `queue`  | [`Queue`]: first in, first out |
//! | `mailbox`| [`Mailbox`]: many senders, one receiver |
//! | `foreign`| [`PoolAlloc`], [`Foreign`]: other crates' collections |

mod array;
mod buffer;
mod buffer_io;
mod cell;
mod claims;
mod elements;
mod foreign;
mod hash_map;
mod heap;
mod link;
mod mailbox;
mod matrix;
mod multi_map;
mod named;
mod queue;
mod ranges;
mod refusals;
mod shared;
mod store;
mod value;
#[cfg(test)]
mod wakes;

use std::marker::PhantomData;

/// Marks a container of `T`s that are stored and taken through `&`: it is invariant in `T`, and has the auto
/// traits of `T`.
type Contained<T> = PhantomData<(fn(&T) -> &T, T)>;

pub use array::Array;
pub use buffer::{AppendError, Buffer, Position, RangeError};
pub use buffer_io::{ByteChunks, BytesView, Reader, Writer};
pub use cell::SharedCell;
pub use foreign::{Foreign, PoolAlloc};
pub use hash_map::{
    CompareError, FoldHash, HashMap, Iter, Key, KeyHasher, MapEntry, ModifyEntry, SipHash13, is_key,
};
pub use heap::{Collected, Gc, GcTarget, Heap, HeapError, HeapStats, HeapView, Trace, Tracer, Tx};
pub use link::{Link, LinkError, View};
pub use mailbox::{Mailbox, Receiver, ReceiverError, RecvError};
pub use matrix::{Matrix, RowBand, RowBandMut, Rows, RowsMut, ShapeError};
pub use multi_map::{Bindings, MultiMap};
pub use named::NamedError;
pub use queue::{Lease, PopError, PushError, PushRefusal, Queue, Snapshot};
pub use ranges::{Claim, ClaimMut};
pub use refusals::{ClaimError, ElementError, ResizeError};
pub use shared::{Handle, HandleError, Shared};
pub use store::{ChangeError, StoreError};
pub use value::Value;
