#[derive(shmkit::ShmSafe, shmkit::KillSafe)]
#[repr(u8)]
enum E {
    A,
    B,
}

fn main() {}
