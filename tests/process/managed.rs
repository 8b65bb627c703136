//! Managed resources and the crash journal.

use std::ffi::{CString, OsStr};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use shmkit::process::{
    Backoff, Config, Entry, Inherit, JournalError, Master, Resource, ResourceError, ResourceId,
    Restart, RunError, StartOptions, run,
};
use shmkit::{Pool, PoolBuilder};

use super::masters::FOR_EVER;
use super::{loop_for_ever, program};
use crate::common::{fork, leave, reap};

/// A directory that goes with the case.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(case: &str) -> Scratch {
        let name = format!("shmkit-{case}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn config(&self) -> Config {
        Config::new().run_directory(&self.0)
    }

    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());
/// Uses a resource, and says so in a file of its own.
static USES: Entry<(ResourceId, PathBuf), ()> = Entry::new("uses", |worker, (id, note)| {
    let _managed = worker.resources().get(id).unwrap();
    fs::write(note, "").unwrap();
    loop_for_ever();
});
static INHERITS: Entry<(ResourceId, PathBuf, bool), bool> =
    Entry::new("inherits", |worker, (id, go, expected)| {
        while !go.exists() {
            std::thread::yield_now();
        }
        // Twice: a use that ends is not the one that was inherited.
        let got = (0..2).all(|_| worker.resources().get(id).is_ok());
        assert_eq!(got, expected);
        got
    });

fn wait_until_gone(path: &Path) {
    while path.exists() {
        std::thread::yield_now();
    }
}

static COUNTED: Entry<PathBuf, ()> = Entry::new("counted", |worker, dir| {
    let resources = worker.resources();
    let path = dir.join("file");
    let make = || {
        let managed = resources.manage(Resource::File(path.clone())).unwrap();
        fs::write(&path, "content").unwrap();
        managed
    };
    // The last use ends it.
    let file = make();
    let id = file.id();
    let again = resources.get(id).unwrap();
    let same = resources.manage(Resource::File(path.clone())).unwrap();
    assert_eq!(same.id(), id);
    drop((file, same));
    assert!(path.exists());
    drop(again);
    wait_until_gone(&path);
    assert!(matches!(resources.get(id), Err(ResourceError::Gone)));

    // A user that is killed uses it no more.
    let file = make();
    assert_ne!(file.id(), id);
    let note = dir.join("note");
    let user = worker.start(&USES, &(file.id(), note.clone())).unwrap();
    while !note.exists() {
        std::thread::yield_now();
    }
    drop(file);
    worker.start(&UNIT, &()).unwrap().join().unwrap();
    assert!(path.exists(), "the other one uses it");
    user.kill().unwrap();
    user.join().unwrap_err();
    wait_until_gone(&path);

    // What is inherited is there until the worker ends.
    for which in [true, false] {
        let file = make();
        let go = dir.join(format!("go {which}"));
        let ids = [file.id()];
        let inherit = if which {
            Inherit::These(&ids)
        } else {
            Inherit::All
        };
        let start = |options: StartOptions<'_>, expected| {
            let argument = (ids[0], go.clone(), expected);
            worker.start_with(options, &INHERITS, &argument).unwrap()
        };
        let heir = start(StartOptions::new().inherit(inherit), true);
        drop(file);
        worker.start(&UNIT, &()).unwrap().join().unwrap();
        assert!(path.exists(), "the heir has it");
        fs::write(&go, "").unwrap();
        assert!(heir.join().unwrap());
        wait_until_gone(&path);
        assert!(
            !start(StartOptions::new(), false).join().unwrap(),
            "it is gone"
        );
    }
    // What is not inherited is not used.
    let file = make();
    let hangs = worker.start(&FOR_EVER, &()).unwrap();
    drop(file);
    wait_until_gone(&path);
    hangs.kill().unwrap();
    for no_name in [
        Resource::Pool("a/b".into()),
        Resource::Semaphore("/".into()),
        Resource::File("".into()),
        Resource::File("a\0b".into()),
        Resource::File("x/".repeat(2500).into()),
    ] {
        let refused = resources.manage(no_name);
        assert!(
            matches!(refused, Err(ResourceError::InvalidName)),
            "{refused:?}"
        );
    }
    // Left to the end of the run.
    std::mem::forget(make());
});

