fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let heap = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    let view = heap.view().unwrap();
    let root = view.root();
    drop(view);
    println!("{root}");
}
