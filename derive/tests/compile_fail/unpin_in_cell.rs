use shmkit::{Semaphore, SharedCell, ShmSafe};

#[derive(ShmSafe)]
struct Held(Semaphore);

// Safe code may implement `Unpin` for any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: SharedCell<Held>,
}

fn main() {}