/// What each process of a restarted worker has managed goes with it; what it has inherited stays to its end.
static RESTARTED: Entry<(ResourceId, PathBuf), ()> =
    Entry::new("restarted", |worker, (inherited, dir)| {
        let path = |restarts| dir.join(format!("of {restarts}"));
        let resources = worker.resources();
        let kept = resources.get(inherited).unwrap();
        let own = resources.manage(Resource::File(path(worker.restarts())));
        let own = own.unwrap();
        fs::write(own.path(), "").unwrap();
        if worker.restarts() < 3 {
            std::process::abort();
        }
        (0..3).for_each(|restarts| wait_until_gone(&path(restarts)));
        assert!(kept.path().exists());
    });

static RESTARTS: Entry<PathBuf, ()> = Entry::new("restarts", |worker, dir| {
    let inherited = Resource::File(dir.join("inherited"));
    let inherited = worker.resources().manage(inherited).unwrap();
    fs::write(inherited.path(), "").unwrap();
    let ids = [inherited.id()];
    let options = StartOptions::new()
        .restart(Restart::OnCrash(Backoff::new(Duration::from_millis(1))))
        .inherit(Inherit::These(&ids));
    let restarted = worker.start_with(options, &RESTARTED, &(ids[0], dir));
    drop(inherited);
    restarted.unwrap().join().unwrap();
});

static FORKS: Entry<PathBuf, ()> = Entry::new("forks", |worker, path| {
    let resources = worker.resources();
    let file = resources.manage(Resource::File(path.clone())).unwrap();
    fs::write(&path, "").unwrap();
    let id = file.id();
    let Some(child) = fork() else {
        drop(file);
        leave(true);
    };
    assert_eq!(reap(child), 0);
    // The master has looked at what is used by then.
    drop(resources.manage(Resource::File(path.with_extension("other"))));
    assert!(path.exists() && resources.get(id).is_ok());
    drop(file);
});

pub fn a_copy_of_a_use_ends_nothing() {
    let dir = Scratch::new("copied");
    run(&Config::new(), &FORKS, dir.0.join("file")).unwrap();
}

pub fn a_restarted_worker_keeps_what_it_inherited() {
    let dir = Scratch::new("restarted");
    run(&Config::new(), &RESTARTS, dir.0.clone()).unwrap();
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
}

pub fn the_last_user_of_a_resource_ends_it() {
    let dir = Scratch::new("counted");
    run(&Config::new(), &COUNTED, dir.0.clone()).unwrap();
    assert!(!dir.0.join("file").exists());
    drop(dir);
    let dir = Scratch::new("journalled");
    run(&dir.config(), &COUNTED, dir.0.clone()).unwrap();
    assert!(!dir.0.join("file").exists());
    assert!(!dir.journal().exists(), "an orderly end leaves no journal");
}

static STAYS: Entry<PathBuf, ()> = Entry::new("stays", |worker, dir| {
    let name = CString::new(dir.join("device").into_os_string().into_vec()).unwrap();
    // SAFETY: a call of the kernel. Everybody may make a device of the number 0.
    let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o600, 0) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    fs::create_dir(dir.join("directory")).unwrap();
    fs::write(dir.join("file"), "").unwrap();
    for name in ["device", "directory", "file"] {
        let managed = worker.resources().manage(Resource::File(dir.join(name)));
        drop(managed.unwrap());
    }
    wait_until_gone(&dir.join("file"));
});

pub fn devices_and_directories_stay() {
    let dir = Scratch::new("stays");
    run(&Config::new(), &STAYS, dir.0.clone()).unwrap();
    assert!(fs::symlink_metadata(dir.0.join("device")).is_ok());
    assert!(dir.0.join("directory").is_dir());
}

