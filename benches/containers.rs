//! The containers beside what one would take instead: in one process, across processes, and the
//! original.
//!
//! The work is done by programs of their own, one run each, by turns; a ratio is the median of
//! those of neighbours. Ours, and the peers in Rust, are `benches/containers/src`; the peers in
//! other languages `benches/containers/peers`. Those that cannot be built or run here are left
//! out, with a word.
//!
//! ```sh
//! cargo bench --bench containers                     # all
//! cargo bench --bench containers -- map queue_pair   # benches whose name contains one of these
//! ROUNDS=1 PEERS=dashmap,scc cargo bench --bench containers   # quick
//! CLOCK=cpu cargo bench --bench containers           # on a machine that does other things, too
//! ```
//!
//! With `CLOCK=cpu` the time is the processor's time of the worker that used most, where no
//! worker waits for another or for a lock; with `CLOCK=cpu-all` it is that everywhere, which flatters
//! who waits asleep.
//!
//! Writes `target/bench-ratios/containers.json`. Its seconds are those of a million operations.
//!
//! | bench | an operation |
//! |---|---|
//! | `map_get`, `map_insert`, `map_mixed` | of a map of a million `u64`: a look-up; an insertion into an empty one that grows; 90 % look-ups and 10 % replacements by Zipf's law. Same hasher: SipHash-1-3 |
//! | `table_get`, `table_view`, `table_replace`, `table_insert` | of a map of 100,000: look-ups with and without a copy, replacements, insertions into eight empty ones |
//! | `cell_get` | a copy of 32 bytes out of a cell |
//! | `record_get`, `record_set` | of a cell with an integer, a float and a short string |
//! | `array_*`, `matrix_*` | an element of 1000, of 100 x 100; `view` by way of a claimed slice |
//! | `queue_pair`, `queue_stream` | an element pushed and popped by each worker; from one worker to the other |
//! | `queue_round_trip`, `mailbox_round_trip` | to the other worker and back, asleep meanwhile |
//! | `mailbox_self`, `mailbox_stream`, `mailbox_awake` | a message of three integers: to oneself; to the other worker; to a worker that looks all the time, to and fro |
//! | `heap_view`, `heap_modify`, `heap_replace` | in a tree of 1023 objects, one is looked up; changed; replaced by a new one: each in a view or a transaction of its own. `std` is `Arc`s under an `RwLock` |
//! | `pool_4k`, `pool_64k`, `pool_1m` | a block allocated and freed |
//! | `mutex_*`, `condition_round_trip` | a lock taken and given back, of the original's three kinds; to the other worker and back |
//! | `buffer_append_64k`, `buffer_through_64k` | 64 KiB appended, the same then copied out; the oldest deleted |
//! | `buffer_add`, `buffer_cycle`, `buffer_sub`, `buffer_stream` | 4 KiB appended and deleted; the same with a copy out; a copy out; from one worker to the other |

#[path = "common/ratios.rs"]
mod ratios;

use std::path::{Path, PathBuf};
use std::process::Command;

use ratios::{Filter, Ratio};

/// What is asked of ours / peer.
#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    /// At least as fast as the fastest of the peers with this goal.
    Fastest,
    /// At least as fast as the median of them.
    Median,
    /// The peer does less: it is beside ours to show what that costs.
    Shown,
}
use Goal::{AtMost, Fastest, Median, Shown};

/// How the workers run.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Threads,
    Processes,
    /// Ours in processes; peers that cannot follow in threads.
    Apart,
}
use Kind::{Apart, Processes, Threads};

/// Benches of one kind, with so many workers, and the peers.
struct Group {
    benches: &'static [&'static str],
    kind: Kind,
    workers: &'static [usize],
    peers: &'static [&'static str],
    goal: Goal,
    /// Workers wait for each other or for somebody, so the processor's time says little.
    waits: bool,
}

const fn group(
    benches: &'static [&'static str],
    (kind, workers): (Kind, &'static [usize]),
    peers: &'static [&'static str],
    goal: Goal,
) -> Group {
    Group {
        benches,
        kind,
        workers,
        peers,
        goal,
        waits: false,
    }
}

