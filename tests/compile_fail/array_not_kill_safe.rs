fn f(_: &shmkit::Array<bool>) {}

fn main() {}
