//! What is removed, and what is not.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::{Command, Stdio};

use shmkit::Pool;
use shmkit::inspect::{self, Removable, RemoveError};

use crate::common::skip::skipped;
use crate::{Actor, Name, common, refused, said, told};

pub fn only_what_nobody_has_goes() {
    let name = Name::new("removed");
    let actor = Actor::start("role_lives", &name.0);
    for arguments in [&["rm", &name.0][..], &["rm", &name.0, "--yes"]] {
        refused(arguments, 7, "in use");
    }
    // A path is as good as a name.
    refused(&["rm", &name.path(), "--yes"], 7, "in use");
    // From any directory.
    for (path, command, code) in [
        (format!("./shmkit.{}", name.0), "info", 0),
        (format!("../shm/shmkit.{}", name.0), "check", 0),
        (format!("./shmkit.{}", name.0), "rm", 7),
        (format!("./{}", name.0), "info", 3),
    ] {
        let status = Command::new(env!("CARGO_BIN_EXE_shmkit"))
            .args([command, &path])
            .current_dir("/dev/shm")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{command} {path}");
    }
    actor.signal(libc::SIGSTOP);
    refused(&["rm", &name.0, "--yes"], 7, "in use");
    actor.kill();
    let told_dry = told(&["rm", &name.0]);
    assert_eq!(told_dry["dry_run"], true);
    assert!(said(&["rm", &name.0]).contains("--yes"));
    assert!(Path::new(&name.path()).exists());
    assert_eq!(
        told(&["rm", &name.0, "--yes"])["removed"][0],
        name.0.as_str()
    );
    assert!(!Path::new(&name.path()).exists());
    refused(&["rm", &name.0, "--yes"], 3, "no pool");
}

pub fn gc_takes_the_stale_alone() {
    let prefix = crate::name("gc");
    let name = |what: &str| Name(format!("{prefix}-{what}"));
    let (live, stale, other, text) = (name("live"), name("stale"), name("other"), name("text"));
    let _actor = Actor::start("role_lives", &live.0);
    Actor::start("role_crashes", &stale.0).kill();
    Actor::start("role_lives", &other.0).end();
    fs::write(text.path(), "no pool at all").unwrap();
    let names = |found: &serde_json::Value| {
        let names = found["removed"].as_array().unwrap().iter();
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let both = [other.0.clone(), stale.0.clone()];
    let dry = told(&["gc", "--prefix", &prefix]);
    assert_eq!(names(&dry), both);
    assert_eq!(dry["kept"].as_array().unwrap().len(), 2);
    for name in [&live, &stale, &other, &text] {
        assert!(Path::new(&name.path()).exists());
    }
    let text_of = said(&["gc", "--prefix", &prefix]);
    assert!(
        text_of.contains("would remove") && text_of.contains("in use"),
        "{text_of}"
    );
    assert_eq!(names(&told(&["gc", "--prefix", &prefix, "--yes"])), both);
    let left = [&live, &stale, &other, &text].map(|name| Path::new(&name.path()).exists());
    assert_eq!(left, [true, false, false, true]);
    assert!(names(&told(&["gc", "--prefix", &prefix, "--yes"])).is_empty());
}

pub fn damaged_files_go_if_asked_to() {
    let text = Name::new("damaged");
    fs::write(text.path(), "no pool at all").unwrap();
    refused(&["rm", &text.0, "--yes"], 4, "no pool");
    said(&["rm", &text.0, "--damaged"]);
    assert!(Path::new(&text.path()).exists());
    said(&["rm", &text.0, "--damaged", "--yes"]);
    assert!(!Path::new(&text.path()).exists());
    // Not everything that has a name is a file.
    refused(&["rm", "/dev/null", "--damaged", "--yes"], 4, "no pool");
    refused(&["rm", "/dev/shm", "--damaged", "--yes"], 4, "no pool");
    // One of several.
    let (good, bad) = (Name::new("good"), Name::new("bad"));
    Actor::start("role_lives", &good.0).end();
    let output = crate::shmkit(["rm", &bad.0, &good.0, "--yes"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(!Path::new(&good.path()).exists());
}

/// Who may not remove a pool is told so before, in the same words.
pub fn others_pools_stay() {
    const OTHER: u32 = 65_534;
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return skipped("the removal of others' pools: this takes two users");
    }
    let directory = std::env::temp_dir().join(crate::name("closed"));
    fs::create_dir(&directory).unwrap();
    let closed = directory.join("file");
    let [sticky, private, own] = ["sticky", "private", "own"].map(Name::new);
    for (name, mode) in [(&sticky, 0o666), (&private, 0o600), (&own, 0o600)] {
        let pool = Pool::builder().create_named(&name.0).unwrap();
        // SAFETY: nothing refers to it.
        unsafe { pool.unmap() };
        fs::set_permissions(name.path(), Permissions::from_mode(mode)).unwrap();
    }
    fs::write(&closed, "no pool").unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o666)).unwrap();
    std::os::unix::fs::chown(own.path(), Some(OTHER), None).unwrap();
    let closed = closed.to_str().unwrap();
    let Some(child) = common::fork() else {
        // SAFETY: changes this process's user.
        assert_eq!(unsafe { libc::setresuid(OTHER, OTHER, OTHER) }, 0);
        let well = catch_unwind(|| {
            for name in [&*sticky.0, &private.0, closed] {
                for found in [
                    inspect::would_remove(name, Removable::AnyFile),
                    inspect::remove(name, Removable::AnyFile),
                ] {
                    let Err(RemoveError::System(error)) = &found else {
                        panic!("{name}: {found:?}");
                    };
                    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
                }
            }
            inspect::would_remove(&own.0, Removable::Pool).unwrap();
            inspect::remove(&own.0, Removable::Pool).unwrap();
        });
        common::leave(well.is_ok());
    };
    assert_eq!(common::reap(child), 0);
    assert!(Path::new(&sticky.path()).exists() && Path::new(closed).exists());
    assert!(!Path::new(&own.path()).exists());
    fs::remove_dir_all(&directory).unwrap();
}
