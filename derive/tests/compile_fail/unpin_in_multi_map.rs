use shmkit::{Mutex, MultiMap, ShmSafe};

#[derive(ShmSafe)]
struct Held([Mutex<u64>; 2]);

// Safe code may implement `Unpin` for any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: MultiMap<str, Held>,
}

fn main() {}
