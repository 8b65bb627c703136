//! Files that a run is told to use and that belong to another user or program, or come to
//! do so meanwhile.

use std::env::{current_dir, set_current_dir};
use std::fs;
use std::path::Path;

use shmkit::process::{Config, Entry, Master, RunError, run};

use super::managed::Scratch;

static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());

fn config(pid_file: impl AsRef<Path>, run_directory: impl AsRef<Path>) -> Config {
    Config::new()
        .pid_file(pid_file)
        .run_directory(run_directory)
}

pub fn what_is_no_pid_file_stays() {
    let dir = Scratch::new("no pid");
    let path = dir.0.join("file");
    let config = config(&path, dir.0.join("run"));
    for text in ["a letter", "12 34", "12,\n", &"1".repeat(1000)] {
        fs::write(&path, text).unwrap();
        let refused = run(&config, &UNIT, ());
        assert!(matches!(refused, Err(RunError::File { .. })), "{refused:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is as it was");
    }
    // What killed masters leave, this one's and others.
    for text in ["", "12345\n", " 7 ", "1234567890123\n"] {
        fs::write(&path, text).unwrap();
        let master = Master::new(&config).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        assert_eq!(written, format!("{}\n", std::process::id()));
        master.finish().unwrap();
        assert!(!path.exists());
    }
}

pub fn paths_that_lead_nowhere_are_errors() {
    let dir = Scratch::new("nowhere");
    let (pid, run_directory) = (dir.0.join("pid"), dir.0.join("run"));
    let text = dir.0.join("text");
    fs::write(&text, "").unwrap();
    let missing = dir.0.join("missing/pid");
    for (pid, run_directory) in [
        (Path::new(""), &*run_directory),
        (&dir.0, &run_directory),
        (&missing, &run_directory),
        (&pid, Path::new("")),
        (&pid, &text),
        (&pid, Path::new("/proc/self/run")),
    ] {
        match run(&config(pid, run_directory), &UNIT, ()) {
            Err(RunError::File { .. }) => {}
            other => panic!("{pid:?}, {run_directory:?}: {other:?}"),
        }
        assert!(!dir.0.join("pid").exists());
    }
}

pub fn a_program_may_go_to_another_directory() {
    let (begun, elsewhere) = (Scratch::new("begun"), Scratch::new("elsewhere"));
    let theirs = ["pid", "run/journal"].map(|file| elsewhere.0.join(file));
    fs::create_dir(elsewhere.0.join("run")).unwrap();
    for path in &theirs {
        fs::write(path, "another's").unwrap();
    }
    let before = current_dir().unwrap();
    set_current_dir(&begun.0).unwrap();
    let master = Master::new(&config("pid", "run")).unwrap();
    set_current_dir(&elsewhere.0).unwrap();
    master.finish().unwrap();
    set_current_dir(before).unwrap();
    for path in &theirs {
        assert_eq!(fs::read_to_string(path).unwrap(), "another's");
    }
    assert!(!begun.0.join("pid").exists() && !begun.0.join("run/journal").exists());
}

pub fn who_has_the_name_by_now_keeps_it() {
    let dir = Scratch::new("replaced");
    let ours = [dir.0.join("pid"), dir.0.join("journal")];
    let master = Master::new(&config(&ours[0], &dir.0)).unwrap();
    for path in &ours {
        fs::remove_file(path).unwrap();
        fs::write(path, "another's").unwrap();
    }
    master.finish().unwrap();
    for path in &ours {
        assert_eq!(fs::read_to_string(path).unwrap(), "another's");
    }
}
