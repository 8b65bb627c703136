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
//! | `elements` | how elements are copied |
//! | `foreign`| [`PoolAlloc`], [`Foreign`]: other crates' collections |

mod array;
mod claims;
mod elements;
mod foreign;
mod link;
mod matrix;
mod ranges;
mod shared;

pub use array::{Array, ClaimError, ElementError, ResizeError};
pub use foreign::{Foreign, PoolAlloc};
pub use link::{Link, LinkError, View};
pub use matrix::{Matrix, RowBand, RowBandMut, Rows, RowsMut, ShapeError};
pub use ranges::{Claim, ClaimMut};
pub use shared::{Handle, HandleError, Shared};