static PLACES: Entry<PathBuf, ()> = Entry::new("places", |worker, dir| {
    let file = |n: usize| Resource::File(dir.join(n.to_string()));
    let mut all: Vec<_> = (0..256)
        .map(|n| worker.resources().manage(file(n)).unwrap())
        .collect();
    let refused = worker.resources().manage(file(256));
    assert!(
        matches!(refused, Err(ResourceError::TooMany)),
        "{refused:?}"
    );
    // For one that goes, another can come.
    let mut last = all.pop();
    for n in 256..500 {
        drop(last.take());
        last = Some(worker.resources().manage(file(n)).unwrap());
    }
    drop((all, last));
    // Longer than a record has room for, and a path all the same.
    let mut long = dir.into_os_string();
    long.push("/x".repeat((4095 - long.len()) / 2));
    let long = Resource::File(long.into());
    // The master is still removing the others. Who is refused has no place.
    for _ in 0..300 {
        let refused = worker.resources().manage(long.clone());
        assert!(
            matches!(refused, Err(ResourceError::Journal(_))),
            "{refused:?}"
        );
    }
});

pub fn resources_are_limited() {
    let dir = Scratch::new("places");
    run(&dir.config(), &PLACES, dir.0.clone()).unwrap();
}

fn named(what: &str) -> String {
    format!("test-{what}-{}", std::env::var("SHMKIT_TEST_NAME").unwrap())
}

/// A name that is no text.
fn odd() -> &'static OsStr {
    OsStr::from_bytes(b"odd\xff")
}

static MAKES: Entry<PathBuf, ()> = Entry::new("makes", |worker, dir| {
    let resources = worker.resources();
    let file = resources.manage(Resource::File(dir.join("file"))).unwrap();
    let pool = resources.manage(Resource::Pool(named("pool"))).unwrap();
    let semaphore = resources
        .manage(Resource::Semaphore(named("semaphore")))
        .unwrap();
    let never = resources
        .manage(Resource::File(dir.join("never/made")))
        .unwrap();
    let odd = resources.manage(Resource::File(dir.join(odd()))).unwrap();
    fs::write(file.path(), "left").unwrap();
    fs::write(odd.path(), "left").unwrap();
    fs::write(semaphore.path(), "left").unwrap();
    PoolBuilder::default().create_named(&named("pool")).unwrap();
    assert!(pool.path().exists() && !never.path().exists());
    println!("made");
    std::io::stdout().flush().unwrap();
    loop_for_ever();
});

/// A run that has made things, to be killed.
pub fn role_makes() {
    let dir = PathBuf::from(std::env::var_os("SHMKIT_TEST_DIRECTORY").unwrap());
    let config = Config::new().run_directory(&dir);
    run(&config, &MAKES, dir).unwrap();
}

pub fn made(dir: &Scratch) -> (Child, BufReader<ChildStdout>) {
    let mut master = program("role_makes")
        .env("SHMKIT_TEST_DIRECTORY", &dir.0)
        .env("SHMKIT_TEST_NAME", std::process::id().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(master.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "made\n");
    (master, output)
}

pub fn kill((mut master, mut output): (Child, BufReader<ChildStdout>)) {
    master.kill().unwrap();
    master.wait().unwrap();
    // The stream ends when the last worker has closed it, by dying.
    assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
}

pub fn left(dir: &Scratch) -> [PathBuf; 4] {
    let shm = |what| PathBuf::from(format!("/dev/shm/{what}-{}", std::process::id()));
    [
        dir.0.join("file"),
        shm("shmkit.test-pool"),
        shm("sem.test-semaphore"),
        dir.0.join(odd()),
    ]
}

pub fn the_next_run_removes_what_a_killed_one_left() {
    let dir = Scratch::new("left");
    let live = made(&dir);
    // A live run is left alone.
    match run(&dir.config(), &UNIT, ()) {
        Err(RunError::AlreadyRunning { path }) => assert!(path.ends_with("journal")),
        other => panic!("{other:?}"),
    }
    assert!(left(&dir).iter().all(|path| path.exists()));
    kill(live);
    assert!(
        left(&dir).iter().all(|path| path.exists()),
        "nobody was there to remove it"
    );
    run(&dir.config(), &UNIT, ()).unwrap();
    assert!(!left(&dir).iter().any(|path| path.exists()));
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0, "nor the journal");
}

