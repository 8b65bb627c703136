//! Pools whose words were changed at random: the result is an error, or a pool on which every operation
//! runs without crashing or looping for ever.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use shmkit::process::scope;
use shmkit::{
    Array, Buffer, Handle, Lease, Link, Mailbox, Pool, Queue, Receiver, Semaphore, SharedCell,
    ShmSafe, inspect,
};

use super::attach::memfd;
use super::common::{Random, TestPool, allocate, layout, try_free};
use super::{damaged_heap, damaged_maps};

/// Where the tags of slices are in the file, the records of spans, and the data.
const TAGS: u64 = 10 << 30;
const SPANS: u64 = 12 << 30;
const DATA: u64 = 40 << 30;
const SLICE: u64 = 16 << 10;
/// Bytes a record, and the places of some of its words.
const SPAN: usize = 320;
const BLOCK_SIZE: u64 = 8;
const SLICES: u64 = 20;
const UNTIL: u64 = 24;
const PLACE: u64 = 28;
const NEXT: u64 = 32;
const PREVIOUS: u64 = 36;

#[derive(ShmSafe)]
struct Node {
    value: u64,
    next: Link<Node>,
}

/// Where things are in the file.
struct Places {
    /// An array's two words and its block.
    array: [u64; 3],
    /// A heap's own words, its table, its log and a block of that.
    heap: [(u64, usize); 4],
    /// Maps, their tables and their nodes.
    maps: Vec<(u64, u64)>,
    /// Containers and their blocks: where they begin, and how long they are.
    containers: Vec<(u64, u64)>,
}

/// The file of a small pool with something of everything in it; handles of its objects, and where
/// its containers are.
fn original() -> (File, Handle<u64>, Handle<Node>, Places) {
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
    let array = [word, word + 8, block].map(|address| (address - pool.base()) as u64);
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    let mut containers = fill_containers(*pool);
    // What they name, what that names, and what is in limbo.
    let mut level = containers.clone();
    level.push((16 << 20, 3 * 8192));
    for _ in 0..2 {
        level = level
            .iter()
            .flat_map(|&(start, len)| named(*pool, &file, start, len.min(3 * 8192), 1024))
            .collect();
        containers.extend(&level);
    }
    let mut maps = damaged_maps::fill(*pool);
    // Tables; one that succeeds one, and nodes.
    let mut level = maps.clone();
    for _ in 0..2 {
        let named = |&(start, len): &(u64, u64)| named(*pool, &file, start, len, 8192);
        level = level.iter().flat_map(named).collect();
        maps.extend(&level);
    }
    let places = Places {
        array,
        maps,
        heap: damaged_heap::fill(*pool),
        containers,
    };
    (file, number.handle(), first.handle(), places)
}

/// One of each, with something in it; where they are.
fn fill_containers(pool: Pool) -> Vec<(u64, u64)> {
    let mut places = Vec::new();
    let mut place = |address: usize, size: usize| {
        places.push(((address - pool.base()) as u64, size as u64));
    };
    macro_rules! named {
        ($name:literal, $container:expr) => {{
            let container = pool.create($container).ok().unwrap();
            pool.set_name($name, &container).unwrap();
            place(
                std::ptr::from_ref(&*container).addr(),
                size_of_val(&*container),
            );
            container
        }};
    }
    let cell = named!("cell", SharedCell::<u64>::new());
    (0..5).for_each(|n| cell.set(n).unwrap());
    let queue = named!("queue", Queue::<u64>::bounded(4));
    (0..6).for_each(|n| {
        queue.push(n).unwrap();
        queue.push(n).unwrap();
        queue.lease().unwrap().ack();
        drop(queue.lease());
        queue.pop().unwrap();
    });
    (0..3).for_each(|n| queue.push(n).unwrap());
    drop(queue.lease());
    let endless = named!("endless", Queue::<u64>::unbounded());
    (0..40).for_each(|n| endless.push(n).unwrap());
    (0..3).for_each(|_| assert!(endless.pop().is_ok()));
    let mailbox = named!("mailbox", Mailbox::<u64>::new(2));
    mailbox.send(1).unwrap();
    let buffer = named!("buffer", Buffer::new());
    for len in [10, 400, 900, 10_000, 5] {
        buffer.append(&vec![7; len]).unwrap();
    }
    buffer.truncate_front(20).unwrap();
    places
}