const fn waiting(group: Group) -> Group {
    Group {
        waits: true,
        ..group
    }
}

const MAPS: &[&str] = &["dashmap", "papaya", "scc"];
/// Each operation of the original alone, and by two workers at once.
const BY_ITSELF: &[&str] = &[
    "record_get",
    "record_set",
    "array_get",
    "array_set",
    "array_view",
    "matrix_get",
    "matrix_set",
    "matrix_view",
    "table_get",
    "table_view",
    "table_replace",
    "table_insert",
    "queue_pair",
    "heap_view",
    "heap_modify",
    "heap_replace",
    "pool_4k",
    "pool_64k",
    "pool_1m",
    "mutex_normal",
    "mutex_errorcheck",
    "mutex_recursive",
    "buffer_add",
    "buffer_sub",
];

const GROUPS: &[Group] = &[
    group(&["map_get", "map_mixed"], (Threads, &[1, 2]), MAPS, Fastest),
    group(&["map_get", "map_mixed"], (Apart, &[2]), MAPS, Fastest),
    group(&["map_insert"], (Threads, &[1, 2]), MAPS, Median),
    group(&["map_insert"], (Apart, &[2]), MAPS, Median),
    group(
        &["cell_get"],
        (Threads, &[1, 2]),
        &["arc-swap"],
        AtMost(2.0),
    ),
    group(&["cell_get"], (Apart, &[2]), &["arc-swap"], AtMost(2.0)),
    group(
        &["heap_view", "heap_modify", "heap_replace"],
        (Threads, &[1, 2]),
        &["std"],
        Shown,
    ),
    group(
        &["heap_view", "heap_modify", "heap_replace"],
        (Apart, &[2]),
        &["std"],
        Shown,
    ),
    group(
        &["queue_pair"],
        (Threads, &[1]),
        &["crossbeam"],
        AtMost(1.2),
    ),
    waiting(group(
        &["queue_stream"],
        (Apart, &[2]),
        &["crossbeam"],
        AtMost(1.25),
    )),
    waiting(group(
        &["queue_round_trip"],
        (Processes, &[2]),
        &["futex"],
        AtMost(1.1),
    )),
    waiting(group(
        &["mailbox_awake"],
        (Processes, &[2]),
        &["microsecond"],
        AtMost(1.0),
    )),
    group(
        &["buffer_append_64k", "buffer_through_64k"],
        (Threads, &[1]),
        &["memcpy"],
        AtMost(1.25),
    ),
    waiting(group(
        &["table_get", "table_replace", "table_insert"],
        (Processes, &[1, 2]),
        &["manager"],
        AtMost(0.05),
    )),
    group(
        &["table_get", "table_replace", "table_insert"],
        (Processes, &[1]),
        &["lmdb"],
        AtMost(0.2),
    ),
    waiting(group(
        &["table_get", "table_replace", "table_insert"],
        (Processes, &[2]),
        &["lmdb"],
        AtMost(0.2),
    )),
    waiting(group(
        &["map_get", "map_insert"],
        (Processes, &[2]),
        &["boost"],
        AtMost(0.2),
    )),
    group(BY_ITSELF, (Processes, &[1]), &["original"], AtMost(0.2)),
    waiting(group(
        BY_ITSELF,
        (Processes, &[2]),
        &["original"],
        AtMost(0.1),
    )),
    group(
        &["buffer_cycle", "mailbox_self"],
        (Processes, &[1]),
        &["original"],
        AtMost(0.2),
    ),
    waiting(group(
        &[
            "queue_stream",
            "buffer_stream",
            "mailbox_stream",
            "mailbox_round_trip",
            "condition_round_trip",
        ],
        (Processes, &[2]),
        &["original"],
        AtMost(0.1),
    )),
];

/// A run for a million operations, in seconds.
#[derive(Clone, Copy)]
struct Measured {
    wall: f64,
    cpu: f64,
}

/// The programs, as far as they are here.
struct Programs {
    ours: PathBuf,
    manager: Option<PathBuf>,
    boost: Option<PathBuf>,
    original: Option<PathBuf>,
    /// Where they may leave files: emptied after each run.
    scratch: PathBuf,
}

