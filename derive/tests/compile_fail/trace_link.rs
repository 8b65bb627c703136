#[derive(shmkit::ShmSafe, shmkit::Trace)]
struct Linked {
    next: shmkit::Link<Linked>,
}

fn main() {}