/// Blocks that words of the file name: where they begin, and how long they are, up to `most`.
fn named(pool: Pool, file: &File, start: u64, len: u64, most: usize) -> Vec<(u64, u64)> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, start).unwrap();
    let words = bytes.chunks_exact(8);
    words
        .filter_map(|word| {
            let address = u64::from_ne_bytes(word.try_into().unwrap());
            let block = NonNull::new(std::ptr::with_exposed_provenance_mut(address as usize))?;
            let size = pool.usable_size(block).ok()?;
            Some((address - pool.base() as u64, size.min(most) as u64))
        })
        .collect()
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
    probe_containers(pool);
    damaged_heap::probe(pool);
    damaged_maps::probe(pool);
    for name in [
        "first", "number", "made", "array", "cell", "queue", "endless", "mailbox", "buffer",
        "heap", "map", "flat", "texts", "stacks",
    ] {
        let _ = pool.remove_name(name);
    }
    let _ = pool.purge();
    pool.recover();
    let _ = (pool.stats(), pool.check(), pool.check_quiescent());
    let _ = inspect::leaks(pool);
    let _ = (inspect::participants(pool), inspect::map(pool).to_svg());
}

/// Uses every operation of every container that does not wait for ever.
fn probe_containers(pool: Pool) {
    if let Ok(cell) = pool.named::<SharedCell<u64>>("cell") {
        let _ = (cell.get(), cell.view().map(|view| *view), cell.set(5));
        let _ = cell.update(|old| old.map_or(0, |old| old ^ 1));
        let _ = cell.replace(6).map(|old| old.map(|old| *old));
        (0..70).for_each(|n| _ = cell.set(n));
    }
    for name in ["queue", "endless"] {
        if let Ok(queue) = pool.named::<Queue<u64>>(name) {
            probe_queue(&queue);
        }
    }
    if let Ok(mailbox) = pool.named::<Mailbox<u64>>("mailbox") {
        let _ = (mailbox.len(), mailbox.capacity(), mailbox.is_closed());
        if let Ok(receiver) = mailbox.receiver() {
            let _ = (mailbox.try_send(1), receiver.try_recv());
            mailbox.wake();
            let _ = receiver.try_recv();
            let _ = Receiver::wait_any(&[&receiver], Duration::ZERO);
        }
        mailbox.close();
    }
    if let Ok(buffer) = pool.named::<Buffer>("buffer") {
        for len in [3, 600, 9000] {
            let _ = buffer.append(&vec![1; len]);
        }
        let (start, end) = (buffer.start(), buffer.end());
        for (from, to) in [
            (0, 5),
            (start, end),
            (end.saturating_sub(700), end),
            (end, end),
        ] {
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |a, b| a.wrapping_add(*b));
            let view = buffer.view(from..to);
            let _ = view.map(|view| view.chunks().map(sum).max());
            let _ = buffer.read_at(from, &mut [0; 300]);
        }
        let _ = (buffer.len(), buffer.is_closed(), buffer.capacity());
        let _ = buffer.truncate_front(start.saturating_add(500));
        let _ = (buffer.clear(), buffer.append(b"more"), buffer.close());
    }
}