fn main() {
    let filter = Filter::of_arguments();
    let rounds = ratios::rounds(5);
    let only = ratios::variable("PEERS", "");
    let clock = ratios::variable("CLOCK", "wall");
    let target = ratios::target();
    let programs = Programs::build(&target);
    println!("load at the beginning: {}", load());
    let mut rows = Vec::new();
    for group in GROUPS {
        let peers = group.peers.iter().copied().filter(|peer| {
            (only.is_empty() || only.split(',').any(|o| o == *peer)) && programs.has(peer)
        });
        let peers: Vec<&str> = peers.collect();
        let benches = group.benches.iter().filter(|bench| filter.wants(bench));
        for bench in benches {
            for &workers in group.workers {
                compare(
                    &programs,
                    group,
                    (bench, workers),
                    &peers,
                    (rounds, &clock),
                    &mut rows,
                );
            }
        }
    }
    println!("load at the end: {}\n", load());
    table(&rows);
    ratios::write(
        &target,
        "containers",
        rows.iter().map(|row| row.ratio.json()),
    );
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A ratio, and what is asked of it.
struct Row {
    ratio: Ratio,
    goal: String,
    met: Option<bool>,
    clock: &'static str,
}

/// Runs ours and the peers by turns.
fn compare(
    programs: &Programs,
    group: &Group,
    (bench, workers): (&str, usize),
    peers: &[&str],
    (rounds, clock): (usize, &str),
    rows: &mut Vec<Row>,
) {
    if peers.is_empty() {
        return;
    }
    let by_cpu = clock == "cpu-all" || clock == "cpu" && !group.waits;
    let time = |measured: Measured| if by_cpu { measured.cpu } else { measured.wall };
    let (ours_kind, peers_kind) = match group.kind {
        Threads => ("threads", "threads"),
        Processes => ("processes", "processes"),
        Apart => ("processes", "threads"),
    };
    let mut ours = Vec::new();
    let mut theirs = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        let run = programs.run("shmkit", bench, ours_kind, workers);
        ours.push(time(run.unwrap_or_else(|said| panic!("{said}"))));
        for (peer, times) in peers.iter().zip(&mut theirs) {
            match programs.run(peer, bench, peers_kind, workers) {
                Ok(run) => times.push(time(run)),
                // The original does that now and then.
                Err(said) => println!("{peer} has failed, and is left out: {said}"),
            }
        }
    }
    let counts = match group.kind {
        Threads => (workers, 1),
        Processes | Apart => (1, workers),
    };
    let ratios: Vec<Ratio> = peers
        .iter()
        .zip(&theirs)
        .filter(|(_, theirs)| theirs.len() == rounds)
        .map(|(peer, theirs)| Ratio::of_pairs(bench, counts, &ours, (peer, theirs)))
        .collect();
    let mut order: Vec<f64> = ratios.iter().map(|ratio| ratio.peer_seconds).collect();
    order.sort_by(f64::total_cmp);
    for ratio in ratios {
        // Asked of the peer with the fastest or the median time; the others are shown.
        let (goal, bound) = match group.goal {
            AtMost(bound) => (format!("{bound}"), Some(bound)),
            Fastest if ratio.peer_seconds == order[0] => ("1 (fastest)".into(), Some(1.0)),
            Median if ratio.peer_seconds == order[order.len() / 2] => {
                ("1 (median)".into(), Some(1.0))
            }
            Fastest | Median | Shown => ("none".into(), None),
        };
        let row = Row {
            met: bound.map(|bound| ratio.ratio <= bound),
            goal,
            ratio,
            clock: if by_cpu { "cpu" } else { "wall" },
        };
        println!("{}", row.line());
        rows.push(row);
    }
}

impl Row {
    /// A line of the table. A thousandth of a second for a million is a nanosecond for one.
    fn line(&self) -> String {
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let Ratio {
            ours_seconds,
            peer_seconds,
            ratio,
            ..
        } = self.ratio;
        format!(
            "| {:30} | {:>10.1} | {:11} | {:>11.1} | {:>8.3} | {:11} | {met:6} | {:4} |",
            self.ratio.name(),
            ours_seconds * 1e3,
            self.ratio.peer,
            peer_seconds * 1e3,
            ratio,
            self.goal,
            self.clock
        )
    }
}

