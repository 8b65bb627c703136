//! The command line: what is asked, and who answers.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;
use shmkit::inspect::{self, Observer, PoolState, Removable, RemoveError};
use shmkit::{AttachError, Pool};

use crate::failure::{self, Code, Failure, Outcome};
use crate::{bench, man, npy, report, top};

/// Lists, inspects and removes pools of shared memory.
///
/// A POOL is a name (for /dev/shm/shmkit.NAME) or the path of a pool's file, which has a slash in it.
/// Reports are made without taking part in the pool: they need no free place in it, and nobody notices
/// them.
#[derive(Debug, Parser)]
#[command(name = "shmkit", version, after_help = failure::HELP)]
pub struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the named pools: size, owner, who is attached, whether anybody has it.
    Ls {
        /// Only those whose names begin with this.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Tell what a pool is, who uses it and how much, and where its numbers are.
    Info { pool: OsString },
    /// Watch a pool: participants, what they hold and wait for, how their memory grows.
    Top {
        pool: OsString,
        /// Print one report and end, as when standard output is not a terminal.
        #[arg(long)]
        once: bool,
        /// Seconds between two looks.
        #[arg(long, default_value_t = 1.0, value_parser = seconds)]
        interval: f64,
    },
    /// Check everything that must hold of a pool.
    ///
    /// While it is used, only what holds at every instant is checked. A pool that nobody has is
    /// checked whole; if dead processes left it in the middle of something and it is not damaged,
    /// a copy is recovered and checked.
    Check { pool: OsString },
    /// Draw what lies where.
    Map {
        pool: OsString,
        /// Draw SVG.
        #[arg(long)]
        svg: bool,
    },
    /// List the objects: names, types, sizes, where they are.
    Objects { pool: OsString },
    /// List what threads hold and wait for.
    Locks { pool: OsString },
    /// Write a named matrix, array or number to a .npy file.
    Export {
        pool: OsString,
        /// The object's name.
        object: String,
        /// The file to make; `-` for standard output.
        file: PathBuf,
    },
    /// Read a .npy file into a named matrix, array or number: over one of the same shape, or a new one.
    Import {
        pool: OsString,
        /// The object's name.
        object: String,
        /// The file to read.
        file: PathBuf,
    },
    /// Remove the named pools that nobody has; without --yes, say which these are.
    Gc {
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Only those whose names begin with this.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Remove pools that nobody has; without --yes, say whether they could be removed.
    Rm {
        #[arg(required = true)]
        pools: Vec<OsString>,
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Also remove files that are damaged or are not pools.
        #[arg(long)]
        damaged: bool,
    },
    /// Measure some rates of the allocator, locks and containers on this machine.
    RunBench {
        /// Seconds for each figure.
        #[arg(long, default_value_t = 0.2, value_parser = seconds)]
        seconds: f64,
    },
    /// Print a script that completes this command's arguments in a shell.
    Completions { shell: clap_complete::Shell },
    /// Print this command's manual page.
    Man,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.001 to 3600".into()),
    }
}

/// The arguments, or why there are none: help and version, which are not failures, are printed
/// here.
pub fn parse() -> Outcome<Cli> {
    Cli::try_parse().map_err(|error| {
        let code = if error.use_stderr() {
            Code::Usage
        } else {
            Code::Problems
        };
        if code == Code::Usage {
            // The first lines are the message; the rest explains how to use the command.
            let text = error.render().to_string();
            let mut said = text.split("\n\n").next().unwrap_or_default().to_owned();
            if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                said = "a command is missing; see shmkit --help".into();
            }
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            return Failure::new(code, said.trim_start_matches("error: "));
        }
        match written(error.print()) {
            Ok(()) => std::process::exit(0),
            Err(failure) => failure,
        }
    })
}

