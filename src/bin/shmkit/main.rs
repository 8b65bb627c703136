//! The command `shmkit`: which pools exist, what is in them, and the removal of leftovers.
//!
//! This has only arguments and printing. What is printed comes from `shmkit::inspect` and
//! `shmkit::numbers`.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line |
//! | `failure` | what can go wrong, and the exit codes |
//! | `report` | reports as text and JSON |
//! | `man` | the manual page |
//! | `npy` | matrices, arrays and numbers to and from `.npy` files |
//! | `top` | the live view |
//! | `bench` | rates of this machine |
//! | `fault` | turns panics and faults over a damaged pool into a message |

mod args;
mod bench;
mod failure;
mod fault;
mod man;
mod npy;
mod report;
mod top;

fn main() -> std::process::ExitCode {
    fault::install();
    fault::ignore_size_limit();
    let outcome = std::panic::catch_unwind(|| args::parse().and_then(args::Cli::run));
    let failure = match outcome {
        Ok(Ok(())) => return std::process::ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        // The hook has printed the message.
        Err(_) => return failure::Code::Damaged.into(),
    };
    if let Some(message) = &failure.message {
        // If this fails, there is nobody left to tell.
        let line = format!("shmkit: {}\n", report::plain(message));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
    failure.code.into()
}
