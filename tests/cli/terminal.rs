//! What is for people: the live view, the help, the manual, the bench.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::{Actor, Name, said, told};

/// Both ends of a terminal of 120 columns.
fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    let size = libc::winsize {
        ws_row: 40,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: two descriptors of this frame; no name and no modes are asked for.
    let made = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    assert_eq!(made, 0);
    // SAFETY: two new descriptors, which nobody else has.
    unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

/// What has come in, if anything comes in within a tenth of a second.
fn read(master: &mut File) -> Vec<u8> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let tenth = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    let mut ready = [PollFd::new(master, PollFlags::IN)];
    let count = poll(&mut ready, Some(&tenth)).unwrap();
    let mut bytes = vec![0; 4096];
    let read = if count > 0 {
        master.read(&mut bytes)
    } else {
        Ok(0)
    };
    // The other end is closed: the child has ended.
    bytes.truncate(read.unwrap_or(0));
    bytes
}

/// Killed with its case, should that fail.
struct Watched(Child);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn top_on_a_terminal() {
    let name = Name::new("top");
    let actor = Actor::start("role_holds", &name.0);
    for key in [&b"q"[..], b"\x1b", b"\x03"] {
        let (mut master, slave) = terminal();
        let child = Command::new(env!("CARGO_BIN_EXE_shmkit"))
            .args(["top", &name.0, "--interval", "0.05"])
            .stdin(slave.try_clone().unwrap())
            .stdout(slave)
            .spawn();
        let mut child = Watched(child.unwrap());
        let mut screen = Vec::new();
        let began = Instant::now();
        // Blanks are left out of what is drawn.
        let shown = |screen: &[u8]| {
            let text = String::from_utf8_lossy(screen).into_owned();
            let pid = actor.pid().to_string();
            ["participants", "waited", "holds", &pid]
                .iter()
                .all(|part| text.contains(part))
        };
        while !shown(&screen) {
            let text = String::from_utf8_lossy(&screen);
            assert!(began.elapsed() < Duration::from_secs(60), "{text}");
            screen.extend(read(&mut master));
        }
        master.write_all(key).unwrap();
        // Read on, so that it is not held up by a full terminal.
        while child.0.try_wait().unwrap().is_none() {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{key:?} ends nothing"
            );
            read(&mut master);
        }
        assert!(child.0.wait().unwrap().success());
    }
    actor.end();
}

pub fn help_and_manual() {
    let help = said(&["--help"]);
    let documented = include_str!("../../docs/cli.md");
    let page = said(&["man"]).replace("\\-", "-");
    for code in 0..=9 {
        let line = help
            .lines()
            .find(|line| line.starts_with(&format!("  {code}  ")))
            .unwrap();
        let said = line.trim_start_matches(|c: char| !c.is_alphabetic());
        assert!(
            documented.contains(&format!("| {code} | {said} |")),
            "{line}"
        );
    }
    for command in [
        "ls",
        "info",
        "top",
        "check",
        "map",
        "objects",
        "locks",
        "export",
        "import",
        "gc",
        "rm",
        "run-bench",
        "completions",
        "man",
    ] {
        let help = said(&[command, "--help"]);
        assert!(help.contains("Usage"), "{command}");
        let (_, part) = page.split_once(&format!(".SS {command}\n")).unwrap();
        let part = part.split(".SS ").next().unwrap();
        for option in help
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
        {
            let is_own = !["--help", "--json"].contains(&option);
            assert_eq!(part.contains(option), is_own, "{command} {option}: {part}");
        }
        assert!(documented.contains(&format!("`{command}")), "{command}");
    }
    assert!(said(&["--version"]).starts_with("shmkit "));
    assert!(page.contains(".TH shmkit") && page.contains("Exit codes"));
    // It refers to no other page.
    assert!(!page.contains("(1)"), "{page}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(said(&["completions", shell]).contains("run-bench"));
    }
    assert!(
        told(&["man"])["page"].is_string() && told(&["completions", "bash"])["script"].is_string()
    );
}

pub fn the_bench_measures() {
    let rates = told(&["run-bench", "--seconds", "0.01"]);
    let rates = rates.as_array().unwrap();
    assert_eq!(rates.len(), 8);
    assert!(
        rates
            .iter()
            .all(|rate| rate["per_second"].as_f64().unwrap() > 0.0)
    );
    assert!(said(&["run-bench", "--seconds", "0.01"]).contains("Mutex"));
}
