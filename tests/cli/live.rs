//! Reports about pools that are in use, full, stopped, or left behind.

use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;

use shmkit::sync::{Mutex, RwLock, Semaphore};
use shmkit::{Array, Buffer, HashMap, Matrix, MultiMap, Pool, Queue, SharedCell};

use crate::{Actor, Name, given, ready, refused, said, told};

fn pool(name: &str) -> Pool {
    Pool::builder()
        .max_size(16 << 20)
        .create_named(name)
        .unwrap()
}

/// A pool with something of everything.
fn furnish(pool: Pool) {
    let matrix = Matrix::from_fn_in(pool, 3, 4, |r, c| (r * 4 + c) as f64).unwrap();
    pool.set_name("matrix", &matrix).unwrap();
    let array = Array::from_fn_in(pool, 5, |i| i as u32).unwrap();
    pool.set_name("array", &array).unwrap();
    pool.set_name("number", &pool.create(AtomicU64::new(7)).unwrap())
        .unwrap();
    let map = pool
        .named_or_create("map", HashMap::<str, u64>::new)
        .unwrap();
    map.insert("one", 1).unwrap();
    let stacks = pool
        .named_or_create("stacks", MultiMap::<u64, u64>::new)
        .unwrap();
    stacks.push(&1, 1).unwrap();
    let queue = pool
        .named_or_create("queue", Queue::<u64>::unbounded)
        .unwrap();
    queue.push(1).unwrap();
    let buffer = pool.named_or_create("buffer", Buffer::new).unwrap();
    buffer.append(b"bytes").unwrap();
    let cell = pool
        .named_or_create("cell", SharedCell::<[u64; 8]>::new)
        .unwrap();
    cell.set([1; 8]).unwrap();
    cell.set([2; 8]).unwrap();
    pool.named_or_create("lock", || Mutex::new(0_u64)).unwrap();
}

pub fn role_lives() {
    let pool = pool(&given());
    furnish(pool);
    ready();
    drop(pool.named::<Mutex<u64>>("lock").unwrap());
}

/// Texts begin below one another, also those that begin with a digit.
fn columns_are_straight(live: &str) {
    let digits = crate::name("digits");
    let pools = [
        Name(format!("7-{digits}-short")),
        Name(format!("7-{digits}-longer-name")),
    ];
    for pool in &pools {
        let made = Pool::builder().max_size(4 << 20).create_named(&pool.0);
        made.unwrap();
    }
    let text = said(&["ls", "--prefix", &format!("7-{digits}")]);
    assert_eq!(
        text.lines().filter(|line| line.starts_with("7-")).count(),
        2,
        "{text}"
    );
    let text = said(&["info", live]);
    let width = "layout version".len() + 2;
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_at(width);
        assert!(name.ends_with("  ") && !value.starts_with(' '), "{text}");
    }
}

pub fn a_live_pool_is_reported() {
    let name = Name::new("live");
    let name = &*name.0;
    let actor = Actor::start("role_lives", name);

    let listed = told(&["ls", "--prefix", name]);
    assert_eq!(listed[0]["name"], name);
    assert_eq!(
        (&listed[0]["state"], &listed[0]["attached"]),
        (&"live".into(), &1.into())
    );
    let text = said(&["ls", "--prefix", name]);
    assert!(text.contains(name) && text.contains("live"), "{text}");
    columns_are_straight(name);

    let info = told(&["info", name]);
    let process = &info["pool"]["processes"][0];
    assert_eq!(process["process"], actor.pid());
    assert_eq!(process["alive"], true);
    assert!(info["memory"]["allocated"].as_u64().unwrap() > 0);
    let numbers = info["numbers"].as_array().unwrap();
    let of = |name: &str| numbers.iter().find(|n| n["name"] == name).unwrap();
    assert_eq!(of("matrix")["shape"], serde_json::json!([3, 4]));
    assert_eq!(of("matrix")["strides"], serde_json::json!([32, 8]));
    assert_eq!(
        (&of("matrix")["dtype"], &of("array")["dtype"]),
        (&"<f8".into(), &"<u4".into())
    );
    assert_eq!(of("number")["shape"], serde_json::json!([]));
    assert_eq!(numbers.len(), 3);
    assert!(said(&["info", name]).contains("3 x 4"));

    let check = told(&["check", name]);
    assert_eq!(
        (&check["ok"], &check["checked"]),
        (&true.into(), &"in use".into())
    );
    assert!(said(&["check", name]).contains("ok"));
    assert!(said(&["map", name]).contains("16 KiB each"));
    assert!(said(&["map", name, "--svg"]).starts_with("<svg"));
    assert!(!told(&["map", name])["parts"].as_array().unwrap().is_empty());
    assert!(said(&["objects", name]).contains("matrix"));
    let top = told(&["top", name]);
    assert_eq!(
        top["participants"].as_array().unwrap().last().unwrap()["process"],
        actor.pid()
    );
    assert!(said(&["top", name, "--interval", "0.01"]).contains("1 processes"));
    actor.end();
    // It has left, so that nobody has the pool.
    assert_eq!(told(&["info", name])["pool"]["state"], "stale");
}

