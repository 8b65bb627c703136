#[derive(shmkit::ShmSafe)]
struct S {
    field: std::sync::Mutex<u8>,
}

fn main() {}
