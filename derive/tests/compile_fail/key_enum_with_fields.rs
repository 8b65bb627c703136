use shmkit::{Key, ShmSafe};

#[derive(ShmSafe, Key)]
#[repr(u8)]
enum E {
    A(u8),
    B,
}

fn main() {}