fn table(rows: &[Row]) {
    println!("| bench | ours, ns | peer | peer, ns | ours / peer | at most | | clock |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!("{}", row.line());
    }
    let mut peers: Vec<&str> = rows.iter().map(|row| row.ratio.peer.as_str()).collect();
    peers.sort_unstable();
    peers.dedup();
    println!("\ngeometric mean of ours / peer");
    for peer in peers {
        let of_peer = rows.iter().filter(|row| row.ratio.peer == peer);
        let mean = ratios::geometric_mean(of_peer.map(|row| row.ratio.ratio));
        println!("{peer:11} {mean:.3}");
    }
    let asked = rows.iter().filter_map(|row| row.met);
    let met = asked.clone().filter(|met| *met).count();
    println!("\n{met} of {} goals met", asked.count());
}

impl Programs {
    fn build(target: &Path) -> Self {
        let directory = target.join("bench-containers");
        let work = ratios::build("containers", &directory, &[]).expect("our own program");
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/containers/peers");
        let scratch = directory.join(format!("run-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).expect("a directory");
        let python = Command::new("python3").arg("--version").output();
        let manager = python.is_ok_and(|output| output.status.success());
        if !manager {
            println!("no python3: its Manager is left out");
        }
        let mut cxx = Command::new("c++");
        let boost = directory.join("boost");
        cxx.args(["-O2", "-std=c++17", "-o"]).arg(&boost);
        cxx.arg(peers.join("boost.cpp")).args(["-lrt", "-lpthread"]);
        // The compiler leaves files beside the source.
        let source = directory.join("original.ml");
        std::fs::copy(peers.join("original.ml"), &source).expect("a copy of the source");
        let original = directory.join("original");
        let mut ocaml = Command::new("ocamlfind");
        ocaml.args(["ocamlopt", "-thread", "-linkpkg", "-package"]);
        ocaml.arg("netmulticore,netcamlbox,unix").arg("-o");
        ocaml.arg(&original).arg(&source);
        Programs {
            ours: work.join("container-work"),
            manager: manager.then(|| peers.join("manager.py")),
            boost: compiled("Boost", cxx).then_some(boost),
            original: compiled("the original", ocaml).then_some(original),
            scratch,
        }
    }

    fn has(&self, peer: &str) -> bool {
        match peer {
            "manager" => self.manager.is_some(),
            "boost" => self.boost.is_some(),
            "original" => self.original.is_some(),
            _ => true,
        }
    }

    /// One run, for a million operations.
    fn run(
        &self,
        subject: &str,
        bench: &str,
        kind: &str,
        workers: usize,
    ) -> Result<Measured, String> {
        if subject == "microsecond" {
            return Ok(Measured {
                wall: 1.0,
                cpu: 1.0,
            });
        }
        // What waits for ever for somebody who is gone is ended.
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "120"]).current_dir(&self.scratch);
        let workers = workers.to_string();
        let there = |program: &Option<PathBuf>| program.clone().expect("looked for in `has`");
        match subject {
            "manager" => {
                command.arg("python3").arg(there(&self.manager));
                command.args([bench, &workers]);
            }
            "boost" => {
                command.arg(there(&self.boost)).args([bench, &workers]);
            }
            "original" => {
                command.arg(there(&self.original)).args([bench, &workers]);
                // See there.
                command.env("OCAMLRUNPARAM", "O=1000000");
            }
            _ => {
                command.arg(&self.ours);
                command.args([bench, subject, kind, &workers]);
            }
        }
        let [seconds, operations, cpu] = ratios::numbers(&mut command)?;
        Ok(Measured {
            wall: seconds / operations * 1e6,
            cpu: cpu / operations * 1e6,
        })
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// True if the compiler is there and content; else it is said what is left out.
fn compiled(what: &str, mut compiler: Command) -> bool {
    let compiled = compiler
        .output()
        .is_ok_and(|output| output.status.success());
    if !compiled {
        println!("{what} is not installed, or its compiler: left out");
    }
    compiled
}
