//! Output for people: the live view, the help, the manual, the bench.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
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

/// The live view of a pool on a terminal, which shows all that it is to.
struct Top {
    child: Watched,
    master: File,
    /// The terminal's other end.
    slave: OwnedFd,
    screen: Vec<u8>,
}

impl Top {
    fn start(name: &Name, actor: &Actor, interval: &str) -> Top {
        let (master, slave) = terminal();
        let child = Command::new(env!("CARGO_BIN_EXE_shmkit"))
            .args(["top", &name.0, "--interval", interval])
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .spawn();
        let mut top = Top {
            child: Watched(child.unwrap()),
            master,
            slave,
            screen: Vec::new(),
        };
        let pid = actor.pid().to_string();
        // Blanks are left out of what is drawn.
        let parts = ["participants", "waited", "holds", &pid];
        top.read_until(|top| {
            let text = String::from_utf8_lossy(&top.screen);
            parts.iter().all(|part| text.contains(part))
        });
        top
    }

    fn read_until(&mut self, mut is_there: impl FnMut(&mut Top) -> bool) {
        let began = Instant::now();
        while !is_there(self) {
            let text = String::from_utf8_lossy(&self.screen);
            assert!(began.elapsed() < Duration::from_secs(60), "{text}");
            self.screen.extend(read(&mut self.master));
        }
    }

    /// Waits for the end, and reads on, so that it is not held up by a full terminal.
    fn end(mut self) -> (ExitStatus, String) {
        self.read_until(|top| top.child.0.try_wait().unwrap().is_some());
        self.screen.extend(read(&mut self.master));
        let mut modes = std::mem::MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: a terminal of ours, and this frame's memory, of numbers.
        let modes = unsafe {
            assert_eq!(
                libc::tcgetattr(self.slave.as_raw_fd(), modes.as_mut_ptr()),
                0
            );
            modes.assume_init()
        };
        let cooked = libc::ICANON | libc::ECHO;
        assert_eq!(modes.c_lflag & cooked, cooked);
        let screen = String::from_utf8_lossy(&self.screen).into_owned();
        (self.child.0.wait().unwrap(), screen)
    }
}

/// What makes a terminal show what it showed before.
const OTHER_SCREEN_ENDS: &str = "\x1b[?1049l";

pub fn top_on_a_terminal() {
    let name = Name::new("top");
    let actor = Actor::start("role_holds", &name.0);
    for key in [&b"q"[..], b"\x1b", b"\x03"] {
        let mut top = Top::start(&name, &actor, "0.05");
        top.master.write_all(key).unwrap();
        let (status, screen) = top.end();
        assert!(
            status.success() && screen.contains(OTHER_SCREEN_ENDS),
            "{key:?}: {status}"
        );
    }
    actor.end();
}

/// A signal ends it at once, with the terminal as it was before.
pub fn top_is_ended_by_signals() {
    let name = Name::new("signals");
    let actor = Actor::start("role_holds", &name.0);
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        let top = Top::start(&name, &actor, "3600");
        let pid = top.child.0.id() as libc::pid_t;
        // SAFETY: a child of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        let (status, screen) = top.end();
        assert_eq!(status.signal(), Some(signal), "{status}");
        assert!(screen.contains(OTHER_SCREEN_ENDS), "{screen}");
    }
    actor.end();
}

/// The same where nobody reads what is drawn.
pub fn top_is_ended_when_it_is_stuck() {
    let name = Name::new("stuck");
    let actor = Actor::start("role_holds", &name.0);
    let mut top = Top::start(&name, &actor, "0.01");
    // SAFETY: a terminal of ours.
    let flow = |action| assert_eq!(unsafe { libc::tcflow(top.slave.as_raw_fd(), action) }, 0);
    flow(libc::TCOOFF);
    let pid = top.child.0.id();
    let writes = format!("{} ", libc::SYS_write);
    let is_stuck = || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        call.starts_with(&writes)
    };
    let began = Instant::now();
    while !is_stuck() {
        assert!(began.elapsed() < Duration::from_secs(60), "it is not stuck");
    }
    // SAFETY: a child of ours that was not waited for.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) }, 0);
    let status = top.child.0.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
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
