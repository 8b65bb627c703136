fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let buffer = pool.create(shmkit::Buffer::new()).unwrap();
    let view = buffer.view(0..0).unwrap();
    let bytes = view.as_slice();
    drop(view);
    println!("{bytes:?}");
}
