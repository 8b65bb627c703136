#[derive(shmkit::ShmSafe)]
struct S {
    field: Box<u8>,
}

fn main() {}
