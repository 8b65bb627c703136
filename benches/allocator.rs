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
//! At the end it says what is wanted of each pattern and of their mean, against the faster mimalloc, and
//! what was had. Writes `target/bench-ratios/allocator.json`; the settled memory, and the ratio of ours to
//! each allocator's, is in `allocator-memory.json`.

#[path = "common/ratios.rs"]
mod ratios;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ratios::{Filter, Ratio};

const OURS: &str = "shmkit";
/// The best of two is what the goals are of.
const BEST: [&str; 2] = ["mimalloc2", "mimalloc3"];
/// What they are called together.
const FASTER: &str = "the faster mimalloc";
const THREADS: &str = "shmkit, 2 threads";
const BOOST: &str = "boost";
const PEERS: [&str; 5] = ["mimalloc2", "mimalloc3", "snmalloc", "jemalloc", "system"];

/// A pattern with a number of workers.
#[derive(Clone, PartialEq)]
struct Work {
    pattern: String,
    workers: usize,
    processes: bool,
}

#[derive(Clone, Copy, Default)]
struct Measured {
    peak: f64,
    settled: f64,
}

fn main() {
    let filter = Filter::of_arguments();
    let rounds = ratios::rounds(7);
    let peers = ratios::variable("PEERS", &PEERS.join(","));
    let peers: Vec<&str> = peers.split(',').filter(|p| PEERS.contains(p)).collect();
    let target = ratios::target();
    let programs: BTreeMap<&str, PathBuf> = std::iter::once(&OURS)
        .chain(&peers)
        .filter_map(|&name| Some((name, build(name, &target)?)))
        .collect();
    let boost = build_boost(&target);
    let list = Command::new(&programs[OURS])
        .output()
        .expect("the list of patterns");
    let list = String::from_utf8(list.stdout).expect("names");
    let mut report = Report::default();
    for pattern in list.lines().filter(|pattern| filter.wants(pattern)) {
        compare(pattern, &programs, rounds, &mut report);
        if let Some(boost) = boost
            .as_ref()
            .filter(|_| ["churn_64", "mix"].contains(&pattern))
        {
            compare_to_boost(pattern, &programs[OURS], boost, rounds.min(3), &mut report);
        }
    }
    if filter.wants("recovery") {
        for gib in ["1", "4"] {
            let time = ratios::numbers(Command::new(&programs[OURS]).args(["recovery", gib]));
            let time = time.unwrap_or_else(|said| panic!("{said}"));
            let [milliseconds] = time;
            println!("recovery of a dead process in {gib} GiB: {milliseconds:.2} ms a GiB");
            report.recovery(gib, milliseconds);
        }
    }
    report.finish(&target);
}

/// The patterns' program for an allocator; `None`, with a word, if it cannot be built here.
fn build(name: &str, target: &Path) -> Option<PathBuf> {
    // A directory each: cargo would build what they share again for each set of features.
    let directory = target.join("bench-allocator").join(name);
    let Some(programs) = ratios::build("allocator", &directory, &["--features", name]) else {
        assert_ne!(name, OURS, "the patterns are to be built");
        println!("{name} cannot be built here: left out");
        return None;
    };
    Some(programs.join("allocator-patterns"))
}

/// The program for Boost.Interprocess; `None`, with a word, if it cannot be built here.
fn build_boost(target: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/allocator/boost.cpp");
    let program = target.join("bench-allocator/boost");
    let built = Command::new("c++")
        .args(["-std=c++17", "-O2", "-o"])
        .args([&program, &source])
        .arg("-lrt")
        .output();
    if built.is_ok_and(|output| output.status.success()) {
        return Some(program);
    }
    println!("Boost.Interprocess cannot be built here (c++, libboost-dev): left out");
    None
}

/// Processes on one pool beside processes on one segment of Boost.Interprocess, by turns.
fn compare_to_boost(pattern: &str, ours: &Path, boost: &Path, rounds: usize, report: &mut Report) {
    for workers in [1, 2] {
        let work = Work {
            pattern: pattern.to_owned(),
            workers,
            processes: true,
        };
        let (mut times, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            times.push(run(ours, &work));
            theirs.push(run(boost, &work));
        }
        report.pairs(&work, BOOST, &times, &theirs);
    }
}

