//! Files that are not pools, damaged pools, and wrong arguments: one line, an exit code, and never a panic.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use serde_json::Value;
use shmkit::{Matrix, Pool};

use crate::common::Random;
use crate::{Actor, Name, refused, said, shmkit, told};

/// Commands that take a pool, each with arguments that would be right.
fn commands(pool: &str) -> Vec<Vec<&str>> {
    vec![
        vec!["info", pool],
        vec!["top", pool],
        vec!["check", pool],
        vec!["map", pool],
        vec!["map", pool, "--svg"],
        vec!["objects", pool],
        vec!["locks", pool],
        vec!["export", pool, "matrix", "/dev/null"],
    ]
}

#[track_caller]
fn all_refuse(pool: &str, code: i32, text: &str) {
    for mut command in commands(pool) {
        refused(&command, code, text);
        command.push("--json");
        refused(&command, code, text);
    }
    refused(&["rm", pool], code, text);
    let file = crate::name("file.npy");
    let path = std::env::temp_dir().join(file);
    let path = path.to_str().unwrap();
    fs::write(path, b"\x93NUMPY\x01\x00\x46\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }            \n\x07").unwrap();
    refused(&["import", pool, "matrix", path], code, text);
    fs::remove_file(path).unwrap();
}

pub fn what_is_no_pool() {
    all_refuse("no-such-pool", 3, "/dev/shm/shmkit.no-such-pool");
    all_refuse("/nonexistent/pool", 3, "/nonexistent/pool");
    all_refuse("a/b", 3, "/a/b");
    all_refuse("a/", 2, "cannot have the name");
    all_refuse("./..", 2, "cannot have the name");
    all_refuse("", 2, "cannot have the name");
    // The terminal is there or not.
    for path in ["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem"] {
        all_refuse(path, 4, "no pool");
    }
    let socket = Name::new("socket");
    let _listens = std::os::unix::net::UnixListener::bind(socket.path()).unwrap();
    all_refuse(&socket.0, 4, "no pool");
    let text = Name::new("text");
    fs::write(
        text.path(),
        "this is a text, and longer than any magic number",
    )
    .unwrap();
    all_refuse(&text.0, 4, "no pool");
    // It is listed as what it is.
    assert!(said(&["ls", "--prefix", &text.0]).contains("no pool"));
    let zeros = Name::new("zeros");
    fs::write(zeros.path(), [0; 1 << 16]).unwrap();
    all_refuse(&zeros.0, 4, "no pool");
    let empty = Name::new("empty");
    fs::write(empty.path(), "").unwrap();
    all_refuse(&empty.0, 5, "truncated");
    for path in ["/dev", "/proc/self/status"] {
        for command in commands(path) {
            refused(&command, 4, "no pool");
        }
    }
    let pipe = Name::new("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(pipe.path())
            .status()
            .unwrap()
            .success()
    );
    for command in commands(&pipe.0) {
        refused(&command, 4, "no pool");
    }
}

/// A pool that a process has left in the middle of its work.
fn crashed(name: &Name) -> fs::File {
    Actor::start("role_crashes", &name.0).kill();
    fs::File::options()
        .read(true)
        .write(true)
        .open(name.path())
        .unwrap()
}

pub fn truncated_pools() {
    let name = Name::new("truncated");
    let file = crashed(&name);
    let len = file.metadata().unwrap().len();
    for shorter in [len - 1, len - (1 << 20), 40 << 30, 1 << 20, 4096, 200, 9] {
        file.set_len(shorter).unwrap();
        all_refuse(&name.0, 5, "truncated");
    }
    file.set_len(7).unwrap();
    all_refuse(&name.0, 5, "truncated");
}

