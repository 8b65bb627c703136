#[derive(shmkit::ShmSafe)]
struct S {
    field: std::sync::atomic::AtomicPtr<u8>,
}

fn main() {}
