use std::sync::atomic::AtomicU64;

use shmkit::{Key, ShmSafe};

#[derive(ShmSafe, Key)]
struct S {
    field: AtomicU64,
}

fn main() {}
