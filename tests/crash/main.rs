//! Death at every instruction. See `engine` for how, and `engine/suite.rs` for the environment variables.
//!
//! `toy` tests the engine: on a toy pool, with operations that are right and operations that are broken on purpose.

// The engine steps and decodes instructions of this processor.
#[cfg(target_arch = "x86_64")]
#[path = "x86.rs"]
mod x86;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    x86::run()
}

#[cfg(not(target_arch = "x86_64"))]
#[path = "../common/skip.rs"]
mod skip;

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    skip::skipped("tests/crash: needs x86-64");
}
