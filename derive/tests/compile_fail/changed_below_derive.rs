use meddle::becomes;
use shmkit::{Key, KillSafe, ShmSafe};

#[derive(ShmSafe)]
#[becomes(struct More(u8, Box<u8>);)]
struct More(u8);

#[derive(ShmSafe)]
#[becomes(struct Other { field: Box<u8> })]
struct Other {
    field: u8,
}

#[derive(ShmSafe)]
#[becomes(#[repr(u8)] enum MoreVariants { A, B(Box<u8>) })]
#[repr(u8)]
enum MoreVariants {
    A,
}

#[derive(ShmSafe)]
#[becomes(#[repr(u8)] enum OtherVariant { A(Box<u8>) })]
#[repr(u8)]
enum OtherVariant {
    A(u8),
}

#[derive(KillSafe)]
#[becomes(#[derive(ShmSafe)] struct LessKillSafe(u8, bool);)]
struct LessKillSafe(u8);

#[derive(Key)]
#[becomes(#[derive(ShmSafe)] struct LessKey(u8, bool);)]
struct LessKey(u8);

#[derive(ShmSafe)]
#[becomes(union Union { field: u8 })]
struct Union {
    field: u8,
}

#[derive(ShmSafe)]
#[becomes(#[repr(u8)] enum OtherDiscriminant { A, B = 200 })]
#[repr(u8)]
enum OtherDiscriminant {
    A,
    B,
}

fn main() {}
