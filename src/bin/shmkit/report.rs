//! Reports as text and as JSON.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use shmkit::Stats;
use shmkit::inspect::{Info, Listed, LockReport, ObjectReport, Observer, Participant, PoolState};

/// What a column contains.
#[derive(Clone, Copy)]
pub enum Column {
    /// Aligned to the left.
    Text,
    /// Aligned to the right, including the heading.
    Number,
}

use Column::{Number, Text};

/// Columns of equal width.
pub fn table<const N: usize>(kinds: [Column; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), kind) in row.iter().zip(widths).zip(kinds) {
            line.push_str(&match kind {
                Text => format!("{cell:<width$}  "),
                Number => format!("{cell:>width$}  "),
            });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub fn row<const N: usize>(cells: [&dyn std::fmt::Display; N]) -> [String; N] {
    cells.map(|cell| plain(&cell.to_string()))
}

/// Text for a terminal and for one line. Names come from pools and from files: characters that
/// would end the line, or that a terminal interprets or does not show, are escaped.
pub fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '\'' | '"' | '\\' => plain.push(c),
            c => plain.extend(c.escape_debug()),
        }
    }
    plain
}

/// A number of bytes, formatted for people.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

pub fn shape(shape: &[usize]) -> String {
    match shape {
        [] => "1".into(),
        lengths => lengths
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" x "),
    }
}

/// A time in seconds after 1970, as far as a calendar has it.
fn time(seconds: u64) -> String {
    /// The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

fn state(state: PoolState) -> &'static str {
    match state {
        PoolState::Live => "live",
        PoolState::Idle => "idle",
        _ => "stale",
    }
}

fn alive(info: &Info) -> usize {
    info.processes
        .iter()
        .filter(|process| process.alive)
        .count()
}

/// The processes that have ended, by whatever cause, without leaving the pool.
fn ended(info: &Info) -> usize {
    info.processes.len() - alive(info)
}

pub fn list(all: &[Listed]) -> String {
    let mut rows = vec![row([
        &"NAME",
        &"STATE",
        &"ATTACHED",
        &"ENDED",
        &"SIZE",
        &"MEMORY",
        &"MAXIMUM",
        &"UID",
        &"CREATOR",
    ])];
    // The text of an error does not fit into a cell.
    let mut bad = String::new();
    for pool in all {
        match &pool.info {
            Ok(info) => rows.push(row([
                &pool.name,
                &state(info.state),
                &alive(info),
                &ended(info),
                &bytes(info.size as u64),
                &bytes(info.memory),
                &bytes(info.maximum as u64),
                &info.owner,
                &info.creator,
            ])),
            Err(error) => {
                let why = crate::failure::line(error);
                bad.push_str(&plain(&format!("{}: {why}", pool.name)));
                bad.push('\n');
            }
        }
    }
    let kinds = [
        Text, Text, Number, Number, Number, Number, Number, Number, Number,
    ];
    table(kinds, &rows) + &bad
}

pub fn list_json(all: &[Listed]) -> Value {
    let of = |pool: &Listed| match &pool.info {
        Ok(info) => json!({
            "name": pool.name,
            "path": pool.path,
            "state": info.state,
            "attached": alive(info),
            "ended": ended(info),
            "info": info,
        }),
        Err(error) => json!({
            "name": pool.name,
            "path": pool.path,
            "error": crate::failure::line(error),
        }),
    };
    all.iter().map(of).collect()
}

/// Everything that `info` shows.
pub struct Whole {
    info: Info,
    stats: Stats,
    participants: Vec<Participant>,
    objects: Vec<ObjectReport>,
}

impl Whole {
    pub fn of(observer: &Observer) -> Self {
        Whole {
            info: observer.info(),
            stats: observer.stats(),
            participants: observer.participants(),
            objects: observer.objects(),
        }
    }

    pub fn json(&self) -> Value {
        let numbers: Vec<Value> = self
            .objects
            .iter()
            .flat_map(|object| object.names.iter().map(move |name| (name, &object.numbers)))
            .filter_map(|(name, numbers)| {
                let mut data = json!(numbers.as_ref()?);
                data["name"] = json!(name);
                Some(data)
            })
            .collect();
        json!({
            "pool": self.info,
            "memory": stats_json(&self.stats),
            "participants": self.participants,
            "objects": self.objects.len(),
            "numbers": numbers,
        })
    }