pub fn damaged_headers() {
    let name = Name::new("header");
    let file = crashed(&name);
    let mut header = [0; 192];
    file.read_exact_at(&mut header, 0).unwrap();
    for (word, value, code, text) in [
        (0, 1, 4, "no pool"),
        (1, 99, 6, "layout version 99"),
        (2, 99, 6, "laid out otherwise"),
        (3, 0x7000_0000_0000, 5, "base address"),
        (4, 0, 5, "sizes"),
        (4, u64::MAX, 5, "sizes"),
        (5, 0, 5, "sizes"),
        (16, u64::MAX, 5, "watermarks"),
        (20, 1 << 40, 5, "watermarks"),
        (21, 0, 5, "watermarks"),
        (21, 900, 5, "truncated"),
    ] {
        file.write_all_at(&u64::to_ne_bytes(value), word * 8)
            .unwrap();
        for command in commands(&name.0) {
            refused(&command, code, text);
        }
        file.write_all_at(&header, 0).unwrap();
    }
    // Another namespace's pool can be looked at, and not taken part in.
    file.write_all_at(&1_u64.to_ne_bytes(), 8 * 8).unwrap();
    said(&["info", &name.0]);
    refused(&["check", &name.0], 6, "PID namespace");
}

/// Whatever lies in the tables and the data: an answer, or one line and a code.
pub fn damaged_tables() {
    let name = Name::new("tables");
    let file = crashed(&name);
    let mut random = Random::new(0x5eed);
    // Records, types, names, slots, objects, tags, span records, data: start and bytes in use.
    let places: [(u64, usize); 8] = [
        (4096, 1024),
        (2 << 20, 2048),
        (3 << 20, 1024),
        ((16 << 20) + 16384, 16384),
        (1 << 30, 1024),
        (10 << 30, 512),
        (12 << 30, 16384),
        (40 << 30, 1 << 18),
    ];
    for (start, len) in places {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, start).unwrap();
        assert!(bytes.iter().any(|&byte| byte != 0), "{start:#x} is empty");
    }
    let rounds = std::env::var("SHMKIT_DAMAGES")
        .ok()
        .and_then(|n| n.parse().ok());
    for round in 0..rounds.unwrap_or(24) {
        let mut saved = Vec::new();
        for _ in 0..=random.below(12) {
            let (start, len) = places[random.below(places.len())];
            let at = start + random.below(len / 8) as u64 * 8;
            let mut before = [0; 8];
            file.read_exact_at(&mut before, at).unwrap();
            let value = match random.below(4) {
                0 => random.next(),
                1 => u64::MAX,
                2 => u64::from_ne_bytes(before) ^ 1 << random.below(64),
                _ => random.next() >> random.below(64),
            };
            file.write_all_at(&value.to_ne_bytes(), at).unwrap();
            saved.push((at, before));
        }
        for command in commands(&name.0) {
            let output = Command::new("timeout")
                .args(["20", env!("CARGO_BIN_EXE_shmkit")])
                .args(&command)
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            let right = match code {
                Some(0) => errors.is_empty(),
                Some(1 | 3 | 5 | 7 | 8) => errors.lines().count() == 1,
                _ => false,
            };
            assert!(right, "round {round}: {command:?}: {code:?} {errors}");
        }
        for (at, before) in saved.into_iter().rev() {
            file.write_all_at(&before, at).unwrap();
        }
    }
    said(&["check", &name.0]);
}

