#[derive(shmkit::ShmSafe)]
struct S(u8);

impl Drop for S {
    fn drop(&mut self) {}
}

fn main() {}
