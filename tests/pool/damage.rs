//! Pools whose words were changed at random: an error, or a pool that can be asked everything
//! without a crash and without an end.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::scope;
use shmkit::{Array, Handle, Link, Pool, ShmSafe};

use super::attach::copy;
use super::common::{Random, TestPool, allocate, layout, try_free};

#[derive(ShmSafe)]
struct Node {
    value: u64,
    next: Link<Node>,
}

/// Where an array's two words and its block are, in the file.
type ArrayPlaces = [u64; 3];

/// The file of a small pool with something of everything in it; handles of its objects, and where
/// its array is.
fn original() -> (File, Handle<u64>, Handle<Node>, ArrayPlaces) {
    let pool = TestPool::with(|b| b.initial_size(256 << 10).max_size(4 << 20));
    let number = pool.named_or_create("number", || 7_u64).unwrap();
    let first = pool.named_or_create("first", || Node::of(1)).unwrap();
    let second = pool.create(Node::of(2)).unwrap();
    first.next.set(Some(&second)).unwrap();
    second.next.set(Some(&first)).unwrap();
    for size in [16, 100, 3000, 100_000] {
        let blocks = [allocate(*pool, size), allocate(*pool, size)];
        try_free(*pool, blocks[1]).unwrap();
    }
    let array = Array::filled_in(*pool, 1000, 1_u64).unwrap();
    pool.set_name("array", &array).unwrap();
    let block = array.claim(..).unwrap().as_ptr().addr() - 8;
    let word = std::ptr::from_ref(&*array).addr();
    let places = [word, word + 8, block].map(|address| (address - pool.base()) as u64);
    let fd = pool.fd().try_clone_to_owned().unwrap();
    (File::from(fd), number.handle(), first.handle(), places)
}

impl Node {
    fn of(value: u64) -> Self {
        Node {
            value,
            next: Link::null(),
        }
    }
}

/// Asks a pool everything. What it says does not matter.
fn probe(pool: Pool, number: Handle<u64>, node: Handle<Node>) {
    let _ = (pool.names(), pool.stats(), pool.check().to_string());
    let _ = pool.check_quiescent().to_string();
    pool.recover();
    for size in [1, 100, 3000, 60_000] {
        if let Ok(block) = pool.allocate(layout(size, 8)) {
            let block = block.cast::<u8>();
            // SAFETY: a new block of that many bytes.
            unsafe { block.write_bytes(1, size) };
            let _ = pool.usable_size(block);
            let _ = try_free(pool, block);
        }
    }
    if let Ok(made) = pool.create(Node::of(3)) {
        assert_eq!(made.value, 3);
        let _ = pool.set_name("made", &made);
        if let Ok(first) = pool.named::<Node>("first") {
            std::hint::black_box(first.value);
            let _ = first.next.view().map(|next| next.value);
            let _ = first.next.get().map(|next| next.value);
            let _ = first.next.set(Some(&made));
        }
    }
    let _ = pool
        .named_or_create("number", || 8_u64)
        .map(|n| std::hint::black_box(*n));
    let _ = number.open().map(|n| std::hint::black_box(*n));
    let _ = node.open().map(|n| std::hint::black_box(n.value));
    if let Ok(array) = pool.named::<Array<u64>>("array") {
        for index in [0, 999, 1000, 1 << 20, array.len().wrapping_sub(1)] {
            let _ = (
                array.get(index),
                array.set(index, 2),
                array.update(index, |n| !n),
            );
            let _ = array
                .claim(..index)
                .map(|part| part.iter().fold(0, |a, b| a ^ b));
        }
        let _ = array.claim_mut(..).map(|mut all| all.fill(3));
        let _ = array.grow(2000, 4);
    }
    for name in ["first", "number", "made", "array"] {
        let _ = pool.remove_name(name);
    }
    let _ = pool.purge();
    pool.recover();
    let _ = (pool.stats(), pool.check());
}

