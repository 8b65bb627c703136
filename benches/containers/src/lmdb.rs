//! LMDB, by way of `heed`, with its file in memory and without syncing: as fast as it gets.

use std::path::PathBuf;
use std::sync::OnceLock;

use heed::byteorder::NativeEndian;
use heed::types::U64;
use heed::{Database, Env, EnvFlags, EnvOpenOptions};
use shmkit::process::scope;

use crate::maps::Map;

type Table = Database<U64<NativeEndian>, U64<NativeEndian>>;

/// A database in a directory that goes with this.
pub struct Lmdb {
    directory: PathBuf,
    /// Opened by each process for itself: it cannot be taken through a fork.
    opened: OnceLock<(Env, Table)>,
}

impl Lmdb {
    pub fn new() -> Self {
        let directory = PathBuf::from(format!("/dev/shm/shmkit-bench-lmdb-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory in memory");
        Lmdb {
            directory,
            opened: OnceLock::new(),
        }
    }

    fn here(&self) -> &(Env, Table) {
        self.opened.get_or_init(|| {
            let mut options = EnvOpenOptions::new();
            options.map_size(1 << 30);
            // SAFETY: nothing else writes to the file, and the machine does not crash meanwhile.
            let env = unsafe {
                options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC | EnvFlags::WRITE_MAP);
                options.open(&self.directory).expect("a database")
            };
            let mut change = env.write_txn().expect("a transaction");
            let table = env.create_database(&mut change, None).expect("a table");
            change.commit().expect("a commit");
            (env, table)
        })
    }
}

impl Map for Lmdb {
    fn get(&self, key: u64) -> Option<u64> {
        let (env, table) = self.here();
        let look = env.read_txn().expect("a transaction");
        table.get(&look, &key).expect("a look")
    }

    fn put(&self, key: u64, value: u64) {
        let (env, table) = self.here();
        let mut change = env.write_txn().expect("a transaction");
        table.put(&mut change, &key, &value).expect("a change");
        change.commit().expect("a commit");
    }

    /// In one transaction, by a process of its own.
    fn fill(&self, keys: impl Iterator<Item = u64>) {
        let keys: Vec<u64> = keys.collect();
        let keys = &keys;
        scope(|s| {
            let child = s.spawn(move || {
                let (env, table) = self.here();
                let mut change = env.write_txn().expect("a transaction");
                for key in keys {
                    table.put(&mut change, key, key).expect("a change");
                }
                change.commit().expect("a commit");
            });
            child.expect("a process").join().expect("a full table");
        });
    }
}

impl Drop for Lmdb {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
