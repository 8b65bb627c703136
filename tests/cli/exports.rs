//! Where an export does not go.

use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use shmkit::inspect::Observer;
use shmkit::{Array, Pool};

use crate::common::skip::skipped;
use crate::{Name, refused, said};

/// A pool with an array.
fn pool(name: &Name) -> Pool {
    let pool = Pool::builder()
        .max_size(8 << 20)
        .create_named(&name.0)
        .unwrap();
    let array = Array::filled_in(pool, 3, 1_u8).unwrap();
    pool.set_name("array", &array).unwrap();
    pool
}

/// A file, or a link, that goes with the case.
struct Link(PathBuf);

impl Link {
    fn to(place: &str) -> Link {
        let link = std::env::temp_dir().join(crate::name("link"));
        symlink(place, &link).unwrap();
        Link(link)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// It would lose its name.
pub fn a_pool_is_not_exported_over_itself() {
    let name = Name::new("itself");
    pool(&name);
    let link = Link::to(&name.path());
    for file in [&name.path(), link.path()] {
        refused(&["export", &name.0, "array", file], 8, "the pool itself");
        assert!(Observer::open(&name.0).is_ok());
    }
}

/// What it may lead to one day is not known, and it is no file that was asked to be replaced.
pub fn a_link_that_leads_nowhere_stays() {
    let name = Name::new("nowhere");
    pool(&name);
    let target = std::env::temp_dir().join(crate::name("target"));
    let link = Link::to(target.to_str().unwrap());
    refused(
        &["export", &name.0, "array", link.path()],
        9,
        "leads nowhere",
    );
    assert!(link.0.is_symlink() && !target.exists());
}

/// Who exports over another's file does not take it away.
pub fn a_file_stays_its_owners() {
    if rustix::process::geteuid().as_raw() != 0 {
        return skipped("files of others: this user cannot give files away");
    }
    let name = Name::new("owner");
    pool(&name);
    let file = Link(std::env::temp_dir().join(crate::name("owned")));
    std::fs::write(&file.0, "old").unwrap();
    chown(&file.0, Some(65534), Some(65533)).unwrap();
    said(&["export", &name.0, "array", file.path()]);
    let now = std::fs::metadata(&file.0).unwrap();
    assert!(now.len() > 3);
    assert_eq!((now.uid(), now.gid()), (65534, 65533));
}

/// A file that a killed export of the same process id has left is passed over, and stays.
pub fn a_leftover_is_passed_over() {
    let name = Name::new("leftover");
    pool(&name);
    let directory = Link(std::env::temp_dir().join(crate::name("leftovers")));
    std::fs::create_dir(&directory.0).unwrap();
    let (old, left) = (directory.0.join("old"), directory.0.clone());
    std::fs::write(&old, "old").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
    command.args(["export", &name.0, "array"]).arg(&old);
    // SAFETY: writes a file, in the child of a process of one thread that is about to become the command.
    unsafe {
        command.pre_exec(move || {
            let name = format!(".shmkit-export-{}", std::process::id());
            std::fs::write(left.join(name), "left")
        })
    };
    let mut child = command.spawn().unwrap();
    let left = directory.0.join(format!(".shmkit-export-{}", child.id()));
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read(left).unwrap(), b"left");
    assert!(std::fs::read(old).unwrap() != b"old");
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 2);
    std::fs::remove_dir_all(&directory.0).unwrap();
}