/// Values that are often the wrong ones, or any.
fn value(random: &mut Random, old: u64) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => 1 << random.below(64),
        5 => old ^ 1 << random.below(64),
        6 => random.next() >> random.below(64),
        _ => old & !0xff | random.below(256) as u64,
    }
}

/// Changes a word or a few of those that `place` gives.
fn change(file: &File, random: &mut Random, place: impl Fn(&mut Random) -> u64) {
    for _ in 0..=random.below(3) {
        let at = place(random) & !7;
        let mut word = [0; 8];
        if file.read_exact_at(&mut word, at).is_ok() {
            let new = value(random, u64::from_ne_bytes(word));
            file.write_all_at(&new.to_ne_bytes(), at).unwrap();
        }
    }
}

/// Attaches to changed copies in forked children, a batch each, so that a crash or a hang of one
/// is seen, with the number that repeats it.
fn attach_changed(
    batches: u64,
    per_batch: u64,
    place: impl Fn(&mut Random, ArrayPlaces) -> u64 + Sync,
) {
    let (file, number, node, array) = original();
    let len = file.metadata().unwrap().len();
    let progress = TestPool::with(|b| b.max_size(1 << 20));
    // The change on its way; how many were attached.
    let words = progress.create([const { AtomicU64::new(0) }; 2]).unwrap();
    let only = std::env::var("SHMKIT_CHANGE")
        .ok()
        .and_then(|n| n.parse::<u64>().ok());
    let batches = only.map_or(0..batches, |n| n / per_batch..n / per_batch + 1);
    let mut failures = Vec::new();
    for batch in batches {
        let (file, words, place) = (&file, &words, &place);
        scope(|s| {
            let child = s.spawn(move || {
                for seed in batch * per_batch..(batch + 1) * per_batch {
                    if only.is_some_and(|only| only != seed) {
                        continue;
                    }
                    words[0].store(seed, Ordering::Relaxed);
                    let copy = copy(file, len);
                    change(&copy, &mut Random::new(seed + 1), |random| {
                        place(random, array)
                    });
                    let fd = copy.as_fd().try_clone_to_owned().unwrap();
                    // SAFETY: static garbage.
                    if let Ok(pool) = unsafe { Pool::from_fd(fd) } {
                        words[1].fetch_add(1, Ordering::Relaxed);
                        probe(pool, number, node);
                        // SAFETY: all that `probe` had of it is dropped.
                        unsafe { pool.unmap() };
                    }
                }
            });
            let child = child.unwrap();
            let limit = Instant::now() + Duration::from_secs(6);
            while !child.is_finished() && Instant::now() < limit {
                std::thread::yield_now();
            }
            if !child.is_finished() {
                child.kill().unwrap();
            }
            if let Err(error) = child.join() {
                failures.push((words[0].load(Ordering::Relaxed), error));
            }
        });
    }
    assert!(failures.is_empty(), "SHMKIT_CHANGE={failures:?}");
    let attached = words[1].load(Ordering::Relaxed);
    println!("  {attached} were attached");
    assert!(only.is_some() || attached > 0);
}

pub fn flipped_header_bytes() {
    attach_changed(40, 250, |random, _| {
        // Mostly where the header has its words: the rest of the page is unused.
        let end = if random.below(8) == 0 { 4096 } else { 448 };
        random.below(end) as u64
    });
}

pub fn changed_table_words() {
    /// Where tables begin, and how many of their bytes are in use in a small pool.
    const TABLES: [(u64, usize); 5] = [
        (1 << 20, 4 * 512),
        (2 << 20, 4 * 256),
        (3 << 20, 3 * 256),
        (16 << 20, 3 * 16_384),
        (1 << 30, 8 * 64),
    ];
    attach_changed(40, 100, |random, _| {
        let (start, len) = TABLES[random.below(TABLES.len())];
        // Slots are mostly long lists.
        let len = if random.below(2) == 0 {
            len.min(2 * 16_384)
        } else {
            len
        };
        start + random.below(len) as u64
    });
}

pub fn changed_array_words() {
    attach_changed(10, 100, |random, array| array[random.below(3)]);
}
