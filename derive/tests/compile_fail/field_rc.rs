#[derive(shmkit::ShmSafe)]
struct S {
    field: std::rc::Rc<u8>,
}

fn main() {}