pub fn a_pool_that_somebody_uses_is_left() {
    let dir = Scratch::new("used");
    for at_its_end in [false, true] {
        kill(made(&dir));
        let name = format!("test-pool-{}", std::process::id());
        // SAFETY: made by this program.
        let pool = unsafe { Pool::open(&name) }.unwrap();
        run(&dir.config(), &UNIT, ()).unwrap();
        let there = left(&dir).map(|path| path.exists());
        assert_eq!(there, [false, true, false, false]);
        // Its record is still there, for a run that begins, or ends, when nobody has it.
        let master = at_its_end.then(|| Master::new(&dir.config()).unwrap());
        // SAFETY: nothing refers to it.
        unsafe { pool.unmap() };
        match master {
            Some(master) => master.finish().unwrap(),
            None => run(&dir.config(), &UNIT, ()).unwrap(),
        }
        assert!(!left(&dir).iter().any(|path| path.exists()));
        assert!(!dir.journal().exists());
    }
}

pub fn damaged_journals_are_errors() {
    let dir = Scratch::new("damaged");
    kill(made(&dir));
    let whole = fs::read(dir.journal()).unwrap();
    let refused = |bytes: &[u8]| -> JournalError {
        fs::write(dir.journal(), bytes).unwrap();
        let error = match run(&dir.config(), &UNIT, ()) {
            Err(RunError::Journal { error, .. }) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(fs::read(dir.journal()).unwrap(), bytes, "it is as it was");
        assert!(
            left(&dir).iter().all(|path| path.exists()),
            "nothing was removed"
        );
        error
    };
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    for at in [0, 7, 8, 12, 15] {
        assert_eq!(refused(&changed(at)), JournalError::Foreign, "byte {at}");
    }
    assert_eq!(refused(b"another file"), JournalError::Foreign);
    for cut in [4097, 8192, whole.len() - 1] {
        let length = cut as u64;
        assert_eq!(refused(&whole[..cut]), JournalError::Truncated { length });
    }
    for (at, record) in [
        (4096, 0),
        (4100, 0),
        (4104, 0),
        (8200, 1),
        (9000, 1),
        (90_000, 20),
    ] {
        let damaged = refused(&changed(at));
        assert_eq!(damaged, JournalError::Corrupt { record }, "byte {at}");
    }
    fs::write(dir.journal(), &whole).unwrap();
    run(&dir.config(), &UNIT, ()).unwrap();
    assert!(!left(&dir).iter().any(|path| path.exists()));

    // What a master leaves that is killed while it makes the journal.
    for begun in [&[], &whole[..4096]] {
        fs::write(dir.journal(), begun).unwrap();
        fs::set_permissions(dir.journal(), Permissions::from_mode(0o600)).unwrap();
        run(&dir.config(), &UNIT, ()).unwrap();
        assert!(!dir.journal().exists());
    }
}

static MANAGES: Entry<PathBuf, ()> = Entry::new("manages", |worker, path| {
    worker.resources().manage(Resource::File(path)).unwrap();
});

pub fn what_cannot_be_removed_stays_in_the_journal() {
    let dir = Scratch::new("in the way");
    kill(made(&dir));
    let [file, pool, ..] = left(&dir);
    // Not a file any more: nothing that the run has made, and nothing that a run removes.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    // The rest is removed; its record stays while it does, also in a run that manages something.
    for _ in 0..2 {
        run(&dir.config(), &MANAGES, dir.0.join("another")).unwrap();
        let there = left(&dir).map(|path| path.exists());
        assert_eq!(there, [true, false, false, false]);
        let journal = fs::read(dir.journal()).unwrap();
        let named = file.as_os_str().as_encoded_bytes();
        assert!(journal.windows(named.len()).any(|bytes| bytes == named));
    }
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "").unwrap();
    run(&dir.config(), &UNIT, ()).unwrap();
    assert!(!file.exists() && !dir.journal().exists());
    kill(made(&dir));
    // A pipe is opened by nobody, and is no pool; and where there is no directory, there is no file.
    fs::remove_file(&pool).unwrap();
    nix::unistd::mkfifo(&pool, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(dir.0.join("never"), "").unwrap();
    run(&dir.config(), &UNIT, ()).unwrap();
    let there = left(&dir).map(|path| path.exists());
    assert_eq!(there, [false, true, false, false]);
    fs::remove_file(&pool).unwrap();
}

static SPELLS: Entry<PathBuf, ()> = Entry::new("spells", |worker, dir| {
    let manage = |resource| worker.resources().manage(resource).unwrap();
    let name = format!("test-spelt-{}", std::process::id());
    let one = manage(Resource::Semaphore(name.clone()));
    let same = manage(Resource::Semaphore(format!("/{name}")));
    assert_eq!(one.id(), same.id());
    std::env::set_current_dir(&dir).unwrap();
    let relative = manage(Resource::File("file".into()));
    std::env::set_current_dir("/").unwrap();
    assert_eq!(relative.path(), dir.join("file"));
    assert_eq!(manage(Resource::File(dir.join("file"))).id(), relative.id());
    // Another way there; a last link, on the other hand, is itself what is managed.
    fs::create_dir(dir.join("down")).unwrap();
    std::os::unix::fs::symlink(&dir, dir.join("link")).unwrap();
    for way in ["down/../file", "link/file", "./link/down/../file"] {
        let other = manage(Resource::File(dir.join(way)));
        assert_eq!(other.id(), relative.id(), "{way}");
    }
    let link = manage(Resource::File(dir.join("down/../link")));
    assert_eq!(link.path(), dir.join("link"));
    let unmade = manage(Resource::File(dir.join("link/unmade/file")));
    assert_eq!(unmade.path(), dir.join("unmade/file"));
    let pool = |way: &str| Resource::Pool(dir.join(way).to_str().unwrap().into());
    assert_eq!(manage(pool("pool")).id(), manage(pool("link/pool")).id());
});

pub fn names_of_one_file_are_one_resource() {
    let dir = Scratch::new("spelt");
    run(&Config::new(), &SPELLS, dir.0.clone()).unwrap();
}

/// Manages a file that others manage at the same time: it is there while somebody uses it.
static SHARES: Entry<PathBuf, ()> = Entry::new("shares", |worker, path| {
    for _ in 0..100 {
        let file = worker
            .resources()
            .manage(Resource::File(path.clone()))
            .unwrap();
        fs::write(&path, "").unwrap();
        for _ in 0..20 {
            std::thread::yield_now();
            assert!(path.exists(), "removed while it is used");
        }
        drop(file);
    }
});
static SHARE: Entry<PathBuf, ()> = Entry::new("share", |worker, path| {
    let sharers = [(); 4].map(|()| worker.start(&SHARES, &path).unwrap());
    for sharer in sharers {
        sharer.join().unwrap();
    }
    wait_until_gone(&path);
});

pub fn a_resource_announced_twice_is_one() {
    let dir = Scratch::new("shared");
    run(&Config::new(), &SHARE, dir.0.join("file")).unwrap();
}

static LEAVES_AN_HEIR: Entry<PathBuf, ()> = Entry::new("leaves an heir", |worker, path| {
    let managed = worker.resources().manage(Resource::File(path.clone()));
    fs::write(path, "x").unwrap();
    let again = Restart::Always(Backoff::new(Duration::from_secs(1000)));
    let options = StartOptions::new().restart(again).inherit(Inherit::All);
    worker.start_with(options, &UNIT, &()).unwrap().detach();
    drop(managed.unwrap());
});

/// Its user waits to be started again when the master goes.
pub fn what_nobody_is_started_for_is_removed() {
    let scratch = Scratch::new("nobody");
    let path = scratch.0.join("file");
    let mut master = Master::new(&Config::new()).unwrap();
    let _handle = master.start(&LEAVES_AN_HEIR, &path).unwrap();
    let mut ended = 0;
    while ended != 2 {
        ended += master.dispatch().unwrap().ended;
    }
    assert!(path.exists());
    drop(master);
    assert!(!path.exists());
}
