//! One piece of work on a container, ours or a peer's.
//!
//! ```text
//! container-work BENCH SUBJECT threads|processes COUNT
//! ```
//!
//! prints the seconds that the work took, how many operations it was, and the processor's seconds
//! of the worker that used most. Nothing is compared here: `../containers.rs` has that.
//!
//! | module   | benches |
//! |----------|---------|
//! | `maps`   | map_*: a million keys; table_*: a hundred thousand, as the original does it |
//! | `queues` | queue_*, mailbox_* |
//! | `bytes`  | buffer_* |
//! | `heaps`  | heap_* |
//! | `foundations` | pool_*, mutex_*, condition_* |
//! | `cells`  | cell_*, record_*, array_*, matrix_* |

mod bytes;
mod cells;
mod crew;
mod foundations;
#[path = "../../common/gate.rs"]
mod gate;
mod heaps;
mod lmdb;
mod maps;
mod queues;

use crew::Crew;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bench, subject, kind, count] = &arguments[..] else {
        panic!("container-work BENCH SUBJECT threads|processes COUNT");
    };
    let count = count.parse().expect("a number of workers");
    let crew = Crew::new(kind == "processes", count);
    let family = bench.split('_').next();
    match family {
        Some("map" | "table") => maps::run(&crew, bench, subject),
        Some("queue" | "mailbox") => queues::run(&crew, bench, subject),
        Some("heap") => heaps::run(&crew, bench, subject),
        Some("pool" | "mutex" | "condition") => foundations::run(&crew, bench),
        Some("buffer") => bytes::run(&crew, bench, subject),
        _ => cells::run(&crew, bench, subject),
    }
}