/// Checks that what was printed has been written. A reader that has gone away has seen enough.
fn written(printed: std::io::Result<()>) -> Outcome {
    match printed.and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A POOL as the library takes it: a name, or a path from the root.
fn place(pool: &Path) -> std::io::Result<PathBuf> {
    match pool.as_os_str().as_bytes().contains(&b'/') {
        true => std::path::absolute(pool),
        false => Ok(pool.into()),
    }
}

fn observe(pool: &Path) -> Outcome<Observer> {
    Observer::open(place(pool)?).map_err(|error| Failure::from(error).about(&shown(pool)))
}

/// A path in a message.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Cli {
    pub fn run(self) -> Outcome {
        let json = self.json;
        let answer = |text: &dyn Fn() -> String, data| answer(json, text, data);
        match self.command {
            Command::Ls { prefix } => {
                let all = inspect::list(&prefix)?;
                answer(&|| report::list(&all), report::list_json(&all))
            }
            Command::Info { pool } => {
                let observer = observe(pool.as_ref())?;
                let info = report::Whole::of(&observer);
                answer(&|| info.text(), info.json())
            }
            Command::Top {
                pool,
                once,
                interval,
            } => {
                let observer = observe(pool.as_ref())?;
                let interval = Duration::from_secs_f64(interval);
                if once || json || !std::io::stdout().is_terminal() {
                    let view = top::look_twice(&observer, interval.min(Duration::from_millis(200)));
                    return answer(&|| view.text(), view.json());
                }
                top::watch(&observer, &shown(pool.as_ref()), interval)
            }
            Command::Check { pool } => check(pool.as_ref(), json),
            Command::Map { pool, svg } => {
                let map = observe(pool.as_ref())?.map();
                let drawn = || if svg { map.to_svg() } else { map.to_string() };
                answer(&drawn, json!(map))
            }
            Command::Objects { pool } => {
                let objects = observe(pool.as_ref())?.objects();
                answer(&|| report::objects(&objects), json!(objects))
            }
            Command::Locks { pool } => {
                let locks = observe(pool.as_ref())?.locks();
                answer(&|| report::locks(&locks), json!(locks))
            }
            Command::Export { pool, object, file } => export(pool.as_ref(), &object, &file, json),
            Command::Import { pool, object, file } => import(pool.as_ref(), &object, &file, json),
            Command::Gc { yes, prefix } => gc(&prefix, yes, json),
            Command::Rm {
                pools,
                yes,
                damaged,
            } => rm(&pools, yes, damaged, json),
            Command::RunBench { seconds } => {
                let rates = bench::run(Duration::from_secs_f64(seconds))?;
                answer(&|| bench::text(&rates), json!(rates))
            }
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "shmkit", &mut script);
                let script = String::from_utf8_lossy(&script);
                answer(&|| script.to_string(), json!({ "script": script }))
            }
            Command::Man => {
                let page = man::page(Cli::command())?;
                answer(&|| page.clone(), json!({ "page": page }))
            }
        }
    }
}

/// Prints a complete answer, in one of its two forms.
fn answer(json: bool, text: &dyn Fn() -> String, data: serde_json::Value) -> Outcome {
    let answer = if json { format!("{data:#}\n") } else { text() };
    written(std::io::stdout().write_all(answer.as_bytes()))
}

fn export(pool: &Path, object: &str, file: &Path, json: bool) -> Outcome {
    let observer = observe(pool)?;
    if npy::are_one(file, observer.fd()) {
        let failure = Failure::new(Code::Unsuitable, "it is the pool itself");
        return Err(failure.about(&shown(file)));
    }
    let (numbers, bytes) = observer
        .read_numbers(object)
        .map_err(|error| Failure::from(error).about(object))?;
    let to_stdout = npy::is_stdout(file);
    npy::write(file, to_stdout, &numbers, &bytes)?;
    if to_stdout {
        return Ok(());
    }
    let said = || {
        let shape = report::shape(&numbers.shape);
        let file = report::plain(&shown(file));
        format!("{file}: {shape} of {}\n", numbers.dtype)
    };
    answer(json, &said, json!(numbers))
}

