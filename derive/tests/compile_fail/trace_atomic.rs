#[derive(shmkit::ShmSafe, shmkit::Trace)]
struct Counted {
    count: std::sync::atomic::AtomicU64,
}

fn main() {}
