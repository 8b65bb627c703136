use shmkit::{Mutex, MultiMap, ShmSafe};

#[derive(ShmSafe)]
struct Held([Mutex<u64>; 2]);

// Safe code may say so of any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: MultiMap<str, Held>,
}

fn main() {}
