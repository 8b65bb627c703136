fn main() {
    let pool = shmkit::Pool::builder().create().unwrap();
    let _array = shmkit::Array::filled_in(pool, 10, false);
}
