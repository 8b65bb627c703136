use shmkit::Key;

#[derive(Key)]
struct S {
    field: u64,
}

fn main() {}
