#[derive(shmkit::ShmSafe, shmkit::KillSafe)]
struct S {
    field: bool,
}

fn main() {}
