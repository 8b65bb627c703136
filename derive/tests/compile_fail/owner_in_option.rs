use shmkit::{ShmSafe, TypeInfo};

struct Owner(u64);

// SAFETY: never used.
unsafe impl ShmSafe for Owner {
    const TYPE: &TypeInfo = &TypeInfo::block::<Self>("Owner");
    const OWNS: bool = true;
}

#[derive(ShmSafe)]
struct S {
    field: Option<Owner>,
}

fn main() {}
