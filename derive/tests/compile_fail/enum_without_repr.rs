#[derive(shmkit::ShmSafe)]
enum E {
    A,
    B,
}

fn main() {}
