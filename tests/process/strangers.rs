//! Files that a run neither removes nor opens, because they belong to others, or may.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use shmkit::inspect::Observer;
use shmkit::process::{
    Config, Entry, JournalError, Master, Resource, ResourceError, RunError, run,
};
use shmkit::{CreateError, Pool};

use super::managed::{Scratch, kill, left, made};
use super::masters::UNIT;

/// Whether a pool's name is taken.
static TAKEN: Entry<String, bool> = Entry::new("taken", |worker, name| {
    match worker.resources().manage(Resource::Pool(name.clone())) {
        Err(ResourceError::NameTaken { path }) => path.ends_with(&name),
        managed => managed.is_err(),
    }
});

pub fn a_pool_that_is_there_is_not_managed() {
    let name = format!("test-taken-{}", std::process::id());
    let path = Resource::Pool(name.clone()).path().unwrap();
    let dir = Scratch::new("taken");
    let pool = Pool::builder().create_named(&name).unwrap();
    let taken = || run(&dir.config(), &TAKEN, name.clone()).unwrap();
    assert!(taken() && path.exists());
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
    assert!(taken() && path.exists(), "also if nobody has it");
    Pool::unlink(&name).unwrap();
    assert!(!taken());
}

pub fn who_is_refused_removes_nothing() {
    let (dir, empty) = (Scratch::new("refused"), Scratch::new("empty"));
    kill(made(&dir));
    let name = format!("test-refused-{}", std::process::id());
    let config = Config::new().name(&name);
    let master = Master::new(&config).unwrap();
    for config in [dir.config(), empty.config()] {
        let refused = run(&config.name(&name), &UNIT, ());
        assert!(
            matches!(refused, Err(RunError::AlreadyRunning { .. })),
            "{refused:?}"
        );
    }
    assert!(left(&dir).iter().all(|path| path.exists()));
    assert!(!empty.journal().exists());
    master.finish().unwrap();
    run(&dir.config().name(&name), &UNIT, ()).unwrap();
    assert!(!left(&dir).iter().any(|path| path.exists()));
}

pub fn a_journal_that_others_can_write_is_refused() {
    let dir = Scratch::new("planted");
    kill(made(&dir));
    let refused = || match run(&dir.config(), &UNIT, ()) {
        Err(RunError::Journal {
            error: JournalError::NotOurs { owner, mode },
            ..
        }) => {
            assert!(left(&dir).iter().all(|path| path.exists()));
            (owner, mode)
        }
        other => panic!("{other:?}"),
    };
    let uid = rustix::process::geteuid().as_raw();
    let permit = |mode| fs::set_permissions(dir.journal(), Permissions::from_mode(mode)).unwrap();
    for mode in [0o620, 0o602] {
        permit(mode);
        assert_eq!(refused(), (uid, mode));
    }
    permit(0o644);
    // Only a superuser gives files away.
    if uid == 0 {
        chown(dir.journal(), Some(65534), None).unwrap();
        assert_eq!(refused(), (65534, 0o644));
        chown(dir.journal(), Some(0), None).unwrap();
    }
    run(&dir.config(), &UNIT, ()).unwrap();
    assert!(!left(&dir).iter().any(|path| path.exists()));
    // Nor is an empty file taken.
    fs::write(dir.journal(), "").unwrap();
    permit(0o606);
    assert!(matches!(
        run(&dir.config(), &UNIT, ()),
        Err(RunError::Journal { .. })
    ));
    assert_eq!(fs::read(dir.journal()).unwrap(), b"");
}

pub fn what_a_link_leads_to_by_now_stays() {
    let (dir, other) = (Scratch::new("led"), Scratch::new("elsewhere"));
    kill(made(&dir));
    // Announced, and not made: there was no such directory.
    let (link, theirs) = (dir.0.join("never"), other.0.join("made"));
    fs::write(&theirs, "another's").unwrap();
    symlink(&other.0, &link).unwrap();
    run(&dir.config(), &UNIT, ()).unwrap();
    assert!(theirs.exists() && dir.journal().exists());
    assert!(!left(&dir).iter().any(|path| path.exists()));
    fs::remove_file(link).unwrap();
    run(&dir.config(), &UNIT, ()).unwrap();
    assert!(theirs.exists() && !dir.journal().exists());
}

