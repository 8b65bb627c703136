#[derive(shmkit::ShmSafe)]
struct S {
    field: String,
}

fn main() {}
