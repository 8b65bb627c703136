fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let mutex = pool.create(shmkit::Mutex::new(0_u32)).unwrap();
    if let Err(shmkit::LockError::OwnerDied(orphan)) = mutex.lock() {
        println!("{}", *orphan);
    };
}
