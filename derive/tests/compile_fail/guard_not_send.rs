fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let mutex = pool.create(shmkit::Mutex::new(0_u32)).unwrap();
    let guard = mutex.lock().unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(guard));
    });
}
