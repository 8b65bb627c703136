#[derive(shmkit::ShmSafe)]
#[shmkit(krate = "shmkit")]
struct S;

fn main() {}
