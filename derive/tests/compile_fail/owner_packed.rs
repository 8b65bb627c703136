use shmkit::{ShmSafe, TypeInfo};

struct Owner(u64);

// SAFETY: never used.
unsafe impl ShmSafe for Owner {
    const TYPE: &TypeInfo = &TypeInfo::block::<Self>("Owner");
    const OWNS: bool = true;
}

#[derive(ShmSafe)]
#[repr(packed)]
struct S(u8, Owner);

fn main() {}
