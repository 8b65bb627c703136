use shmkit::{HashMap, Queue, ShmSafe};

#[derive(ShmSafe)]
struct Held(HashMap<u64, u64>);

// Safe code may implement `Unpin` for any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: Queue<Held>,
}

fn main() {}
