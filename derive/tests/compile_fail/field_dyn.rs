#[derive(shmkit::ShmSafe)]
struct S {
    field: Box<dyn Send + Sync>,
}

fn main() {}
