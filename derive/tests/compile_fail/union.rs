#[derive(shmkit::ShmSafe)]
union U {
    a: u8,
    b: i8,
}

fn main() {}
