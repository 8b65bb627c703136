#[derive(shmkit::ShmSafe)]
struct S {
    field: &'static u8,
}

fn main() {}