fn import(pool: &Path, object: &str, file: &Path, json: bool) -> Outcome {
    let read = npy::read(file)?;
    let name = place(pool)?;
    // SAFETY: the user states that the pool's programs cooperate with this one.
    let opened = unsafe { Pool::open(&name) };
    let opened = opened.map_err(|error| Failure::from(error).about(&shown(pool)))?;
    let (dtype, shape) = (&read.dtype, &read.shape);
    let stored = shmkit::numbers::store(opened, object, dtype, shape, &read.bytes);
    // SAFETY: this program has one thread, and no handle of the pool.
    unsafe { opened.unmap() };
    let stored = stored.map_err(|error| Failure::from(error).about(object))?;
    let how = format!("{stored:?}").to_lowercase();
    let said = || {
        let shape = report::shape(shape);
        format!("{}: {how}, {shape} of {dtype}\n", report::plain(object))
    };
    let data = json!({ "object": object, "stored": how, "dtype": dtype, "shape": shape });
    answer(json, &said, data)
}

fn check(pool: &Path, json: bool) -> Outcome {
    let observer = observe(pool)?;
    let name = shown(pool);
    let info = observer.info();
    let (how, found) = match info.state {
        PoolState::Live | PoolState::Idle => ("in use", observer.check()),
        _ if info.processes.is_empty() => ("at rest", observer.check_quiescent()),
        _ => match observer.check() {
            found if found.is_ok() => {
                // SAFETY: the copy is only recovered and checked.
                let copy = unsafe { observer.into_copy() }
                    .map_err(|error| Failure::from(error).about(&name))?;
                copy.recover();
                ("a copy, recovered", copy.check_quiescent())
            }
            found => ("not recovered", found),
        },
    };
    let mut data = json!(found);
    data["checked"] = how.into();
    data["ok"] = found.is_ok().into();
    let said = || format!("{} ({how}): {found}\n", report::plain(&name));
    answer(json, &said, data)?;
    if found.is_ok() {
        return Ok(());
    }
    let count = found.problems.len();
    Err(Failure::new(
        Code::Problems,
        format!("{name}: {count} problems"),
    ))
}

/// What was done, or would be done, with each pool.
fn told(yes: bool, removed: &[String], kept: &[(String, String)], json: bool) -> Outcome {
    let data = json!({
        "dry_run": !yes,
        "removed": removed,
        "kept": kept.iter().map(|(name, why)| json!({ "name": name, "why": why })).collect::<Vec<_>>(),
    });
    let verb = if yes { "removed" } else { "would remove" };
    let mut text = String::new();
    for name in removed {
        text.push_str(&format!("{verb} {}\n", report::plain(name)));
    }
    for (name, why) in kept {
        text.push_str(&report::plain(&format!("kept {name}: {why}")));
        text.push('\n');
    }
    if !yes && !removed.is_empty() {
        text.push_str("nothing was removed; say --yes to do it\n");
    }
    answer(json, &|| text.clone(), data)
}

/// Removes a pool, or tells whether it could be removed.
fn remove(pool: &Path, what: Removable, yes: bool) -> Result<(), RemoveError> {
    let name = place(pool)?;
    match yes {
        true => inspect::remove(&name, what),
        false => inspect::would_remove(&name, what),
    }
}

fn gc(prefix: &str, yes: bool, json: bool) -> Outcome {
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    for pool in inspect::list(prefix)? {
        match remove(Path::new(&pool.name), Removable::Pool, yes) {
            Ok(()) => removed.push(pool.name),
            Err(RemoveError::Attach(AttachError::NotFound { .. })) => {}
            Err(error) => kept.push((pool.name, failure::line(&error))),
        }
    }
    told(yes, &removed, &kept, json)
}

fn rm(pools: &[OsString], yes: bool, damaged: bool, json: bool) -> Outcome {
    let (mut removed, mut first) = (Vec::new(), None);
    let mut kept = Vec::new();
    let what = match damaged {
        true => Removable::AnyFile,
        false => Removable::Pool,
    };
    for pool in pools {
        let pool = Path::new(pool);
        match remove(pool, what, yes) {
            Ok(()) => removed.push(shown(pool)),
            Err(error) => {
                kept.push((shown(pool), failure::line(&error)));
                first = first.or(Some(Failure::from(error).about(&shown(pool))));
            }
        }
    }
    match first {
        // A single line is enough.
        Some(failure) if pools.len() == 1 => Err(failure),
        Some(failure) => told(yes, &removed, &kept, json).and(Err(failure)),
        None => told(yes, &removed, &kept, json),
    }
}