    pub fn text(&self) -> String {
        let (info, stats) = (&self.info, &self.stats);
        let rows = [
            row([&"file", &info.path]),
            row([&"uuid", &info.uuid]),
            row([&"state", &state(info.state)]),
            row([&"base", &format!("{:#x}", info.base)]),
            row([&"layout version", &info.version]),
            row([
                &"created",
                &format!("by process {}, {}", info.creator, time(info.created)),
            ]),
            row([&"owner", &format!("uid {}", info.owner)]),
            row([
                &"data",
                &format!(
                    "{}, up to {}",
                    bytes(info.size as u64),
                    bytes(info.maximum as u64)
                ),
            ]),
            row([&"memory", &bytes(info.memory)]),
            row([
                &"allocated",
                &format!(
                    "{}, free {}, largest {}",
                    bytes(stats.allocated as u64),
                    bytes(stats.free as u64),
                    bytes(stats.largest_contiguous as u64)
                ),
            ]),
            row([
                &"retired",
                &format!(
                    "{} blocks, {}",
                    stats.retired.blocks,
                    bytes(stats.retired.bytes as u64)
                ),
            ]),
            row([&"recoveries", &format!("{} so far", stats.recoveries)]),
            row([
                &"participants",
                &format!(
                    "{} threads of {} at most",
                    stats.threads, info.max_participants
                ),
            ]),
            row([&"objects", &self.objects.len()]),
        ];
        let mut text = table([Text, Text], &rows);
        text.push('\n');
        text.push_str(&processes(info));
        text.push_str(&numbers(&self.objects));
        text
    }
}

pub fn stats_json(stats: &Stats) -> Value {
    let classes: Vec<Value> = stats
        .classes
        .iter()
        .map(|class| {
            json!({
                "block_size": class.block_size,
                "spans": class.spans,
                "allocated": class.allocated,
                "free": class.free,
            })
        })
        .collect();
    json!({
        "total": stats.total,
        "maximum": stats.maximum,
        "allocated": stats.allocated,
        "free": stats.free,
        "largest_contiguous": stats.largest_contiguous,
        "committed": stats.committed,
        "retired": { "blocks": stats.retired.blocks, "bytes": stats.retired.bytes, "held_back": stats.retired.held_back },
        "runs": { "allocated": stats.runs.allocated, "bytes": stats.runs.allocated_bytes },
        "classes": classes,
        "threads": stats.threads,
        "processes": stats.processes,
        "recoveries": stats.recoveries,
    })
}

fn processes(info: &Info) -> String {
    let mut rows = vec![row([
        &"PROCESS",
        &"STATE",
        &"THREADS",
        &"CHANGING",
        &"HOLDS",
        &"COMMAND",
    ])];
    for process in &info.processes {
        rows.push(row([
            &process.process,
            &if process.alive { "alive" } else { "ended" },
            &process.threads,
            &process.changing,
            &process.objects,
            &process.command.as_deref().unwrap_or(""),
        ]));
    }
    table([Number, Text, Number, Number, Number, Text], &rows)
}

fn numbers(objects: &[ObjectReport]) -> String {
    let mut rows = vec![row([&"NUMBERS", &"DTYPE", &"SHAPE", &"OFFSET"])];
    for object in objects {
        for name in &object.names {
            match &object.numbers {
                Some(numbers) => rows.push(row([
                    name,
                    &numbers.dtype,
                    &shape(&numbers.shape),
                    &numbers.offset,
                ])),
                None if object.damaged => rows.push(row([name, &"damaged", &"", &""])),
                None => {}
            }
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!("\n{}", table([Text, Text, Text, Number], &rows))
}

pub fn objects(objects: &[ObjectReport]) -> String {
    let mut rows = vec![row([
        &"INDEX", &"TYPE", &"SIZE", &"OFFSET", &"LINKS", &"HELD", &"NUMBERS", &"NAME",
    ])];
    for object in objects {
        let numbers = object.numbers.as_ref();
        let numbers = numbers.map(|n| format!("{} [{}]", n.dtype, shape(&n.shape)));
        rows.push(row([
            &object.index,
            &object.type_name,
            &object.size,
            &object.offset,
            &object.links,
            &if object.damaged {
                "damaged"
            } else if object.held {
                "yes"
            } else {
                "no"
            },
            &numbers.unwrap_or_default(),
            &object.names.join(", "),
        ]));
    }
    let kinds = [Number, Text, Number, Number, Number, Text, Text, Text];
    table(kinds, &rows)
}

pub fn locks(locks: &[LockReport]) -> String {
    let mut rows = vec![row([&"OFFSET", &"WITHIN", &"PROCESS", &"SLOT", &"HOW"])];
    for lock in locks {
        for thread in &lock.threads {
            rows.push(row([
                &lock.offset,
                &lock.within,
                &thread.process,
                &thread.slot,
                &format!("{:?}", thread.why).to_lowercase(),
            ]));
        }
    }
    table([Number, Text, Number, Number, Text], &rows)
}