/// Looks twice, a twentieth of a second apart, while `work` is done again and again.
fn top_while(name: &str, mut work: impl FnMut()) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
    command.args(["top", name, "--json", "--interval", "0.05"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        work();
    }
    let output = child.wait_with_output().unwrap();
    let top: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_us = |p: &&serde_json::Value| p["process"] == std::process::id();
    let participants = top["participants"].as_array().unwrap();
    participants.iter().find(of_us).unwrap().clone()
}

pub fn top_tells_what_is_allocated_and_freed() {
    let name = Name::new("rates");
    let pool = Pool::builder()
        .max_size(256 << 20)
        .create_named(&name.0)
        .unwrap();
    let layout = std::alloc::Layout::new::<[u64; 8]>();
    let mut blocks = Vec::new();
    let rates = |us: &serde_json::Value| {
        let rate = |what: &str| us[what].as_f64().unwrap();
        (rate("allocated_per_second"), rate("freed_per_second"))
    };
    let us = top_while(&name.0, || blocks.push(pool.allocate(layout).unwrap()));
    let (allocated, freed) = rates(&us);
    assert!(allocated > 0.0 && freed == 0.0, "{us}");
    // More slowly, so that there are some left at the second look.
    let mut turn = 0;
    let us = top_while(&name.0, || {
        turn += 1;
        if turn % 20 == 0 {
            let block = blocks.pop().unwrap();
            // SAFETY: allocated above, and used by nobody.
            unsafe { pool.deallocate(block.cast()) }.unwrap();
        }
    });
    let (allocated, freed) = rates(&us);
    assert!(allocated == 0.0 && freed > 0.0, "{us}");
    // Of others, nothing was asked.
    let idle = top_while(&name.0, || ());
    assert_eq!(rates(&idle), (0.0, 0.0));
}

