//! Sys.
#[allow(dead_code, reason = "identity and death are for the participants layer, written next")]
pub(crate) mod process;
