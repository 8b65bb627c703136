fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let buffer = pool.create(shmkit::Buffer::new()).unwrap();
    let view = buffer.view(0..0).unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(view));
    });
}
