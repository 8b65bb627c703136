//! The solver of linear systems.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{Scratch, children, example};

fn solve<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    let mut command = Command::new(example("solve"));
    command.args(arguments).output().expect("solve starts")
}

/// What a successful run printed last.
#[derive(Debug, PartialEq)]
struct Answer {
    iterations: u32,
    residual: f64,
    error: f64,
}

#[track_caller]
fn answer(output: &Output) -> Answer {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    let last = lines.len().checked_sub(5).map(|from| &lines[from..]);
    let pairs: Vec<(&str, &str)> = last
        .expect("there are five lines")
        .iter()
        .map(|line| line.split_once(": ").expect("a line is KEY: VALUE"))
        .collect();
    let keys: Vec<&str> = pairs.iter().map(|pair| pair.0).collect();
    assert_eq!(
        keys,
        ["iterations", "residual", "error", "seconds", "speedup"]
    );
    let number = |at: usize| pairs[at].1.parse::<f64>().expect("a value is a number");
    assert!(number(3) >= 0.0 && number(4) >= 0.0);
    Answer {
        iterations: pairs[0].1.parse().expect("iterations are counted"),
        residual: number(1),
        error: number(2),
    }
}

/// One line says what is wrong, and it is this.
#[track_caller]
fn refused(output: &Output, says: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.starts_with("solve: "), "{errors}");
    assert!(errors.contains(says), "{errors:?} does not say {says:?}");
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bundled_matrix_is_solved_alike_by_any_number_of_workers() {
    let answers = ["1", "2", "3"].map(|workers| answer(&solve(&["--workers", workers])));
    assert!(answers[0].residual <= 1e-10, "{answers:?}");
    assert!(answers[0].error < 1e-6, "{answers:?}");
    assert!(answers[0].iterations < 1000, "{answers:?}");
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
}

#[test]
fn more_workers_than_blocks_or_rows() {
    assert!(answer(&solve(&["--workers", "14"])).error < 1e-6);
    assert!(answer(&solve(&["--poisson", "1", "--workers", "3"])).error < 1e-9);
    assert!(answer(&solve(&["--poisson", "3", "--workers", "16"])).error < 1e-9);
}

#[test]
fn poisson_equation_is_solved() {
    let answer = answer(&solve(&["--poisson", "60", "--workers", "2"]));
    assert!(
        answer.residual <= 1e-10 && answer.error < 1e-7,
        "{answer:?}"
    );
}

/// Entries whose squares are 0 or none: the solution is that of the same matrix times a number.
#[test]
fn very_small_and_very_large_entries() {
    let scratch = Scratch::new("entries");
    let chain = |unit: &str| {
        let mut content = "%%MatrixMarket matrix coordinate real symmetric\n9 9 17\n".to_owned();
        for row in 1..=9 {
            content += &format!("{row} {row} 3{unit}\n");
            if row > 1 {
                content += &format!("{row} {} -1{unit}\n", row - 1);
            }
        }
        answer(&solve(&[scratch.file("chain.mtx", content)]))
    };
    let plain = chain("");
    assert!(plain.iterations > 0 && plain.error < 1e-9, "{plain:?}");
    for unit in ["e-320", "e-200", "e-100", "e100", "e200", "e307"] {
        let scaled = chain(unit);
        assert!(
            scaled.iterations > 0 && scaled.error < 1e-9,
            "{unit}: {scaled:?}"
        );
    }
}

#[test]
fn tolerance_is_reached_or_said_not_to_be() {
    let loose = answer(&solve(&["--tolerance", "1e-3", "--workers", "2"]));
    let tight = answer(&solve(&["--tolerance", "1e-12", "--workers", "2"]));
    assert!(loose.residual <= 1e-3 && tight.residual <= 1e-12);
    assert!(loose.iterations < tight.iterations);
    refused(&solve(&["--tolerance", "1e-300"]), "no convergence");
}

#[test]
fn wrong_arguments() {
    let cases: [&[&str]; 6] = [
        &["--workers", "0"],
        &["--poisson", "0"],
        &["--tolerance", "2"],
        &["--tolerance", "nan"],
        &["--unknown"],
        &["file.mtx", "--poisson", "5"],
    ];
    for case in cases {
        let output = solve(case);
        assert_eq!(output.status.code(), Some(2), "{case:?}");
        assert!(output.stdout.is_empty(), "{case:?}");
    }
}

/// A system that cannot be had, or does not fit.
#[test]
fn no_file_and_no_room() {
    let scratch = Scratch::new("room");
    refused(&solve(&[scratch.0.join("missing.mtx")]), "No such file");
    refused(&solve(&[&scratch.0]), "not a regular file");
    let large = ["--poisson", "1000", "--pool-mib", "100"];
    refused(&solve(&large), "more than the pool's 100 MiB");
    let content = "%%MatrixMarket matrix coordinate real symmetric\n9 9 4000000000\n1 1 1\n";
    let file = scratch.file("large.mtx", content);
    refused(&solve(&[file]), "more than the pool's 4096 MiB");
    for sizes in ["4000000000 4000000000 1", "9 9 4000000000"] {
        let content = format!("%%MatrixMarket matrix coordinate real symmetric\n{sizes}\n1 1 1\n");
        let file = scratch.file("short.mtx", content);
        let arguments = [file.as_os_str(), "--pool-mib".as_ref(), "1000000".as_ref()];
        refused(&solve(&arguments), "too short for 4000000000");
    }
}

