use shmkit::{Key, ShmSafe};

#[derive(ShmSafe, Key)]
struct S {
    field: f64,
}

fn main() {}
