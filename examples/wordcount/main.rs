//! Counts the words of files, by worker processes with one hash map.
//!
//! ```text
//! wordcount [--workers W] [--top N] [PATH..]
//! ```
//!
//! A directory stands for the files in it and in its subdirectories; without a path, this
//! repository is read. The workers take files from a shared list, one at a time, and count into a
//! shared map. At the end the map is compared with what one process counts alone; the program exits
//! with 1 if they differ.
//!
//! Workers may be killed at any moment. A worker that is started again goes on with the file that
//! it had claimed. The words of that file that it had counted by then are not counted twice: the
//! count of a word also records, for each worker, in which file that worker last added to it, and
//! both are stored at once.

#[macro_use]
#[path = "../common/say.rs"]
mod say;

use std::collections::HashMap as Model;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use shmkit::process::{Backoff, Config, Entry, Restart, StartOptions, Worker, run};
use shmkit::{Array, Handle, HashMap, Pool, ShmSafe};

const MOST_WORKERS: usize = 16;

/// Counts the words of files, by worker processes with one hash map.
#[derive(Parser)]
struct Arguments {
    /// Files, and directories of files.
    paths: Vec<PathBuf>,
    /// How many workers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=MOST_WORKERS as i64))]
    workers: u16,
    /// How many of the most frequent words to print.
    #[arg(long, default_value_t = 10)]
    top: usize,
}

/// How often a word occurs.
#[derive(Clone, Copy, ShmSafe)]
struct Count {
    count: u64,
    /// By worker: the file, counted from 1, whose words it has added last.
    last: [u32; MOST_WORKERS],
}

/// What all workers share.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Shared {
    counts: Handle<HashMap<str, Count>>,
    /// By file: [`FREE`], [`DONE`], or the worker that has claimed it, counted from 1.
    claims: Handle<Array<u32>>,
    next: Handle<AtomicUsize>,
}

const FREE: u32 = 0;
const DONE: u32 = u32::MAX;

/// The files; the workers are forked and have them.
static FILES: OnceLock<Vec<PathBuf>> = OnceLock::new();

static COUNT: Entry<(Shared, u32), Result<(), String>> = Entry::new("count", |_, (shared, me)| {
    count_files(&shared, me).map_err(|error| error.to_string())
});
static ALL: Entry<(Shared, u32), Result<(), String>> =
    Entry::new("all", |worker, (shared, workers)| {
        count_all(worker, shared, workers).map_err(|error| error.to_string())
    });

fn main() -> ExitCode {
    match compared(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => say::failed(&*error),
    }
}

fn compared(mut arguments: Arguments) -> Result<bool, Box<dyn Error>> {
    if arguments.paths.is_empty() {
        arguments.paths.push(env!("CARGO_MANIFEST_DIR").into());
    }
    let mut files = Vec::new();
    for path in &arguments.paths {
        collect(path, &mut files).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let files = FILES.get_or_init(|| files);
    let pool = Pool::builder().create()?;
    let counts = pool.create(HashMap::<str, Count>::new())?;
    let claims = Array::filled_in(pool, files.len(), FREE)?;
    let next = pool.create(AtomicUsize::new(0))?;
    let shared = Shared {
        counts: counts.handle(),
        claims: claims.handle(),
        next: next.handle(),
    };
    run(&Config::new(), &ALL, (shared, arguments.workers.into()))??;
    let mut alone = Model::new();
    for file in files {
        for word in words(&read(file)) {
            *alone.entry(word.to_owned()).or_insert(0_u64) += 1;
        }
    }
    let counted = |word: &str| counts.get_copied(word).map(|count| count.count);
    let same = counts.len() == alone.len()
        && alone
            .iter()
            .all(|(word, &count)| counted(word) == Some(count));
    let mut sorted: Vec<_> = alone.iter().map(|(word, &count)| (count, word)).collect();
    sorted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    for (count, word) in sorted.iter().take(arguments.top) {
        say!("{count:8} {word}");
    }
    let total: u64 = alone.values().sum();
    let verdict = if same { "as" } else { "NOT as" };
    say!(
        "{} files, {total} words, {} different; {verdict} counted alone",
        files.len(),
        alone.len()
    );
    Ok(same)
}

/// The first worker: starts the others, which are started again when they are killed.
fn count_all(worker: &Worker, shared: Shared, workers: u32) -> Result<(), Box<dyn Error>> {
    let waits = Backoff::new(Duration::from_millis(1)).at_most(Duration::from_millis(20));
    let options = StartOptions::new().restart(Restart::OnCrash(waits.times(1000)));
    let started: Result<Vec<_>, _> = (1..=workers)
        .map(|number| worker.start_with(options, &COUNT, &(shared, number)))
        .collect();
    for worker in started? {
        worker.join()??;
    }
    Ok(())
}

/// Counts the words of files until there are none left: first those of the file that this worker
/// had claimed before it was killed, if it was; at the end those of files whose claimant got no
/// further than taking their number.
fn count_files(shared: &Shared, me: u32) -> Result<(), Box<dyn Error>> {
    let files = FILES.get().expect("made before the workers");
    let (counts, claims) = (shared.counts.open()?, shared.claims.open()?);
    let next = shared.next.open()?;
    let claimed = (0..files.len()).find(|&file| claims.get(file) == Ok(me));
    let listed = std::iter::from_fn(|| {
        let file = next.fetch_add(1, Ordering::Relaxed);
        (file < files.len()).then_some(file)
    });
    for file in claimed.into_iter().chain(listed).chain(0..files.len()) {
        let was = claims.update(file, |state| if state == FREE { me } else { state })?;
        if was != FREE && was != me {
            continue;
        }
        let text = read(&files[file]);
        // The words of one file are counted first, to reduce contention for the frequent ones.
        let mut own = Model::new();
        for word in words(&text) {
            *own.entry(word).or_insert(0) += 1;
        }
        for (word, more) in own {
            add(&counts, word, more, me, file)
                .map_err(|error| format!("{}: {error}", files[file].display()))?;
        }
        claims.set(file, DONE)?;
    }
    Ok(())
}

/// Adds to a word's count, if this worker has not done so for this file before.
fn add(
    counts: &HashMap<str, Count>,
    word: &str,
    more: u64,
    me: u32,
    file: usize,
) -> Result<(), shmkit::ChangeError> {
    let (worker, mark) = (me as usize - 1, file as u32 + 1);
    counts.update(word, |count| {
        let mut count = count.copied().unwrap_or(Count {
            count: 0,
            last: [0; MOST_WORKERS],
        });
        if count.last[worker] != mark {
            count.count += more;
            count.last[worker] = mark;
        }
        Some(count)
    })?;
    Ok(())
}

/// The text of a file, as far as it is text.
fn read(file: &Path) -> String {
    // A file that cannot be read has no words: it may have been removed since it was listed.
    let bytes = std::fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Lists files, including those in directories; hidden files and build output are left out.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let kind = std::fs::metadata(path)?;
    if !kind.is_dir() {
        if !kind.is_file() {
            // A pipe or a device may have no end.
            return Err(std::io::Error::other("neither a file nor a directory"));
        }
        // If a file cannot be read, that is reported before any counting starts.
        std::fs::File::open(path).map_err(|error| {
            std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        files.push(path.into());
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        let is_either = kind.is_file() || kind.is_dir();
        if name.starts_with('.') || name == "target" && kind.is_dir() || !is_either {
            continue;
        }
        collect(&entry.path(), files)?;
    }
    Ok(())
}
