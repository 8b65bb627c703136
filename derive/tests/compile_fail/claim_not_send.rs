fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let array = shmkit::Array::filled_in(pool, 10, 0_u32).unwrap();
    let claim = array.claim(..).unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(claim));
    });
}
