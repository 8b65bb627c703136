//! Ratios to peers: the median of pairs that were run by turns, and the file that they are written to.

use std::path::{Path, PathBuf};
use std::process::Command;

/// How often a bench's work is done by us and by a peer, and how long it takes.
#[derive(Clone)]
pub struct Ratio {
    pub bench: String,
    pub threads: usize,
    pub processes: usize,
    pub ours_seconds: f64,
    pub peer: String,
    pub peer_seconds: f64,
    /// The median of ours / peer.
    pub ratio: f64,
}

impl Ratio {
    /// Of times that were taken by turns. `counts` are threads and processes.
    pub fn of_pairs(
        bench: &str,
        counts: (usize, usize),
        ours: &[f64],
        (peer, theirs): (&str, &[f64]),
    ) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Ratio {
            bench: bench.to_owned(),
            threads: counts.0,
            processes: counts.1,
            ours_seconds: median(ours),
            peer: peer.to_owned(),
            peer_seconds: median(theirs),
            ratio: median(&ratios),
        }
    }

    /// What was run, for people.
    pub fn name(&self) -> String {
        let (count, kind) = if self.processes > 1 {
            (self.processes, "processes")
        } else {
            (self.threads, "threads")
        };
        format!("{} {count} {kind}", self.bench)
    }

    pub fn json(&self) -> String {
        format!(
            r#"{{"bench":"{}","threads":{},"processes":{},"ours_seconds":{:.6},"peer":"{}","peer_seconds":{:.6},"ratio":{:.4}}}"#,
            self.bench,
            self.threads,
            self.processes,
            self.ours_seconds,
            self.peer,
            self.peer_seconds,
            self.ratio
        )
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

pub fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let logs: Vec<f64> = values.map(f64::ln).collect();
    (logs.iter().sum::<f64>() / logs.len() as f64).exp()
}

pub fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// How many rounds of pairs: the variable `ROUNDS`.
pub fn rounds(default: usize) -> usize {
    let rounds = variable("ROUNDS", &default.to_string());
    rounds.parse().expect("a number of rounds")
}

/// What was asked for on the command line: a name is wanted if it contains one of the words.
pub struct Filter(Vec<String>);

impl Filter {
    pub fn of_arguments() -> Self {
        let words = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
        Filter(words.collect())
    }

    pub fn wants(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|word| name.contains(word.as_str()))
    }
}

/// The directory that cargo builds into, in which this program lies.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("this program's path");
    let deps = program
        .parent()
        .and_then(Path::parent)
        .and_then(Path::parent);
    deps.expect("target/release/deps").to_owned()
}

/// Builds a package of `benches` into a directory of the target; the directory of its programs, or
/// `None` if it cannot be built.
pub fn build(package: &str, directory: &Path, arguments: &[&str]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet"])
        .args(arguments)
        .arg("--manifest-path")
        .arg(source.join(package).join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", directory)
        .status()
        .expect("cargo runs");
    built.success().then(|| directory.join("release"))
}

/// The numbers that a program prints; what it says instead, if they are not so many.
pub fn numbers<const N: usize>(command: &mut Command) -> Result<[f64; N], String> {
    let output = command.output().expect("a program of a bench runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    numbers.try_into().map_err(|_| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("{command:?}: {}, {text}{errors}", output.status)
    })
}

/// Writes `bench-ratios/NAME.json`, a list.
pub fn write(target: &Path, name: &str, rows: impl Iterator<Item = String>) {
    let directory = target.join("bench-ratios");
    std::fs::create_dir_all(&directory).expect("a directory for the ratios");
    let list = format!("[\n{}\n]\n", rows.collect::<Vec<_>>().join(",\n"));
    let file = directory.join(name).with_extension("json");
    std::fs::write(&file, list).expect("a file");
    println!("written: {}", file.display());
}
