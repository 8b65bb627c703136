fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let mutex = pool.create(shmkit::Mutex::new(false)).unwrap();
    if let Err(shmkit::LockError::OwnerDied(orphan)) = mutex.lock() {
        drop(orphan.into_guard());
    };
}
