//! The allocator beside the best private-memory allocators, on the same work in the same run.
//!
//! The patterns are a program of their own (`benches/allocator`), built once for each allocator:
//! two versions of one library cannot be linked into one program, and nobody's calls get shorter
//! or longer than in a program of their own. The programs take turns, and a ratio is the median
//! of those of neighbours.
//!
//! ```sh
//! cargo bench --bench allocator                     # all
//! cargo bench --bench allocator -- larson mix       # patterns whose name contains one of these
//! ROUNDS=3 PEERS=mimalloc2 cargo bench --bench allocator   # quick
//! ```
//!
//! Writes `target/bench-ratios/allocator.json`; the settled memory is in `allocator-memory.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const OURS: &str = "shmkit";
const PEERS: [&str; 5] = ["mimalloc2", "mimalloc3", "snmalloc", "jemalloc", "system"];

/// A pattern with a number of workers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Work {
    pattern: String,
    workers: usize,
    processes: bool,
}

#[derive(Clone, Copy, Default)]
struct Measured {
    seconds: f64,
    peak: f64,
    settled: f64,
}

fn main() {
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let rounds = variable("ROUNDS", "7").parse().expect("a number of rounds");
    let peers = variable("PEERS", &PEERS.join(","));
    let peers: Vec<&str> = peers.split(',').filter(|p| PEERS.contains(p)).collect();
    let target = target();
    let programs: BTreeMap<&str, PathBuf> = std::iter::once(&OURS)
        .chain(&peers)
        .filter_map(|&name| Some((name, build(name, &target)?)))
        .collect();
    let list = Command::new(&programs[OURS])
        .output()
        .expect("the list of patterns");
    let list = String::from_utf8(list.stdout).expect("names");
    let mut report = Report::default();
    for pattern in list.lines() {
        if filters.is_empty() || filters.iter().any(|f| pattern.contains(f.as_str())) {
            compare(pattern, &programs, rounds, &mut report);
        }
    }
    report.finish(&target);
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The directory that cargo builds into, in which this program lies.
fn target() -> PathBuf {
    let program = std::env::current_exe().expect("this program's path");
    let deps = program
        .parent()
        .and_then(Path::parent)
        .and_then(Path::parent);
    deps.expect("target/release/deps").to_owned()
}

/// The patterns' program for an allocator; `None`, with a word, if it cannot be built here.
fn build(name: &str, target: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/allocator");
    // A directory each: cargo would build what they share again for each set of features.
    let directory = target.join("bench-allocator").join(name);
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--features", name])
        .arg("--manifest-path")
        .arg(source.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &directory)
        .status()
        .expect("cargo runs");
    if !built.success() {
        assert_ne!(name, OURS, "the patterns are to be built");
        println!("{name} cannot be built here: left out");
        return None;
    }
    Some(directory.join("release/allocator-patterns"))
}

fn run(program: &Path, work: &Work, memory: bool) -> Measured {
    let kind = if work.processes {
        "processes"
    } else {
        "threads"
    };
    let mut command = Command::new(program);
    command.args([&work.pattern, kind, &work.workers.to_string()]);
    if memory {
        command.arg("memory");
    }
    let output = command.output().expect("a pattern runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let [seconds, peak, settled] = numbers[..] else {
        panic!(
            "{}: {text}{}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    Measured {
        seconds,
        peak,
        settled,
    }
}

/// Runs a pattern on all allocators by turns.
fn compare(pattern: &str, programs: &BTreeMap<&str, PathBuf>, rounds: usize, report: &mut Report) {
    let work = |workers, processes| Work {
        pattern: pattern.to_owned(),
        workers,
        processes,
    };
    let (one, two, apart) = (work(1, false), work(2, false), work(2, true));
    for work in [&one, &two] {
        let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for _ in 0..rounds {
            for (name, program) in programs {
                times
                    .entry(name)
                    .or_default()
                    .push(run(program, work, false).seconds);
            }
        }
        for (name, program) in programs {
            report
                .memory
                .push((work.clone(), (*name).to_owned(), run(program, work, true)));
        }
        for name in programs.keys().filter(|&&name| name != OURS) {
            report.pairs(work, name, &times[OURS], &times[name]);
        }
    }
    // Two processes on one pool, where nobody follows: beside two threads on it.
    let (mut processes, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        processes.push(run(&programs[OURS], &apart, false).seconds);
        threads.push(run(&programs[OURS], &two, false).seconds);
    }
    report.pairs(&apart, "shmkit, 2 threads", &processes, &threads);
}

#[derive(Default)]
struct Report {
    /// Work, peer, our seconds, the peer's, ratio.
    ratios: Vec<(Work, String, f64, f64, f64)>,
    memory: Vec<(Work, String, Measured)>,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

impl Report {
    fn pairs(&mut self, work: &Work, peer: &str, ours: &[f64], theirs: &[f64]) {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        let row = (median(ours), median(theirs), median(&ratios));
        let kind = if work.processes {
            "processes"
        } else {
            "threads"
        };
        println!(
            "{:14} {} {kind:9} ours {:.4} s, {peer} {:.4} s: {:.2}",
            work.pattern, work.workers, row.0, row.1, row.2
        );
        self.ratios
            .push((work.clone(), peer.to_owned(), row.0, row.1, row.2));
    }

    /// Prints the tables and writes the files.
    fn finish(&self, target: &Path) {
        let mut peers: Vec<&str> = self.ratios.iter().map(|r| r.1.as_str()).collect();
        peers.sort_unstable();
        peers.dedup();
        println!("\ntime, ours / peer; the last line is the geometric mean");
        let mut works: Vec<&Work> = self.ratios.iter().map(|r| &r.0).collect();
        works.dedup();
        println!("{:24} {}", "", peers.join("  "));
        for &work in &works {
            let ratio = |peer: &&str| {
                let found = self.ratios.iter().find(|r| r.0 == *work && r.1 == **peer);
                found.map_or(String::new(), |r| format!("{:.2}", r.4))
            };
            println!("{:24} {}", name(work), cells(&peers, ratio));
        }
        let mean = |peer: &&str| {
            let logs: Vec<f64> = self
                .ratios
                .iter()
                .filter(|r| r.1 == **peer)
                .map(|r| r.4.ln())
                .collect();
            format!(
                "{:.2}",
                (logs.iter().sum::<f64>() / logs.len() as f64).exp()
            )
        };
        println!("{:24} {}", "mean", cells(&peers, mean));
        println!("\nmemory in MiB: most, and settled");
        for work in works.iter().filter(|w| !w.processes) {
            let rows = self.memory.iter().filter(|m| m.0 == **work);
            let rows = rows.map(|(_, name, m)| {
                format!(
                    "{name} {:.1} {:.1}",
                    m.peak / 1048576.0,
                    m.settled / 1048576.0
                )
            });
            println!("{:24} {}", name(work), rows.collect::<Vec<_>>().join(", "));
        }
        let directory = target.join("bench-ratios");
        std::fs::create_dir_all(&directory).expect("a directory for the ratios");
        std::fs::write(directory.join("allocator.json"), self.times_json()).expect("a file");
        std::fs::write(directory.join("allocator-memory.json"), self.memory_json())
            .expect("a file");
        println!("\nwritten to {}", directory.display());
    }

    fn times_json(&self) -> String {
        let rows = self.ratios.iter().map(|(work, peer, ours, theirs, ratio)| {
            let (threads, processes) = counts(work);
            format!(
                r#"{{"bench":"{}","threads":{threads},"processes":{processes},"ours_seconds":{ours:.6},"peer":"{peer}","peer_seconds":{theirs:.6},"ratio":{ratio:.4}}}"#,
                work.pattern
            )
        });
        list(rows)
    }

    fn memory_json(&self) -> String {
        let rows = self.memory.iter().map(|(work, name, m)| {
            let (threads, processes) = counts(work);
            format!(
                r#"{{"bench":"{}","threads":{threads},"processes":{processes},"allocator":"{name}","peak_bytes":{:.0},"settled_bytes":{:.0}}}"#,
                work.pattern, m.peak, m.settled
            )
        });
        list(rows)
    }
}

fn counts(work: &Work) -> (usize, usize) {
    if work.processes {
        (1, work.workers)
    } else {
        (work.workers, 1)
    }
}

fn name(work: &Work) -> String {
    let kind = if work.processes {
        "processes"
    } else {
        "threads"
    };
    format!("{} {} {kind}", work.pattern, work.workers)
}

fn cells(peers: &[&str], cell: impl Fn(&&str) -> String) -> String {
    let mut line = String::new();
    for peer in peers {
        let _ = write!(line, "{:>width$}  ", cell(peer), width = peer.len());
    }
    line
}

fn list(rows: impl Iterator<Item = String>) -> String {
    format!("[\n{}\n]\n", rows.collect::<Vec<_>>().join(",\n"))
}
