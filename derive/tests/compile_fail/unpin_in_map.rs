use shmkit::{HashMap, Link, ShmSafe};

#[derive(ShmSafe)]
struct Held(Link<u64>);

// Safe code may implement `Unpin` for any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: HashMap<u64, Held>,
}

fn main() {}
