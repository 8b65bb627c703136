use shmkit::{Semaphore, SharedCell, ShmSafe};

#[derive(ShmSafe)]
struct Held(Semaphore);

// Safe code may say so of any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: SharedCell<Held>,
}

fn main() {}
