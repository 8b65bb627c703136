//! Which cases the command line selects. It is read like that of Rust's own harness, as far as it
//! selects cases, because `cargo test NAME` passes the same arguments to every test program.

use std::env;

#[derive(Default)]
pub struct Pick {
    names: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    /// Names are printed, and nothing is run.
    pub list: bool,
}

impl Pick {
    pub fn from_args() -> Pick {
        let mut pick = Pick::default();
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--exact" => pick.exact = true,
                "--list" => pick.list = true,
                "--skip" => pick.skipped.extend(arguments.next()),
                // What follows is no name.
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed"
                | "-Z" => {
                    arguments.next();
                }
                flag if flag.starts_with('-') => pick
                    .skipped
                    .extend(flag.strip_prefix("--skip=").map(str::to_owned)),
                _ => pick.names.push(argument),
            }
        }
        pick
    }

    pub fn takes(&self, case: &str) -> bool {
        let is = |name: &String| match self.exact {
            true => case == name,
            false => case.contains(name),
        };
        (self.names.is_empty() || self.names.iter().any(is)) && !self.skipped.iter().any(is)
    }
}
