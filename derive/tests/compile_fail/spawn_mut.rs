fn main() {
    let mut number = 0;
    shmkit::process::scope(|s| {
        let _ = s.spawn(|| number += 1);
    });
}
