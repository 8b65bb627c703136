use shmkit::ShmSafe;

// `as u32` would cut off half of such a number, and with it what may tell `S<1>` from another type.
#[allow(non_camel_case_types)]
type char = u64;

#[derive(ShmSafe)]
struct S<const N: char>(u8);

fn main() {}
