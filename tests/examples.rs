//! The example programs, run as a user would run them.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, setrlimit};

#[path = "examples/solve.rs"]
mod solve;

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

/// The children of a process.
fn children(process: u32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn printed(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(example(name)).args(arguments).output();
    let output = output.expect("the example starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    String::from_utf8(output.stdout).expect("the output is text")
}

/// Runs an example, which may have so many descriptors, for 20 seconds at most.
fn with_few_descriptors(descriptors: u64, case: &[&str]) -> Output {
    let mut command = Command::new(example(case[0]));
    command.args(&case[1..]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let limit = Rlimit {
        current: Some(descriptors),
        maximum: Some(descriptors),
    };
    // SAFETY: between fork and exec there is one system call, and nothing is allocated.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?)) };
    let mut program = command.spawn().expect("the example starts");
    let end = pidfd_open(Pid::from_child(&program), PidfdFlags::empty()).expect("it is ours");
    let limit = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit));
    if ended.expect("a descriptor can be polled") == 0 {
        program.kill().expect("it is ours");
        panic!("{case:?} does not end");
    }
    program.wait_with_output().expect("it has ended")
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
    let text = printed("create_join", &["--count", "10000", "--at-once", "1"]);
    assert!(
        text.contains("joined: 10000\n") && text.contains("rate: "),
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

/// The event loop's server, for so many connections; and the port.
fn serve(connections: &str) -> (Child, u16) {
    let mut command = Command::new(example("event_loop"));
    command
        .args(["--connections", connections])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut server = command.spawn().expect("the server starts");
    let output = server.stdout.take().expect("it is piped");
    let mut line = String::new();
    let read = BufReader::new(output).read_line(&mut line);
    read.expect("a line is printed");
    let port = line.trim().trim_start_matches("port: ").parse();
    (server, port.expect("a port"))
}

/// A connection to it.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_nodelay(true).expect("it is a socket");
        Client(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        let stream = self.0.get_mut();
        stream.write_all(bytes).expect("it is connected");
    }

    fn ask(&mut self, question: impl AsRef<[u8]>) -> String {
        // In two parts: a line is not a packet.
        let (first, second) = question.as_ref().split_at(1);
        self.send(first);
        self.send(&[second, b"\n"].concat());
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("it answers");
        answer
    }
}

/// The example's master serves from mio's loop; a worker that fails does so alone.
#[test]
fn master_in_an_event_loop() {
    let (server, port) = serve("2");
    let mut clients = [(); 2].map(|()| Client::of(port));
    for n in 0..20_u64 {
        let answer = clients[n as usize % 2].ask(n.to_string());
        assert_eq!(answer, format!("{}\n", n * n));
    }
    for bad in [&b"seven"[..], b"\xff\xfe"] {
        let failed = clients[0].ask(bad);
        assert!(
            failed.starts_with("the process panicked: the line is a number"),
            "{failed}"
        );
    }
    assert_eq!(clients[0].ask("12"), "144\n");
    drop(clients);
    let output = server.wait_with_output().expect("it ends");
    assert!(output.status.success());
}

/// A client that has shut down its side is answered, also what it did not end with a newline.
#[test]
fn who_sends_no_more_is_answered() {
    let (server, port) = serve("2");
    let mut stays = Client::of(port);
    let mut client = Client::of(port);
    client.send(b"3\n4\n5");
    let shut = client.0.get_mut().shutdown(Shutdown::Write);
    shut.expect("it is connected");
    let mut answers = String::new();
    client.0.read_to_string(&mut answers).expect("it answers");
    // Workers are not waited for in order.
    let mut answers: Vec<_> = answers.lines().collect();
    answers.sort_unstable();
    assert_eq!(answers, ["16", "25", "9"]);
    assert_eq!(stays.ask("7"), "49\n");
    drop(stays);
    let output = server.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
}

/// A connection that fails is dropped; the others are served.
#[test]
fn connections_fail_alone() {
    let (server, port) = serve("3");
    let mut stays = Client::of(port);
    assert_eq!(stays.ask("7"), "49\n");
    // One that is closed with an answer unread is reset.
    let mut resets = Client::of(port);
    resets.send(b"3\n");
    resets.0.get_mut().peek(&mut [0]).expect("it answers");
    drop(resets);
    assert_eq!(stays.ask("8"), "64\n");
    let mut never_ends = Client::of(port);
    never_ends.send(&[b'1'; 1024]);
    let left = never_ends.0.read(&mut [0]);
    assert!(!left.is_ok_and(|read| read > 0), "it is not dropped");
    assert_eq!(stays.ask("9"), "81\n");
    drop(stays);
    let output = server.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let dropped = "event_loop: a connection is dropped: ";
    assert!(errors.lines().count() == 2, "{errors}");
    assert!(
        errors.lines().all(|line| line.starts_with(dropped)),
        "{errors}"
    );
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
    // What has no end is not begun with.
    let pipe = scratch.0.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let output = wordcount(&[scratch.0.as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\n20 files, 100 words"), "{text}");
    let output = wordcount(&[&pipe]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.ends_with("pipe: neither a file nor a directory\n"),
        "{text}"
    );
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
    // A collector that is killed asks for all parts again. One that is spared, as the first worker is,
    // gets each part only if that of every searcher that was killed is searched by another.
    for (mode, spared) in [("sht", 1), ("sht2", 1), ("mp", 1), ("mp2", 1), ("mp2", 2)] {
        let arguments = ["-n", "13", "--mode", mode, "--workers", "3"];
        let (output, kills) = stormed("nqueens", &arguments, spared);
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

/// Whichever of its children is killed, an example ends, and says so.
#[test]
fn nobody_waits_for_the_killed() {
    let cases: [(&[&str], usize); 3] = [
        (&["chameneos", "100000000", "--creatures", "3"], 4),
        (&["mailbox_speed", "1000000000000"], 1),
        (&["pipeline", "--mib", "1000000"], 2),
    ];
    for (case, count) in cases {
        for which in 0..count {
            let mut command = Command::new(example(case[0]));
            command.args(&case[1..]).stderr(Stdio::piped());
            let program = command.stdout(Stdio::null()).spawn().expect("it starts");
            let victim = loop {
                match children(program.id()) {
                    all if all.len() == count => break all[which],
                    _ => std::thread::yield_now(),
                }
            };
            let victim = rustix::process::Pid::from_raw(victim).expect("a process has a number");
            rustix::process::kill_process(victim, rustix::process::Signal::KILL)
                .expect("it is there");
            let output = program.wait_with_output().expect("it ends");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                errors.starts_with(&format!("{}: ", case[0])),
                "{case:?} {which}: {errors}"
            );
            assert_eq!(output.status.code(), Some(1), "{case:?} {which}: {errors}");
        }
    }
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

/// A reader that goes away is no failure; a full device is.
#[test]
fn nobody_reads() {
    let cases: [&[&str]; 11] = [
        &["async_events", "--workers", "1", "--results", "5"],
        &["chameneos", "10"],
        &["create_join", "--count", "3"],
        &["event_loop", "--connections", "0"],
        &["mailbox_speed", "10"],
        &["matmul", "--count", "2", "--small", "3", "--large", "5"],
        &["nqueens", "-n", "4"],
        &["pipeline", "--mib", "1"],
        &["solve", "--workers", "1"],
        &["survive", "--seconds", "1"],
        &["wordcount", "--workers=1"],
    ];
    for case in cases {
        let mut command = Command::new(example(case[0]));
        command.args(&case[1..]);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(writer).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case:?}: {errors}");
    }
    let full = fs::File::options().write(true).open("/dev/full");
    let mut command = Command::new(example("nqueens"));
    command.stdout(full.expect("the device is there"));
    let output = command.args(["-n", "4"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
}

/// Who cannot start as many processes as it is to says so, and waits for none of the others.
#[test]
fn processes_are_not_started() {
    let cases: [&[&str]; 8] = [
        &["async_events", "--workers", "20"],
        &["chameneos", "1000", "--creatures", "20"],
        &["create_join", "--at-once", "100"],
        &["matmul", "--small", "9", "--large", "70", "--workers", "12"],
        &["nqueens", "--mode", "mp2", "--workers", "12"],
        &["solve", "--workers", "12"],
        &["survive", "--workers", "12"],
        &["wordcount", "--workers", "12"],
    ];
    // With 5 the first one is not; with 14 some are. What is refused depends on the number.
    for (descriptors, case) in [5, 10, 14].into_iter().flat_map(|n| cases.map(|c| (n, c))) {
        let output = with_few_descriptors(descriptors, case);
        let errors = String::from_utf8_lossy(&output.stderr);
        let one_line = errors.starts_with(&format!("{}: ", case[0])) && errors.lines().count() == 1;
        assert!(one_line, "{descriptors} {case:?}: {errors}");
        // What it comes from, too.
        let told = errors.contains("Too many open files");
        assert!(told, "{descriptors} {case:?}: {errors}");
        assert_eq!(output.status.code(), Some(1), "{descriptors} {case:?}");
    }
}

/// A kill that is due later is not waited for.
#[test]
fn survivors_stop_in_time() {
    let arguments = ["--seconds", "1", "--kill-every-ms", "30000"];
    let text = printed("survive", &arguments);
    assert!(text.starts_with("kills: 0\n"), "{text}");
}

#[test]
fn wrong_arguments_of_the_others() {
    const MOST: &str = "18446744073709551615";
    let cases: [&[&str]; 14] = [
        &["async_events", "--workers", "0"],
        &["async_events", "--workers", "257"],
        &["create_join", "--count", "0"],
        &["survive", "--seconds", MOST],
        &["survive", "--kill-every-ms", MOST],
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
        let output = with_few_descriptors(100, case);
        assert_eq!(output.status.code(), Some(2), "{case:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with("error: "), "{case:?}: {errors}");
        assert!(output.stdout.is_empty(), "{case:?}");
    }
}
