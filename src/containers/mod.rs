//! What lives in pools and is used from several processes at once.
//!
//! | module   | what |
//! |----------|------|
//! | `shared` | [`Shared`], [`Handle`]: objects from the outside |
//! | `link`   | [`Link`], [`View`]: objects from within the pool |
//! | `array`  | [`Array`]: elements, or claimed ranges as slices |
//! | `matrix` | [`Matrix`]: the same by rows |
//! | `buffer` | [`Buffer`]: a stream of bytes at positions that never change |
//! | `buffer_io` | [`BytesView`], [`Reader`]: its bytes, in place and as a stream |
//! | `claims` | who uses which elements of an array |
//! | `ranges` | [`Claim`], [`ClaimMut`]: claimed ranges |
//! | `refusals` | the errors of arrays |
//! | `elements` | how elements are copied |
//! | `foreign`| [`PoolAlloc`], [`Foreign`]: other crates' collections |

mod array;
mod buffer;
mod buffer_io;
mod claims;
mod elements;
mod foreign;
mod link;
mod matrix;
mod ranges;
mod refusals;
mod shared;

pub use array::Array;
pub use buffer::{AppendError, Buffer, Position, RangeError};
pub use buffer_io::{ByteChunks, BytesView, Reader};
pub use foreign::{Foreign, PoolAlloc};
pub use link::{Link, LinkError, View};
pub use matrix::{Matrix, RowBand, RowBandMut, Rows, RowsMut, ShapeError};
pub use ranges::{Claim, ClaimMut};
pub use refusals::{ClaimError, ElementError, ResizeError};
pub use shared::{Handle, HandleError, Shared};
