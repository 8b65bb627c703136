#[derive(shmkit::ShmSafe)]
struct S {
    field: *mut u8,
}

fn main() {}
