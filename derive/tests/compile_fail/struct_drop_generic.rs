#[derive(shmkit::ShmSafe)]
struct S<T: shmkit::ShmSafe>(T);

impl<T: shmkit::ShmSafe> Drop for S<T> {
    fn drop(&mut self) {}
}

fn main() {}
