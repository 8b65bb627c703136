//! Readers that list the locks that they read under, and a writer that looks at the lists.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::tag::Tag;
use shmkit::protocol::{lock_word, readers};

use super::{Death, Deaths, Explorer};

/// The lock's name in the lists, and that of another one.
const LOCK: u64 = 8;
const OTHER: u64 = 16;

struct List {
    entries: [AtomicU64; 2],
    limit: AtomicU64,
    /// 1 once its owner's death was found.
    over: AtomicU64,
}

struct Shared {
    lists: Vec<List>,
    /// The lock's, which names the writer.
    word: AtomicU64,
    value: UnsafeCell<u64>,
}

impl Shared {
    fn new(readers: usize) -> Arc<Self> {
        let list = || List {
            entries: [AtomicU64::new(0), AtomicU64::new(0)],
            limit: AtomicU64::new(0),
            over: AtomicU64::new(0),
        };
        Arc::new(Shared {
            lists: (0..readers).map(|_| list()).collect(),
            word: AtomicU64::new(0),
            value: UnsafeCell::new(0),
        })
    }

    /// Reads, unless a writer is there. With `nested` while it reads under another lock.
    fn read(&self, reader: usize, nested: bool) {
        let list = &self.lists[reader];
        let enter = |lock| readers::enter(&list.entries, &list.limit, lock).unwrap();
        let outer = nested.then(|| enter(OTHER));
        let entry = enter(LOCK);
        if self.word.load(Ordering::SeqCst) == 0 {
            // SAFETY: listed before the word was seen free, or loom reports it.
            self.value.with(|value| unsafe { *value });
        }
        readers::strike(&list.entries[entry]);
        if let Some(outer) = outer {
            readers::strike(&list.entries[outer]);
        }
    }

    /// Writes once nobody who lives lists the lock.
    fn write(&self) {
        let taken = lock_word::try_fast(&self.word, Tag::new(1, 1));
        readers::before_looking(taken.expect("one writer at a time"));
        for list in &self.lists {
            for entry in readers::used(&list.entries, &list.limit) {
                while readers::names(entry, LOCK) && list.over.load(Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
            }
        }
        // SAFETY: nobody lists the lock and has seen the word free, or loom reports it.
        self.value.with_mut(|value| unsafe { *value += 1 });
        self.word.store(0, Ordering::Release);
    }
}

/// Two readers, one of them under two locks, and a writer that comes twice.
#[test]
fn readers_against_a_writer() {
    let explorer = Explorer::new("readers: two against a writer");
    explorer.run(3, || {
        let shared = Shared::new(2);
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.read(reader, reader == 0))
            })
            .collect();
        shared.write();
        shared.write();
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    });
}

/// A reader that dies keeps nobody from writing once that is known, and has read nothing torn.
#[test]
fn death_of_a_reader() {
    let explorer = Explorer::new("readers: death of a reader");
    explorer.each_death(3, |deaths: Deaths, at: Death| {
        move || {
            let shared = Shared::new(1);
            let reader = {
                let (shared, deaths) = (Arc::clone(&shared), deaths.clone());
                thread::spawn(move || {
                    deaths.kill(at, || {
                        shared.read(0, true);
                        shared.read(0, false);
                    });
                    // As the kernel marks the life word, and its finder the slot.
                    shared.lists[0].over.store(1, Ordering::Release);
                })
            };
            shared.write();
            reader.join().unwrap();
            shared.write();
        }
    });
}