/// The bundled matrix, cut off at many places.
#[test]
fn truncated_files() {
    let scratch = Scratch::new("truncated");
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/494_bus.mtx");
    let whole = fs::read(bundled).expect("the matrix is there");
    let lines: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').collect();
    let places = lines.iter().step_by(90).copied();
    for place in places.clone().chain(places.map(|at| at.saturating_sub(20))) {
        let file = scratch.file("cut.mtx", &whole[..place]);
        refused(&solve(&[file]), "cut.mtx: ");
    }
    for size in [0, 1, 10, 40] {
        refused(
            &solve(&[scratch.file("cut.mtx", &whole[..size])]),
            "cut.mtx: ",
        );
    }
}

#[test]
fn files_that_are_no_matrix_to_solve() {
    let scratch = Scratch::new("files");
    let real = "%%MatrixMarket matrix coordinate real";
    let cases = [
        ("hello\n".into(), "not a Matrix Market file"),
        ("\0\u{1}\u{7f}\n\n".into(), "not a Matrix Market file"),
        (format!("{real}\n1 1 1\n1 1 1\n"), "not a Matrix Market"),
        (format!("{real} symmetric\n"), "before the line of sizes"),
        (format!("{real} symmetric\n2 two 3\n"), "line 2"),
        (format!("{real} symmetric\n2 2\n"), "line 2"),
        (format!("{real} general\n0 0 0\n"), "empty"),
        (format!("{real} general\n2 3 1\n1 1 1\n"), "not square"),
        (
            format!("{real} general\n1 1 2\n1 1 1\n"),
            "2 entries required",
        ),
        (
            format!("{real} general\n1 1 1\n1 1 1\n1 1 1\n"),
            "1 entries required",
        ),
        (format!("{real} general\n1 1 1\n0 1 1\n"), "line 3"),
        (format!("{real} general\n1 1 1\n1 2 1\n"), "out of bounds"),
        (format!("{real} general\n1 1 1\n1 1 x\n"), "line 3"),
        (
            format!("{real} general\n1 1 1\n1 {} 1\n", "9".repeat(30)),
            "line 3",
        ),
        (format!("{real} general\n1 1 1\n1 1 NaN\n"), "not finite"),
        (format!("{real} general\n1 1 1\n1 1 1e999\n"), "not finite"),
        (
            format!("{real} symmetric\n2 2 1\n1 2 1\n"),
            "lower triangle",
        ),
        (format!("{real} skew-symmetric\n2 2 1\n2 1 1\n"), "diagonal"),
        (
            "%%MatrixMarket matrix coordinate complex hermitian\n1 1 1\n1 1 1 0\n".into(),
            "complex",
        ),
        (
            "%%MatrixMarket matrix coordinate pattern symmetric\n1 1 1\n1 1\n".into(),
            "pattern",
        ),
        (
            "%%MatrixMarket matrix array real general\n1 1\n1\n".into(),
            "sparse",
        ),
        (
            format!("{real} general\n2 2 4\n1 1 2\n2 2 2\n1 2 1\n2 1 -1\n"),
            "not symmetric",
        ),
        (
            format!("{real} general\n2 2 3\n1 1 2\n2 2 2\n1 2 1\n"),
            "not symmetric",
        ),
        (
            format!("{real} symmetric\n2 2 2\n1 1 2\n2 2 -2\n"),
            "not positive definite: diagonal",
        ),
        (
            format!("{real} symmetric\n2 2 2\n1 1 2\n2 1 1\n"),
            "not positive definite: diagonal",
        ),
        (
            format!("{real} symmetric\n2 2 3\n1 1 2\n2 1 3\n2 2 2\n"),
            "not positive definite: entry",
        ),
        // Only the iteration finds out: the eigenvalues are 1.9, 1.9 and -0.8.
        (
            format!("{real} symmetric\n3 3 6\n1 1 1\n2 1 -.9\n3 1 -.9\n2 2 1\n3 2 -.9\n3 3 1\n"),
            "not positive definite: p'Ap",
        ),
        (
            format!("{real} symmetric\n2 2 2\n1 1 1e300\n2 2 1e-300\n"),
            "too large for double precision",
        ),
    ];
    for (content, says) in cases {
        let file = scratch.file("case.mtx", content);
        for workers in ["1", "2"] {
            let arguments = [OsStr::new("--workers"), workers.as_ref(), file.as_ref()];
            refused(&solve(&arguments), says);
        }
    }
}

#[test]
fn other_ways_to_write_a_matrix() {
    let scratch = Scratch::new("ways");
    let cases = [
        "%%MatrixMarket matrix coordinate integer symmetric\n2 2 3\n1 1 2\n2 1 1\n2 2 2\n",
        "%%MATRIXMARKET Matrix Coordinate Real General\r\n% x\r\n2 2 4\r\n2 2 2.\r\n1 1 +2\r\n1 2 1e0\r\n2 1 1\r\n",
        // An entry in parts, and no end of line.
        "%%MatrixMarket matrix coordinate real symmetric\n2 2 4\n1 1 1\n2 1 1\n2 2 2\n1 1 1",
    ];
    for content in cases {
        let file = scratch.file("case.mtx", content);
        assert!(answer(&solve(&[file])).error < 1e-9);
    }
}

/// A worker is killed: the other one learns of it, and so does the user.
#[test]
fn killed_worker_is_reported() {
    let mut command = Command::new(example("solve"));
    command.args(["--poisson", "400", "--workers", "2"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let solver = command.spawn().expect("solve starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    let workers = loop {
        let children = children(solver.id());
        if children.len() == 2 {
            break children;
        }
        assert!(Instant::now() < deadline, "there were no two workers");
        std::thread::yield_now();
    };
    let victim = rustix::process::Pid::from_raw(workers[1]).expect("a process has a number");
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).expect("it is there");
    let output = solver.wait_with_output().expect("solve ends");
    refused(
        &output,
        "worker 1 failed: the process was ended by signal 9",
    );
}
