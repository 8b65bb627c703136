fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let heap = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    std::thread::scope(|s| {
        let view = heap.view().unwrap();
        s.spawn(move || println!("{}", view.root()));
    });
}
