#[derive(shmkit::ShmSafe)]
struct S {
    field: std::cell::RefCell<u8>,
}

fn main() {}
