#[derive(shmkit::ShmSafe)]
struct S {
    field: std::cell::Cell<u8>,
}

fn main() {}
