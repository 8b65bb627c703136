//! Tells the crate which compiler builds it.
//!
//! A few layouts (`Option`, `Duration`) are the compiler's own choice. Their fingerprints mix in
//! the compiler's release and commit, so that programs which might disagree do not share them.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Cargo sets RUSTC for build scripts, and runs them again when that compiler changes.
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let output = Command::new(rustc)
        .arg("-Vv")
        .output()
        .expect("rustc -Vv runs");
    let text = String::from_utf8(output.stdout).expect("rustc -Vv prints UTF-8");
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map_or("unknown", str::trim)
    };
    println!(
        "cargo:rustc-env=SHMKIT_RUSTC={} {}",
        value("release:"),
        value("commit-hash:")
    );
}
