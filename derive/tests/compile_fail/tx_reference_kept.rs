fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let heap = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    let mut kept = None;
    let _ = heap.modify(|tx| kept = tx.root_mut().ok());
    *kept.unwrap() = 1;
}