fn probe_queue(queue: &Queue<u64>) {
    let _ = (queue.len(), queue.capacity(), queue.is_empty());
    let _ = (queue.peek(), queue.iter().count());
    for n in 0..6 {
        let _ = queue.try_push(n);
        let _ = queue.try_lease().map(Lease::ack);
        drop(queue.try_lease());
        let _ = queue.try_pop();
    }
    let _ = (
        queue.push_timeout(1, Duration::ZERO),
        queue.pop_timeout(Duration::ZERO),
    );
    for n in 0..100 {
        let _ = queue.try_push(n);
    }
    queue.clear();
    let _ = queue.try_push(1);
    queue.close();
    let _ = (queue.try_pop(), queue.try_pop(), queue.is_closed());
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

/// What a file has in it, but for pages of zeros, which are most: a copy is a few writes.
struct Data {
    len: u64,
    runs: Vec<(u64, Vec<u8>)>,
}

impl Data {
    fn of(file: &File) -> Data {
        const PAGE: usize = 4096;
        let len = file.metadata().unwrap().len();
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut end = 0;
        while let Ok(start) = seek(file, SeekFrom::Data(end)) {
            end = seek(file, SeekFrom::Hole(start)).unwrap();
            for at in (start..end).step_by(PAGE) {
                let mut page = vec![0; PAGE.min((end - at) as usize)];
                file.read_exact_at(&mut page, at).unwrap();
                match runs.last_mut() {
                    _ if page.iter().all(|&byte| byte == 0) => {}
                    Some((from, run)) if *from + run.len() as u64 == at => run.extend(page),
                    _ => runs.push((at, page)),
                }
            }
        }
        Data { len, runs }
    }

    fn copy(&self) -> File {
        let made = memfd(&[]);
        made.set_len(self.len).unwrap();
        for (at, run) in &self.runs {
            made.write_all_at(run, *at).unwrap();
        }
        made
    }
}

/// Attaches to changed copies in forked children, a batch each, so that a crash or a hang of one
/// is seen, with the number that repeats it.
fn attach_changed(
    batches: u64,
    per_batch: u64,
    place: impl Fn(&mut Random, &Places) -> u64 + Sync,
) {
    // First, or it might take the address that the copies need.
    let progress = TestPool::with(|b| b.max_size(1 << 20));
    let (file, number, node, places) = original();
    let data = Data::of(&file);
    // The change on its way; how many were attached.
    let words = progress.create([const { AtomicU64::new(0) }; 2]).unwrap();
    let done = progress.create(Semaphore::new(0)).unwrap();
    let only = std::env::var("SHMKIT_CHANGE")
        .ok()
        .and_then(|n| n.parse::<u64>().ok());
    let batches = only.map_or(0..batches, |n| n / per_batch..n / per_batch + 1);
    let mut failures = Vec::new();
    for batch in batches {
        let (data, words, done) = (&data, &words, &done);
        let (place, places) = (&place, &places);
        scope(|s| {
            let child = s.spawn(move || {
                for seed in batch * per_batch..(batch + 1) * per_batch {
                    if only.is_some_and(|only| only != seed) {
                        continue;
                    }
                    words[0].store(seed, Ordering::Relaxed);
                    let copy = data.copy();
                    change(&copy, &mut Random::new(seed + 1), |random| {
                        place(random, places)
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
                done.add_permits(1).unwrap();
            });
            let child = child.unwrap();
            // A busy machine takes some seconds a batch; a hang takes all there are.
            match done.acquire_timeout(Duration::from_secs(60)) {
                Ok(permit) => permit.forget(),
                // It may have ended, by a crash.
                Err(_) => _ = child.kill(),
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
    const TABLES: [(u64, usize); 7] = [
        (4096, 4 * 256),
        (2 << 20, 4 * 512),
        (3 << 20, 3 * 256),
        (16 << 20, 3 * 16_384),
        (1 << 30, 8 * 64),
        (TAGS, 8 * 128),
        (SPANS, SPAN * 64),
    ];
    // They are where they are: each has something in it.
    let pool = TestPool::new();
    let named = pool.create(5_u64).unwrap();
    pool.set_name("named", &named).unwrap();
    let file = File::from(pool.fd().try_clone_to_owned().unwrap());
    for (start, len) in TABLES {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, start).unwrap();
        assert!(bytes.iter().any(|&byte| byte != 0), "{start:#x} is empty");
    }
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
    attach_changed(10, 100, |random, places| places.array[random.below(3)]);
}

pub fn changed_container_words() {
    attach_changed(60, 25, |random, places| {
        let (start, len) = places.containers[random.below(places.containers.len())];
        // Mostly what a thing begins with.
        let len = match random.below(3) {
            0 => len,
            _ => len.min(128),
        };
        start + random.below(len as usize) as u64
    });
}

pub fn changed_map_words() {
    attach_changed(40, 25, |random, places| {
        // The maps themselves, anything, or what is larger than nodes are.
        let kind = random.below(3);
        let all = if kind == 0 {
            damaged_maps::COUNT
        } else {
            places.maps.len()
        };
        let (start, len) = loop {
            let (start, len) = places.maps[random.below(all)];
            if kind < 2 || len >= 256 {
                break (start, len);
            }
        };
        // Mostly what a thing begins with.
        let len = match random.below(3) {
            0 => len,
            _ => len.min(256),
        };
        start + random.below(len as usize) as u64
    });
}

pub fn changed_heap_words() {
    attach_changed(10, 100, |random, places| {
        let (start, len) = places.heap[random.below(4)];
        start + random.below(len) as u64
    });
}

/// A span that nobody has made, with the tag that the next owner of a slot will get: its frees are that
/// owner's own, and must not follow its lists, nor believe its record.
pub fn spans_of_who_comes_next() {
    const SIZES: [usize; 2] = [1000, 3000];
    let (file, blocks) = {
        let pool = TestPool::with(|b| b.initial_size(256 << 10).max_size(4 << 20));
        let blocks = SIZES.map(|size| [(); 3].map(|()| allocate(*pool, size).addr().get()));
        let blocks = blocks.map(|blocks| blocks.map(|block| (block - pool.base()) as u64));
        (File::from(pool.fd().try_clone_to_owned().unwrap()), blocks)
    };
    let data = Data::of(&file);
    // The table has a few generations of the slot; one of them is the next.
    for generation in 1..4_u64 {
        for links in [[0, 0], [60_000_000; 2], [u32::MAX; 2], [2, 2]] {
            for (field, value) in [
                (SLICES, None),
                (SLICES, Some(1 << 20)),
                (BLOCK_SIZE, Some(u32::MAX)),
            ] {
                let copy = data.copy();
                // As much as the tables are said to have, which a copy leaves out.
                fallocate(&copy, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
                for [first, ..] in blocks {
                    let slice = (first - DATA) / SLICE;
                    let write = |at: u64, value: u32| {
                        let at = SPANS + slice * SPAN as u64 + at;
                        copy.write_all_at(&value.to_ne_bytes(), at).unwrap();
                    };
                    let tag = 3 | 1 << 4 | generation << 16;
                    copy.write_all_at(&tag.to_ne_bytes(), TAGS + slice * 8)
                        .unwrap();
                    let place = if first == blocks[0][0] { 2 } else { 3 };
                    for (at, value) in [
                        (UNTIL, 1),
                        (PLACE, place),
                        (NEXT, links[0]),
                        (PREVIOUS, links[1]),
                    ] {
                        write(at, value);
                    }
                    if let Some(value) = value {
                        write(field, value);
                    }
                }
                scope(|s| {
                    let copy = &copy;
                    let child = s.spawn(move || {
                        let fd = copy.as_fd().try_clone_to_owned().unwrap();
                        // SAFETY: static garbage.
                        let pool = unsafe { Pool::from_fd(fd) }.unwrap();
                        // The thread's slot.
                        let mine = allocate(pool, 16);
                        for offset in blocks.as_flattened() {
                            let block = pool.base() + *offset as usize;
                            let block =
                                NonNull::new(std::ptr::with_exposed_provenance_mut(block)).unwrap();
                            let freed = try_free(pool, block);
                            assert!(value.is_none() || freed.is_err());
                            assert!(pool.usable_size(block).is_err());
                        }
                        try_free(pool, mine).unwrap();
                        for size in SIZES {
                            try_free(pool, allocate(pool, size)).unwrap();
                        }
                        let _ = pool.check_quiescent().to_string();
                    });
                    child.unwrap().join().unwrap();
                });
            }
        }
    }
}
