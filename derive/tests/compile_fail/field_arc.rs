#[derive(shmkit::ShmSafe)]
struct S {
    field: std::sync::Arc<u8>,
}

fn main() {}
