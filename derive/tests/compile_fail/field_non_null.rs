#[derive(shmkit::ShmSafe)]
struct S {
    field: std::ptr::NonNull<u8>,
}

fn main() {}