pub fn links_are_not_followed() {
    let (dir, other) = (Scratch::new("links"), Scratch::new("linked"));
    kill(made(&other));
    let pid = other.0.join("pid");
    fs::write(&pid, "12\n").unwrap();
    let refused = |link: &Path| match run(&dir.config().pid_file(dir.0.join("pid")), &UNIT, ()) {
        Err(RunError::File { path, .. }) => assert_eq!(Path::new(&path), link),
        other => panic!("{other:?}"),
    };
    for (link, to) in [
        (dir.journal(), other.journal()),
        (dir.0.join("pid"), pid.clone()),
    ] {
        symlink(to, &link).unwrap();
        refused(&link);
        fs::remove_file(&link).unwrap();
        nix::unistd::mkfifo(&link, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(&link);
        fs::remove_file(&link).unwrap();
    }
    assert_eq!(fs::read_to_string(&pid).unwrap(), "12\n");
    assert!(left(&other).iter().all(|path| path.exists()));
    run(&other.config(), &UNIT, ()).unwrap();
}

pub fn a_pool_that_is_no_runs_has_the_name() {
    let name = format!("test-data-{}", std::process::id());
    let data = format!("{name}.run");
    let pool = Pool::builder().create_named(&data).unwrap();
    pool.set_name("answer", &pool.create(42_u64).unwrap())
        .unwrap();
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
    let path = Resource::Pool(data.clone()).path().unwrap();
    let config = Config::new().name(&name);
    for is_a_pool in [true, false] {
        let refused = Master::new(&config).map(drop);
        assert!(
            matches!(refused, Err(RunError::Pool(CreateError::NameTaken { .. }))),
            "{refused:?}"
        );
        assert!(path.exists());
        if is_a_pool {
            fs::write(&path, "no pool at all").unwrap();
        }
    }
    fs::remove_file(&path).unwrap();
    // What a dead master has left goes, also if another pool has its addresses.
    let left = Pool::builder().create_named(&data).unwrap();
    let base = Observer::open(&data).unwrap().info().base;
    let control = left.create(1_u64).unwrap();
    left.set_name("shmkit run", &control).unwrap();
    drop(control);
    // SAFETY: nothing refers to it.
    unsafe { left.unmap() };
    let other = Pool::builder().base(base).create().unwrap();
    Master::new(&config).unwrap().finish().unwrap();
    // SAFETY: nothing refers to it.
    unsafe { other.unmap() };
}

/// What lies where a pool would be does not make that a run's.
pub fn a_pool_whose_addresses_are_taken_has_the_name() {
    let name = format!("test-taken-{}", std::process::id());
    let data = format!("{name}.run");
    let pool = Pool::builder().create_named(&data).unwrap();
    pool.set_name("answer", &pool.create(42_u64).unwrap())
        .unwrap();
    let base = pool.base();
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
    let other = Pool::builder().base(base).create().unwrap();
    let refused = Master::new(&Config::new().name(&name)).map(drop);
    assert!(
        matches!(refused, Err(RunError::Pool(CreateError::NameTaken { .. }))),
        "{refused:?}"
    );
    Pool::unlink(&data).unwrap();
    // SAFETY: nothing refers to it.
    unsafe { other.unmap() };
}

static IS_NO_FILE: Entry<PathBuf, bool> = Entry::new("is no file", |worker, path| {
    let managed = worker.resources().manage(Resource::File(path));
    matches!(managed, Err(ResourceError::InvalidName))
});

/// A name that can only be a directory's is not taken for that of the link that leads there.
pub fn a_directorys_name_is_no_files() {
    let dir = Scratch::new("slash");
    let link = dir.0.join("link");
    fs::create_dir(dir.0.join("directory")).unwrap();
    symlink("directory", &link).unwrap();
    for name in ["link/", "link/.", "link/..", "directory/"] {
        let is_none = run(&Config::new(), &IS_NO_FILE, dir.0.join(name)).unwrap();
        assert!(is_none && link.is_symlink(), "{name}");
    }
}

pub fn a_name_that_is_another_runs_by_now_stays() {
    let name = format!("test-again-{}", std::process::id());
    let config = Config::new().name(&name);
    let first = Master::new(&config).unwrap();
    Pool::unlink(format!("{name}.run")).unwrap();
    let second = Master::new(&config).unwrap();
    first.finish().unwrap();
    let refused = Master::new(&config).map(drop);
    assert!(
        matches!(refused, Err(RunError::AlreadyRunning { .. })),
        "{refused:?}"
    );
    second.finish().unwrap();
    Master::new(&config).unwrap().finish().unwrap();
}
