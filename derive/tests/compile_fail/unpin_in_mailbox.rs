use shmkit::{Event, Mailbox, ShmSafe};

#[derive(ShmSafe)]
struct Held(Option<Event>);

// Safe code may say so of any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: Mailbox<Held>,
}

fn main() {}