/// What describes a pool's objects is written over: `check` says so, whether a process has the pool, or died in
/// it, or not, and nothing is exported that is not there.
pub fn damage_is_found() {
    let (left, used) = (Name::new("left"), Name::new("used"));
    let in_use = Pool::builder().create_named(&used.0).unwrap();
    let kept = Matrix::from_fn_in(in_use, 1, 1, |_, _| 1_u8).unwrap();
    in_use.set_name("matrix", &kept).unwrap();
    let pool = Pool::builder().create_named(&left.0).unwrap();
    let header = {
        let matrix = Matrix::from_fn_in(pool, 5, 7, |row, column| (row * column) as f64).unwrap();
        pool.set_name("matrix", &matrix).unwrap();
        let header = std::ptr::from_ref(&*matrix).addr() - pool.base();
        header as u64
    };
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
    let died = Name::new("died");
    drop(crashed(&died));
    let [left_file, died_file, used_file] = [&left, &died, &used].map(|name| {
        let options = fs::File::options().read(true).write(true).clone();
        options.open(name.path()).unwrap()
    });
    let cases = [
        (&used, &used_file, "types", 2 << 20),
        (&used, &used_file, "names", 3 << 20),
        (&used, &used_file, "objects", 1 << 30),
        (&left, &left_file, "processes", 4096),
        // Behind what a slot knows of spans, which has no meaning for others.
        (&left, &left_file, "slots", (16 << 20) + (24 << 10)),
        (&left, &left_file, "types", 2 << 20),
        (&left, &left_file, "names", 3 << 20),
        (&left, &left_file, "objects", 1 << 30),
        (&left, &left_file, "a matrix", header),
        (&died, &died_file, "processes", 4096),
        (&died, &died_file, "types", 2 << 20),
        (&died, &died_file, "names", 3 << 20),
        (&died, &died_file, "objects", 1 << 30),
        (&died, &died_file, "objects of the first pages", 40 << 30),
    ];
    for (name, file, what, at) in cases {
        said(&["check", &name.0]);
        let len = if at == header { 64 } else { 4096 };
        let mut before = vec![0; len];
        file.read_exact_at(&mut before, at).unwrap();
        file.write_all_at(&vec![0xff; len], at).unwrap();
        let output = shmkit(["check", &name.0, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["ok"], false, "{what}");
        let export = shmkit(["export", &name.0, "matrix", "/dev/null"]);
        let is_there = ["processes", "slots"].contains(&what);
        let code = export.status.code();
        assert!(
            if is_there {
                code == Some(0)
            } else {
                matches!(code, Some(3 | 5))
            },
            "{what}: {export:?}"
        );
        file.write_all_at(&before, at).unwrap();
    }
    // Single words of a type: its number of fields, and the first one's offset and kind.
    for (word, value) in [(5, 26), (14, 1 << 20), (15, 1 | 99 << 32)] {
        let at = (2 << 20) + 8 * word;
        let mut before = [0; 8];
        left_file.read_exact_at(&mut before, at).unwrap();
        left_file
            .write_all_at(&u64::to_ne_bytes(value), at)
            .unwrap();
        refused(&["check", &left.0], 1, "problems");
        left_file.write_all_at(&before, at).unwrap();
    }
    // The number of columns alone.
    let mut matrix = [0; 64];
    left_file.read_exact_at(&mut matrix, header).unwrap();
    let columns = (0..64)
        .step_by(8)
        .filter(|&at| matrix[at..at + 8] == 7_u64.to_ne_bytes());
    for at in columns {
        for wrong in [0, 8, u64::MAX] {
            left_file
                .write_all_at(&u64::to_ne_bytes(wrong), header + at as u64)
                .unwrap();
            refused(&["export", &left.0, "matrix", "/dev/null"], 5, "damaged");
            refused(&["check", &left.0], 1, "1 problems");
            for command in ["info", "objects"] {
                assert!(said(&[command, &left.0]).contains("damaged"));
            }
            left_file
                .write_all_at(&7_u64.to_ne_bytes(), header + at as u64)
                .unwrap();
        }
    }
    for name in [left, died, used] {
        said(&["check", &name.0]);
        said(&["export", &name.0, "matrix", "/dev/null"]);
    }
}

pub fn bad_arguments() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["info"],
        &["info", "a", "b"],
        &["--frobnicate"],
        &["rm"],
        &["top", "x", "--interval", "0"],
        &["top", "x", "--interval", "soon"],
        &["run-bench", "--seconds", "-1"],
        &["export", "x", "y"],
        &["import", "x", "y"],
        &["completions", "no-such-shell"],
    ] {
        refused(arguments, 2, "");
    }
}

