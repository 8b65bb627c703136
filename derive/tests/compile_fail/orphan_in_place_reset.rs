use shmkit::{LockError, Mutex};

fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let mutex = pool.create(Mutex::new(Mutex::new(0_u32))).unwrap();
    if let Err(LockError::OwnerDied(orphan)) = mutex.lock() {
        drop(orphan.reset(Mutex::new(1)));
    };
}
