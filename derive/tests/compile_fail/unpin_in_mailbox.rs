use shmkit::{Event, Mailbox, ShmSafe};

#[derive(ShmSafe)]
struct Held(Option<Event>);

// Safe code may implement `Unpin` for any type.
impl Unpin for Held {}

#[derive(ShmSafe)]
struct World {
    field: Mailbox<Held>,
}

fn main() {}
