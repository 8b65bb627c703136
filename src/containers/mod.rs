//! What lives in pools and is used from several processes at once.
//!
//! | module   | what |
//! |----------|------|
//! | `shared` | [`Shared`], [`Handle`]: objects from the outside |
//! | `link`   | [`Link`], [`View`]: objects from within the pool |
//! | `foreign`| [`PoolAlloc`], [`Foreign`]: other crates' collections |

mod foreign;
mod link;
mod shared;

pub use foreign::{Foreign, PoolAlloc};
pub use link::{Link, LinkError, View};
pub use shared::{Handle, HandleError, Shared};
