#[derive(shmkit::ShmSafe)]
struct S {
    field: Vec<u8>,
}

fn main() {}
