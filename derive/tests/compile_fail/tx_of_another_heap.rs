fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let one = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    let other = pool.create(shmkit::Heap::new(0_u64)).unwrap();
    let _ = one.modify(|a| other.modify(|b| std::mem::swap(a, b)));
}