/// Names are data: in a report they end no line, and no terminal obeys them.
pub fn names_that_a_terminal_would_obey() {
    const NAME: &str = "a\x1b[31m\r\n\u{202e}b";
    const SHOWN: &str = r"a\u{1b}[31m\r\n\u{202e}b";
    let name = Name::new(NAME);
    let pool = Pool::builder().max_size(4 << 20).create_named(&name.0);
    let pool = pool.unwrap();
    let matrix = Matrix::filled_in(pool, 1, 2, 1.5_f64).unwrap();
    pool.set_name(NAME, &matrix).unwrap();
    let prefix = ["ls", "--prefix", &name.0];
    let commands = [
        &prefix[..],
        &["info", &name.0],
        &["objects", &name.0],
        &["check", &name.0],
        &["gc", "--prefix", &name.0],
    ];
    for command in commands {
        let text = said(command);
        assert!(text.contains(SHOWN), "{command:?}: {text}");
        let obeyed = |c: char| c != '\n' && c.is_control();
        assert!(!text.contains(obeyed), "{command:?}: {text:?}");
    }
    // JSON has them as they are.
    assert_eq!(told(&prefix)[0]["name"], name.0);
    let objects = told(&["objects", &name.0]);
    let is_named = |object: &Value| object["names"][0] == NAME;
    assert!(
        objects.as_array().unwrap().iter().any(is_named),
        "{objects}"
    );
    refused(&["rm", &name.0], 7, SHOWN);
    refused(&["info", NAME], 3, SHOWN);
    refused(&["info", "/tmp/\n"], 3, r"/tmp/\n");
    refused(&["frobnicate\n\x1b[0m"], 2, r"frobnicate");
}

pub fn a_reader_that_goes_away() {
    let name = Name::new("reader");
    let _file = crashed(&name);
    for command in commands(&name.0)
        .into_iter()
        .chain([vec!["man"], vec!["completions", "bash"]])
        .chain([vec!["export", &name.0, "matrix", "-"]])
    {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shmkit"))
            .args(&command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}: {:?}", output.status);
        assert!(output.stderr.is_empty(), "{command:?}");
    }
    // A full device is another matter.
    for command in [&["objects", &name.0][..], &["--help"], &["--version"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_shmkit"))
            .args(command)
            .stdout(full)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(9), "{command:?}");
    }
    let _ = shmkit(["ls"]);
}

/// Removed with the case, if it is still there.
struct Renamed(OsString);

impl Drop for Renamed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The name of a pool's file is a path like any other.
pub fn names_that_are_no_text() {
    let text = Name::new("renamed");
    let pool = Pool::builder().create_named(&text.0).unwrap();
    let matrix = Matrix::filled_in(pool, 2, 3, 1.5_f64).unwrap();
    pool.set_name("matrix", &matrix).unwrap();
    drop(matrix);
    // SAFETY: nothing refers to it any more.
    unsafe { pool.unmap() };
    let no_text = |name: String| OsString::from_vec([name.as_bytes(), b"\xff"].concat());
    let (name, path) = (no_text(text.0.clone()), Renamed(no_text(text.path())));
    fs::rename(text.path(), &path.0).unwrap();
    let file = std::env::temp_dir().join(crate::name("renamed.npy"));
    let run = |command: &str, pool: &OsString, more: &[&OsStr]| {
        let output = shmkit([&[OsStr::new(command), pool], more].concat());
        (output.status.code(), output)
    };
    for pool in [&name, &path.0] {
        for command in ["info", "top", "check", "map", "objects", "locks"] {
            let (code, output) = run(command, pool, &["--json".as_ref()]);
            assert_eq!(code, Some(0), "{command}: {output:?}");
            serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        for command in ["export", "import"] {
            let (code, output) = run(command, pool, &["matrix".as_ref(), file.as_ref()]);
            assert_eq!(code, Some(0), "{command}: {output:?}");
        }
        let (code, output) = run("export", pool, &["matrix".as_ref(), &path.0]);
        assert_eq!(code, Some(8), "{output:?}");
    }
    fs::remove_file(file).unwrap();
    let (code, output) = run("rm", &name, &["--yes".as_ref()]);
    assert_eq!(code, Some(0), "{output:?}");
    assert!(!fs::exists(&path.0).unwrap());
}
