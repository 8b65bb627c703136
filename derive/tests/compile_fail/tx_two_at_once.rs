fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let heap = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    let _ = heap.modify(|tx| {
        let id = tx.alloc(1_u64).unwrap();
        let one = tx.get_mut(id).unwrap();
        let other = tx.get_mut(id).unwrap();
        std::mem::swap(one, other);
    });
}
