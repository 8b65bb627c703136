//! What the targets have in common.
//!
//! | module | what |
//! |--------|------|
//! | `input` | how the fuzzer's bytes are read as operations |
//! | `blocks` | a model of the blocks of a pool |
//! | `stage` | a container in a pool, and two who use it |
//!
//! Targets need `cfg(fuzzing)`, which `cargo fuzz` sets.
#![cfg(fuzzing)]

mod blocks;
mod input;
mod stage;

pub use blocks::{Blocks, Shape};
pub use input::{Step, Steps, writes};
pub use stage::{MINE, OTHER, Stage};
