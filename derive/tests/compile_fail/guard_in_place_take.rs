use shmkit::Mutex;

fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let mutex = pool.create(Mutex::new(Mutex::new(0_u32))).unwrap();
    let mut guard = mutex.lock().unwrap();
    let _carried_off = std::mem::take(&mut *guard);
}
