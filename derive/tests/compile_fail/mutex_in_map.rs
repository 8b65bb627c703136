use shmkit::HashMap;
use shmkit::sync::Mutex;

fn count(locks: &HashMap<u32, Mutex<u64>>) -> usize {
    locks.len()
}

fn main() {}
