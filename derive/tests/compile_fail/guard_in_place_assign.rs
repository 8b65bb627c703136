use shmkit::Mutex;

fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let mutex = pool.create(Mutex::new(Mutex::new(0_u32))).unwrap();
    let mut guard = mutex.lock().unwrap();
    *guard = Mutex::new(1);
}
