use shmkit::{Key, ShmSafe};

#[derive(ShmSafe, Key)]
#[repr(u8, align(8))]
enum E {
    A = 1,
    B = 2,
}

fn main() {}
