//! Counts the words of files, by worker processes with one hash map.
//!
//! ```text
//! wordcount [--workers W] [--top N] [PATH..]
//! ```
//!
//! A directory stands for the files in it and below; without a path it is this repository. The
//! workers take files from a shared list, one at a time, and count into a shared map. At the end
//! the map is compared with what one process counts alone; the program exits with 1 if they differ.

use std::collections::HashMap as Model;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use shmkit::process::scope;
use shmkit::{ChangeError, HashMap, Pool};

/// Counts the words of files, by worker processes with one hash map.
#[derive(Parser)]
struct Arguments {
    /// Files, and directories of files.
    paths: Vec<PathBuf>,
    /// How many workers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// How many of the most frequent words to print.
    #[arg(long, default_value_t = 10)]
    top: usize,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("wordcount: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<bool, Box<dyn Error>> {
    if arguments.paths.is_empty() {
        arguments.paths.push(env!("CARGO_MANIFEST_DIR").into());
    }
    let mut files = Vec::new();
    for path in &arguments.paths {
        collect(path, &mut files).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let pool = Pool::builder().create()?;
    let counts = pool.create(HashMap::<str, u64>::new())?;
    let next = pool.create(AtomicUsize::new(0))?;
    scope(|s| -> Result<(), Box<dyn Error>> {
        let workers: Result<Vec<_>, _> = (0..arguments.workers)
            .map(|_| s.spawn(|| work(&files, &next, &counts)))
            .collect();
        for worker in workers? {
            worker.join()??;
        }
        Ok(())
    })?;
    let mut alone = Model::new();
    for file in &files {
        for word in words(&read(file)) {
            *alone.entry(word.to_owned()).or_insert(0_u64) += 1;
        }
    }
    let same = counts.len() == alone.len()
        && alone
            .iter()
            .all(|(word, &count)| counts.get_copied(word) == Some(count));
    let mut sorted: Vec<_> = alone.iter().map(|(word, &count)| (count, word)).collect();
    sorted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    for (count, word) in sorted.iter().take(arguments.top) {
        println!("{count:8} {word}");
    }
    let total: u64 = alone.values().sum();
    let verdict = if same { "as" } else { "NOT as" };
    println!(
        "{} files, {total} words, {} different; {verdict} counted alone",
        files.len(),
        alone.len()
    );
    Ok(same)
}

/// Counts the words of files until there are none left.
fn work(files: &[PathBuf], next: &AtomicUsize, counts: &HashMap<str, u64>) -> Result<(), String> {
    let add = |word: &str, more: u64| -> Result<(), ChangeError> {
        counts.update(word, |count| Some(count.unwrap_or(&0) + more))?;
        Ok(())
    };
    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
        let text = read(file);
        // The words of one file first: so the frequent ones are not fought for.
        let mut own = Model::new();
        for word in words(&text) {
            *own.entry(word).or_insert(0) += 1;
        }
        for (word, count) in own {
            add(word, count).map_err(|error| format!("{}: {error}", file.display()))?;
        }
    }
    Ok(())
}

/// The text of a file, as far as it is text.
fn read(file: &Path) -> String {
    // What cannot be read has no words: it may have gone since it was listed.
    let bytes = std::fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Lists files, with those below directories; what is hidden and what builds leave is left out.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        files.push(path.into());
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        if name.starts_with('.') || name == "target" && kind.is_dir() || kind.is_symlink() {
            continue;
        }
        collect(&entry.path(), files)?;
    }
    Ok(())
}
