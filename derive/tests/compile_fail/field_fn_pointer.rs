#[derive(shmkit::ShmSafe)]
struct S {
    field: fn(),
}

fn main() {}
