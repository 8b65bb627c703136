use shmkit::ShmSafe;

// Of which `as u32` would lose a half, and with it what tells `S<1>` from another.
#[allow(non_camel_case_types)]
type char = u64;

#[derive(ShmSafe)]
struct S<const N: char>(u8);

fn main() {}