/// The most that our time may be of a peer's, if something is wanted.
fn goal(row: &Ratio) -> Option<f64> {
    let bench = row.bench.as_str();
    match row.peer.as_str() {
        FASTER => match bench {
            "churn_16" | "churn_64" | "churn_1024" | "mix" => Some(1.08),
            "larson" => Some(1.10),
            "xmalloc" => Some(1.15),
            "mstress" => Some(1.20),
            "sh6" | "sh8" => Some(1.3),
            "cache_scratch" => Some(1.02),
            "mean" => Some(1.05),
            _ => None,
        },
        // 0.95 of the throughput.
        THREADS => Some(1.0 / 0.95),
        BOOST if row.processes > 1 => Some(1.0 / 20.0),
        BOOST => Some(1.0 / 10.0),
        "goal" => Some(1.0),
        _ => None,
    }
}

fn command(program: &Path, work: &Work) -> Command {
    let kind = if work.processes {
        "processes"
    } else {
        "threads"
    };
    let mut command = Command::new(program);
    command.args([&work.pattern, kind, &work.workers.to_string()]);
    command
}

/// The seconds that a program takes.
fn run(program: &Path, work: &Work) -> f64 {
    let numbers = ratios::numbers(&mut command(program, work));
    let [seconds, ..]: [f64; 3] = numbers.unwrap_or_else(|said| panic!("{said}"));
    seconds
}

/// The memory that the programs take, in their order. All at once: most of the time they wait.
fn memory(programs: &BTreeMap<&str, PathBuf>, work: &Work) -> Vec<Measured> {
    std::thread::scope(|s| {
        let of = |program| {
            move || {
                let numbers = ratios::numbers(command(program, work).arg("memory"));
                let [_, peak, settled] = numbers.unwrap_or_else(|said| panic!("{said}"));
                Measured { peak, settled }
            }
        };
        let all: Vec<_> = programs.values().map(|p| s.spawn(of(p))).collect();
        let all = all.into_iter().map(|one| one.join().expect("a program"));
        all.collect()
    })
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
                times.entry(name).or_default().push(run(program, work));
            }
        }
        for (name, measured) in programs.keys().zip(memory(programs, work)) {
            report
                .memory
                .push((work.clone(), (*name).to_owned(), measured));
        }
        for name in programs.keys().filter(|&&name| name != OURS) {
            report.pairs(work, name, &times[OURS], &times[name]);
        }
    }
    // Two processes on one pool, where nobody follows: beside two threads on it.
    let (mut processes, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        processes.push(run(&programs[OURS], &apart));
        threads.push(run(&programs[OURS], &two));
    }
    report.pairs(&apart, THREADS, &processes, &threads);
}

#[derive(Default)]
struct Report {
    ratios: Vec<Ratio>,
    memory: Vec<(Work, String, Measured)>,
}

impl Report {
    fn pairs(&mut self, work: &Work, peer: &str, ours: &[f64], theirs: &[f64]) {
        let row = Ratio::of_pairs(&work.pattern, counts(work), ours, (peer, theirs));
        println!(
            "{:24} ours {:.4} s, {peer} {:.4} s: {:.2}",
            row.name(),
            row.ours_seconds,
            row.peer_seconds,
            row.ratio
        );
        self.ratios.push(row);
    }

    /// A row of the recovery of a dead process, beside the millisecond a GiB that it may take.
    fn recovery(&mut self, gib: &str, milliseconds: f64) {
        let bench = format!("recovery, a GiB of {gib}");
        let goal = ("goal", &[1e-3][..]);
        let row = Ratio::of_pairs(&bench, (1, 1), &[milliseconds / 1e3], goal);
        self.ratios.push(row);
    }

