use shmkit::{Key, ShmSafe};

#[derive(ShmSafe, Key)]
#[repr(C)]
struct S {
    small: u8,
    large: u32,
}

fn main() {}
