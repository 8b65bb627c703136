//! What a test does if the machine lacks something that it needs.

use std::fs::File;
use std::io::Write as _;

/// Says what is not tested, and why. `.ci/run` has a list of it made, which it prints at its end.
pub fn skipped(what: &str) {
    println!("skipped: {what}");
    if let Some(list) = std::env::var_os("SHMKIT_SKIPPED") {
        let mut list = File::options()
            .append(true)
            .create(true)
            .open(list)
            .unwrap();
        // One call, so that lines of programs at once do not mix.
        list.write_all(format!("{what}\n").as_bytes()).unwrap();
    }
}
