use shmkit::{ShmSafe, TypeInfo};

struct Owner(u64);

// SAFETY: never used.
unsafe impl ShmSafe for Owner {
    const TYPE: &TypeInfo = &TypeInfo::block::<Self>("Owner");
    const OWNS: bool = true;
}

struct S(Owner);

// SAFETY: none, OWNS is missing.
unsafe impl ShmSafe for S {
    const TYPE: &TypeInfo =
        &TypeInfo::record::<Self>("S", const { &[shmkit::layout::Field::at::<Owner>("0", 0)] });
}

const _: &TypeInfo = S::TYPE;

fn main() {}
