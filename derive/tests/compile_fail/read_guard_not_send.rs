fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let lock = pool.create(shmkit::RwLock::new(0_u32)).unwrap();
    let guard = lock.read().unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(guard));
    });
}