    /// Prints the tables and writes the files.
    fn finish(&self, target: &Path) {
        let mut peers: Vec<&str> = self.ratios.iter().map(|r| r.peer.as_str()).collect();
        peers.sort_unstable();
        peers.dedup();
        println!("\ntime, ours / peer; the last line is the geometric mean");
        let mut works: Vec<String> = Vec::new();
        for name in self.ratios.iter().map(Ratio::name) {
            if !works.contains(&name) {
                works.push(name);
            }
        }
        println!("{:24} {}", "", peers.join("  "));
        for work in works {
            let ratio = |peer: &&str| {
                let found = self
                    .ratios
                    .iter()
                    .find(|r| r.name() == work && r.peer == **peer);
                found.map_or(String::new(), |r| format!("{:.2}", r.ratio))
            };
            println!("{work:24} {}", cells(&peers, ratio));
        }
        let mean = |peer: &&str| {
            let rows = self.ratios.iter().filter(|r| r.peer == **peer);
            format!("{:.2}", ratios::geometric_mean(rows.map(|r| r.ratio)))
        };
        println!("{:24} {}", "mean", cells(&peers, mean));
        println!("\nmemory in MiB: most, and settled, and ours of what is settled");
        for (work, name, m) in &self.memory {
            println!(
                "{:16} {} threads  {name:10} {:.1} {:.1} {:.2}",
                work.pattern,
                work.workers,
                m.peak / 1048576.0,
                m.settled / 1048576.0,
                self.settled_ratio(work, m)
            );
        }
        let faster = self.faster();
        println!("\nwhat is wanted of the time, ours / peer");
        for row in faster.iter().chain(&self.ratios) {
            if let Some(goal) = goal(row) {
                let verdict = if row.ratio <= goal { "" } else { "  missed" };
                println!(
                    "{:24} {:20} {:.3}, at most {goal:.3}{verdict}",
                    row.name(),
                    row.peer,
                    row.ratio
                );
            }
        }
        let rows = self.ratios.iter().chain(&faster);
        ratios::write(target, "allocator", rows.map(Ratio::json));
        ratios::write(target, "allocator-memory", self.memory_json());
    }

    /// Of each pattern the row of the faster mimalloc, and the mean of these, for each number of threads.
    fn faster(&self) -> Vec<Ratio> {
        let mut all = Vec::new();
        for threads in [1, 2] {
            let begin = all.len();
            let rows = self.ratios.iter().filter(|row| {
                row.threads == threads && row.processes == 1 && BEST.contains(&row.peer.as_str())
            });
            for row in rows {
                let peer = FASTER.to_owned();
                let row = Ratio {
                    peer,
                    ..row.clone()
                };
                match all[begin..]
                    .iter_mut()
                    .find(|r: &&mut Ratio| r.bench == row.bench)
                {
                    Some(other) if other.ratio < row.ratio => *other = row,
                    Some(_) => {}
                    None => all.push(row),
                }
            }
            let rows = &all[begin..];
            if let Some(first) = rows.first() {
                let mean = |of: fn(&Ratio) -> f64| ratios::geometric_mean(rows.iter().map(of));
                let mean = Ratio {
                    bench: "mean".to_owned(),
                    ours_seconds: mean(|r| r.ours_seconds),
                    peer_seconds: mean(|r| r.peer_seconds),
                    ratio: mean(|r| r.ratio),
                    ..first.clone()
                };
                all.push(mean);
            }
        }
        all
    }

    /// Our settled memory in a work, divided by another's.
    fn settled_ratio(&self, work: &Work, other: &Measured) -> f64 {
        let ours = { self.memory.iter() }.find(|(w, name, _)| w == work && name == OURS);
        ours.map_or(f64::NAN, |(_, _, m)| m.settled / other.settled)
    }

    fn memory_json(&self) -> impl Iterator<Item = String> {
        self.memory.iter().map(|(work, name, m)| {
            let (threads, processes) = counts(work);
            format!(
                r#"{{"bench":"{}","threads":{threads},"processes":{processes},"allocator":"{name}","peak_bytes":{:.0},"settled_bytes":{:.0},"ratio":{:.3}}}"#,
                work.pattern,
                m.peak,
                m.settled,
                self.settled_ratio(work, m)
            )
        })
    }
}

/// Threads and processes.
fn counts(work: &Work) -> (usize, usize) {
    if work.processes {
        (1, work.workers)
    } else {
        (work.workers, 1)
    }
}

fn cells(peers: &[&str], cell: impl Fn(&&str) -> String) -> String {
    let mut line = String::new();
    for peer in peers {
        let _ = write!(line, "{:>width$}  ", cell(peer), width = peer.len());
    }
    line
}
