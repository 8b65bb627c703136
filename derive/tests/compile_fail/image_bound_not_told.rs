use shmkit::layout::Field;
use shmkit::{ShmSafe, TypeInfo};

struct Bound;

// SAFETY: never used.
unsafe impl ShmSafe for Bound {
    const TYPE: &TypeInfo = &TypeInfo::library::<Self>("Bound", &[]);
    const IMAGE_BOUND: bool = true;
}

struct S(Bound);

// SAFETY: none, IMAGE_BOUND is missing.
unsafe impl ShmSafe for S {
    const TYPE: &TypeInfo =
        &TypeInfo::record::<Self>("S", const { &[Field::at::<Bound>("0", 0)] });
}

const _: &TypeInfo = S::TYPE;

fn main() {}
