fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let heap = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    let id = heap.modify(|tx| tx.alloc(1_u64).unwrap()).unwrap();
    let value = heap.modify(|tx| tx.get(id).unwrap()).unwrap();
    println!("{value}");
}