pub fn the_types_of_containers_are_told() {
    let name = Name::new("types");
    let pool = pool(&name.0);
    furnish(pool);
    let objects = told(&["objects", &name.0]);
    let objects = objects.as_array().unwrap();
    let type_of = |name: &str| {
        let named = |o: &&serde_json::Value| o["names"].as_array().unwrap().contains(&name.into());
        objects.iter().find(named).unwrap()["type_name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for (name, ty) in [
        ("matrix", "Matrix"),
        ("array", "Array"),
        ("number", "AtomicU64"),
        ("map", "HashMap"),
        ("stacks", "MultiMap"),
        ("queue", "Queue"),
        ("buffer", "Buffer"),
        ("cell", "SharedCell"),
        ("lock", "Mutex"),
    ] {
        assert_eq!(type_of(name), ty);
    }
    assert!(objects.iter().all(|o| o["damaged"] == false));
}

pub fn role_full() {
    let pool = Pool::builder()
        .max_size(4 << 20)
        .max_participants(1)
        .create_named(&given())
        .unwrap();
    pool.set_name("array", &Array::filled_in(pool, 3, 1_u8).unwrap())
        .unwrap();
    ready();
}

/// Reports need no place in the pool; importing does, and says that there is none.
pub fn a_full_pool_is_reported() {
    let name = Name::new("full");
    let name = &*name.0;
    let _actor = Actor::start("role_full", name);
    assert_eq!(told(&["info", name])["numbers"][0]["shape"][0], 3);
    for command in ["check", "objects", "locks", "map", "top"] {
        said(&[command, name]);
    }
    let file = std::env::temp_dir().join(crate::name("full.npy"));
    let path = file.to_str().unwrap();
    said(&["export", name, "array", path]);
    refused(&["import", name, "array", path], 9, "slot");
    std::fs::remove_file(file).unwrap();
}

pub fn role_holds() {
    let pool = pool(&given());
    let lock = pool.named_or_create("lock", || Mutex::new(0_u64)).unwrap();
    let _guard = lock.lock().unwrap();
    ready();
}

/// A holder that is stopped answers nobody; nor has it to.
pub fn a_stopped_holder_is_in_nobodys_way() {
    let name = Name::new("stopped");
    let name = &*name.0;
    let actor = Actor::start("role_holds", name);
    actor.signal(libc::SIGSTOP);
    let locks = told(&["locks", name]);
    let held = locks
        .as_array()
        .unwrap()
        .iter()
        .find(|lock| lock["within"] == "lock");
    let holder = &held.unwrap()["threads"][0];
    assert_eq!(
        (&holder["process"], &holder["why"]),
        (&actor.pid().into(), &"Holds".into())
    );
    for command in ["info", "check", "objects", "map", "top"] {
        said(&[command, name]);
    }
    actor.signal(libc::SIGCONT);
    actor.end();
}

pub fn locks_are_told() {
    let name = Name::new("locks");
    let pool = pool(&name.0);
    let lock = pool.named_or_create("lock", || Mutex::new(0_u64)).unwrap();
    let shared = pool
        .named_or_create("shared", || RwLock::new(0_u64))
        .unwrap();
    let permits = pool
        .named_or_create("permits", || Semaphore::new(2))
        .unwrap();
    assert_eq!(told(&["locks", &name.0]), serde_json::json!([]));
    let _permit = permits.acquire().unwrap();
    let _reader = shared.read().unwrap();
    let guard = lock.lock().unwrap();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| *lock.lock().unwrap() += 1);
        let of = |within: &str, why: &str| {
            let locks = told(&["locks", &name.0]);
            let locks = locks.as_array().unwrap().clone();
            let of_it = locks.into_iter().filter(|lock| lock["within"] == within);
            of_it
                .flat_map(|lock| lock["threads"].as_array().unwrap().clone())
                .filter(|thread| thread["why"] == why)
                .count()
        };
        // Until it sleeps.
        while of("lock", "Waits") == 0 {
            std::thread::yield_now();
        }
        assert_eq!(of("lock", "Holds"), 1);
        assert_eq!(of("shared", "Reads"), 1);
        assert_eq!(of("permits", "Permit"), 1);
        assert!(said(&["top", &name.0, "--once"]).contains("1 waiting"));
        drop(guard);
        waiter.join().unwrap();
    });
}

/// Nothing of the pool's file is another after any report.
pub fn looking_changes_nothing() {
    let name = Name::new("unchanged");
    let actor = Actor::start("role_lives", &name.0);
    actor.kill();
    // Tables and data; the rest are holes.
    let bytes = || {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(name.path()).unwrap();
        let mut bytes = vec![0; 32 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let mut data = vec![0; 1 << 20];
        file.read_exact_at(&mut data, 40 << 30).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        (bytes, data, blocks)
    };
    let before = bytes();
    for command in ["info", "check", "objects", "locks", "map", "top"] {
        said(&[command, &name.0]);
    }
    said(&["ls", "--prefix", &name.0]);
    assert!(bytes() == before);
}

/// Dies with a lock, with handles, and a thread in the middle of nothing.
pub fn role_crashes() {
    let pool = pool(&given());
    furnish(pool);
    let lock = pool.named::<Mutex<u64>>("lock").unwrap();
    let _guard = lock.lock().unwrap();
    let _unnamed = pool.create([0_u64; 1000]).unwrap();
    ready();
}

pub fn a_crashed_pool_is_checked() {
    let name = Name::new("crashed");
    let actor = Actor::start("role_crashes", &name.0);
    actor.kill();
    let name = &*name.0;
    let listed = told(&["ls", "--prefix", name]);
    assert_eq!(
        (&listed[0]["state"], &listed[0]["ended"]),
        (&"stale".into(), &1.into())
    );
    let check = told(&["check", name]);
    assert_eq!(
        (&check["ok"], &check["checked"]),
        (&true.into(), &"a copy, recovered".into())
    );
    assert!(check["objects"].as_u64().unwrap() >= 9);
    // The copy was recovered, and not the pool.
    assert_eq!(
        told(&["info", name])["pool"]["processes"][0]["alive"],
        false
    );
    for command in ["info", "objects", "locks", "map", "top"] {
        said(&[command, name]);
    }
}
