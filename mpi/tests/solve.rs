//! `solve_mpi` under `mpirun`, and what it says beside the answer of the example `solve`.

#[path = "../../tests/common/skip.rs"]
mod skip;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

fn example() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().nth(2).expect("tests are in PROFILE/deps");
    profile.join("examples/solve_mpi")
}

/// Of several `mpirun`s that begin at once, some fail to make a directory that another has just made.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// `None`, and a word about it, where there is no `mpirun`.
fn solve_mpi(ranks: u32, arguments: &[&str]) -> Option<Output> {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new("mpirun");
    // In containers there is one user, and few processors.
    command.args([
        "--allow-run-as-root",
        "--oversubscribe",
        "-n",
        &ranks.to_string(),
    ]);
    let output = command.arg(example()).args(arguments).output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip::skipped("mpi: there is no mpirun");
            None
        }
        output => Some(output.expect("mpirun starts")),
    }
}

fn value(output: &Output, key: &str) -> f64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.strip_prefix(": "));
    number
        .expect("the value is printed")
        .parse()
        .expect("a number")
}

#[test]
fn ranks_and_workers_solve_it_alike() {
    let mut iterations = Vec::new();
    for (ranks, workers) in [(1, "1"), (2, "2"), (3, "1")] {
        let arguments = ["--poisson", "60", "--workers", workers];
        let Some(output) = solve_mpi(ranks, &arguments) else {
            return;
        };
        // As the example `solve` is held to by its own test: the answer is all ones.
        assert!(value(&output, "residual") <= 1e-10);
        assert!(value(&output, "error") < 1e-7);
        iterations.push(value(&output, "iterations"));
    }
    // Sums in another order differ in the last digits.
    assert!(
        iterations.iter().all(|n| (n - iterations[0]).abs() <= 2.0),
        "{iterations:?}"
    );
}

#[test]
fn small_grids_and_too_many_ranks() {
    let Some(output) = solve_mpi(2, &["--poisson", "2", "--workers", "3"]) else {
        return;
    };
    assert!(value(&output, "error") < 1e-9);
    let output = solve_mpi(2, &["--poisson", "1"]).expect("there is an mpirun");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("more ranks than rows"), "{errors}");
}
