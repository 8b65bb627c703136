//! The example programs, run as a user would run them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An example program. Cargo builds them for `cargo test`, beside the tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().nth(2).expect("tests are in PROFILE/deps");
    let program = profile.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing; `cargo test --test examples` alone does not build it: \
         run `cargo build --example {name}` before, for the same profile",
        program.display()
    );
    program
}

fn solve<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    let mut command = Command::new(example("solve"));
    command.args(arguments).output().expect("solve starts")
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let name = format!("shmkit-examples-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        Scratch(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
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

/// The children of a process.
fn children(process: u32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
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

fn printed(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(example(name)).args(arguments).output();
    let output = output.expect("the example starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    String::from_utf8(output.stdout).expect("the output is text")
}

/// A task awaits what processes push.
#[test]
fn results_are_awaited() {
    let text = printed("async_events", &["--workers", "2", "--results", "50"]);
    // The hundredth prime number.
    assert_eq!(text, "100 found, the largest 541\n");
}

#[test]
fn processes_are_created_and_joined() {
    let text = printed("create_join", &["--count", "300"]);
    assert!(
        text.contains("joined: 300\n") && text.contains("rate: "),
        "{text}"
    );
    let text = printed(
        "create_join",
        &["--count", "205", "--at-once", "100", "--against-fork"],
    );
    assert!(
        text.contains("joined: 205\n") && text.contains("ratio: "),
        "{text}"
    );
}

#[test]
fn matrices_are_multiplied() {
    for workers in ["1", "3"] {
        let sizes = [
            "--count",
            "40",
            "--small",
            "9",
            "--large",
            "70",
            "--workers",
            workers,
        ];
        let text = printed("matmul", &sizes);
        assert!(text.ends_with("products: right\n"), "{text}");
    }
}

/// The example's master serves from mio's loop; a worker that fails does so alone.
#[test]
fn master_in_an_event_loop() {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpStream;
    let mut command = Command::new(example("event_loop"));
    command
        .args(["--connections", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut server = command.spawn().expect("the server starts");
    let mut output = BufReader::new(server.stdout.take().expect("it is piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line is printed");
    let port: u16 = line
        .trim()
        .trim_start_matches("port: ")
        .parse()
        .expect("a port");
    let mut connections = [(); 2].map(|()| {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_nodelay(true).expect("it is a socket");
        (
            stream.try_clone().expect("it can be shared"),
            BufReader::new(stream),
        )
    });
    let mut ask = |which: usize, question: &str| {
        let (stream, answers) = &mut connections[which];
        // In two parts: a line is not a packet.
        let (first, second) = question.split_at(1);
        stream.write_all(first.as_bytes()).expect("it is connected");
        stream
            .write_all(format!("{second}\n").as_bytes())
            .expect("it is connected");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("it answers");
        answer
    };
    for n in 0..20_u64 {
        assert_eq!(ask(n as usize % 2, &n.to_string()), format!("{}\n", n * n));
    }
    let failed = ask(0, "seven");
    assert!(
        failed.starts_with("the process panicked: the line is a number"),
        "{failed}"
    );
    assert_eq!(ask(0, "12"), "144\n");
    drop(connections);
    assert!(server.wait().expect("it ends").success());
}

fn wordcount<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    let mut command = Command::new(example("wordcount"));
    command.args(arguments).output().expect("wordcount starts")
}

/// The words of given files, and of this repository, are counted as one process counts them.
#[test]
fn words_are_counted() {
    let scratch = Scratch::new("words");
    for i in 0..20 {
        scratch.file(
            &format!("{i}.txt"),
            format!("one two two w{i} \u{e4}\u{df}\n"),
        );
    }
    let output = wordcount(&[scratch.0.as_os_str(), "--top".as_ref(), "1".as_ref()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("      40 two\n20 files, 100 words, 23 different; as counted alone"),
        "{text}"
    );
    let output = wordcount(&["--workers=3"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("; as counted alone"), "{text}");
    let output = wordcount(&["/nonexistent"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("/nonexistent"),
        "{text}"
    );
}

/// Solutions up to symmetry, in every mode. No queens fit on boards of 2 and 3.
#[test]
fn queens_are_counted() {
    for mode in ["seq", "sht", "sht2", "mp", "mp2"] {
        let known = [
            (1, 1),
            (2, 0),
            (3, 0),
            (4, 1),
            (5, 2),
            (6, 1),
            (7, 6),
            (8, 12),
            (9, 46),
            (10, 92),
            (11, 341),
            (12, 1787),
        ];
        for (size, solutions) in known {
            let size = size.to_string();
            let text = printed("nqueens", &["-n", &size, "--mode", mode, "--workers", "3"]);
            let last = text.lines().last();
            assert_eq!(
                last,
                Some(&*format!("solutions: {solutions}")),
                "{mode} {size}"
            );
        }
    }
}

/// Kills workers of a running example at random until it has had enough, and waits for it. The
/// oldest so many children are spared; the first is who starts the others.
fn stormed(name: &str, arguments: &[&str], spared: usize) -> (Output, usize) {
    let mut command = Command::new(example(name));
    command.args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = command.spawn().expect("the example starts");
    let (mut kills, mut random) = (0, 0x9e37_79b9_u64);
    while kills < 60 && program.try_wait().expect("it is ours").is_none() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let workers = children(program.id());
        if workers.len() <= spared {
            std::thread::yield_now();
            continue;
        }
        let victim = workers[spared + (random >> 33) as usize % (workers.len() - spared)];
        let victim = rustix::process::Pid::from_raw(victim).expect("a process has a number");
        // Nobody else gets the number: it is the master's to reap.
        if rustix::process::kill_process(victim, rustix::process::Signal::KILL).is_ok() {
            kills += 1;
        }
        // Between kills the workers get somewhere.
        std::thread::sleep(Duration::from_micros(500 + (random >> 40) % 4000));
    }
    (program.wait_with_output().expect("it ends"), kills)
}

#[test]
fn queens_are_counted_while_workers_are_killed() {
    // A collector that is killed asks for all parts again. One that is spared gets each part only if
    // that of every searcher that was killed is searched by another.
    for (mode, spared) in [("sht", 1), ("sht2", 1), ("mp", 1), ("mp2", 1), ("mp", 2)] {
        let (output, kills) = stormed("nqueens", &["-n", "13", "--mode", mode], spared);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mode}: {errors}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.lines().last(), Some("solutions: 9233"), "{mode}");
        assert!(kills > 2, "{mode}: {kills} kills");
    }
}

#[test]
fn words_are_counted_while_workers_are_killed() {
    let (output, kills) = stormed("wordcount", &["--workers=3"], 1);
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("; as counted alone"), "{text}");
    assert!(kills > 2, "{kills} kills");
}

#[test]
fn creatures_meet() {
    for (meetings, creatures) in [("0", "2"), ("1", "3"), ("3000", "4"), ("500", "10")] {
        let text = printed("chameneos", &[meetings, "--creatures", creatures]);
        let twice = 2 * meetings.parse::<u64>().expect("a number");
        assert!(text.ends_with(&format!("\nsum: {twice}\n")), "{text}");
        assert_eq!(text.matches(" meetings, ").count().to_string(), creatures);
    }
}

#[test]
fn mail_is_received() {
    for (count, slots) in [("0", "10"), ("1", "1"), ("20000", "10"), ("3000", "1")] {
        let text = printed("mailbox_speed", &[count, "--slots", slots]);
        assert!(
            text.contains(&format!("\nreceived: {count}\nrate: ")),
            "{text}"
        );
    }
}

/// The checksum does not depend on how much is in the buffer.
#[test]
fn bytes_come_through_the_pipeline() {
    let checksum = |pieces: &str| {
        let text = printed(
            "pipeline",
            &["--mib", "24", "--piece-kib", "7", "--pieces", pieces],
        );
        assert!(
            text.lines()
                .last()
                .expect("there are lines")
                .starts_with("rate: ")
        );
        text.lines().next().map(str::to_owned)
    };
    assert!(checksum("1").expect("a line").starts_with("checksum: "));
    assert_eq!(checksum("1"), checksum("9"));
    assert!(printed("pipeline", &["--mib", "1"]).contains("checksum: "));
}

#[test]
fn wrong_arguments_of_the_others() {
    let cases: [&[&str]; 9] = [
        &["nqueens", "-n", "0"],
        &["nqueens", "-n", "17"],
        &["nqueens", "--mode", "other"],
        &["nqueens", "--workers", "0"],
        &["chameneos", "-1"],
        &["chameneos", "10", "--creatures", "1"],
        &["mailbox_speed", "many"],
        &["pipeline", "--mib", "0"],
        &["wordcount", "--workers", "17"],
    ];
    for case in cases {
        let output = Command::new(example(case[0])).args(&case[1..]).output();
        let output = output.expect("the example starts");
        assert_eq!(output.status.code(), Some(2), "{case:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with("error: "), "{case:?}: {errors}");
        assert!(output.stdout.is_empty(), "{case:?}");
    }
}
