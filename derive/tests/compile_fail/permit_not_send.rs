fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let semaphore = pool.create(shmkit::Semaphore::new(1)).unwrap();
    let permit = semaphore.acquire().unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(permit));
    });
}
