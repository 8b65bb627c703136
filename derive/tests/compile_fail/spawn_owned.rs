fn main() {
    let text = String::from("mine");
    shmkit::process::scope(|s| {
        let _ = s.spawn(move || text.len());
    });
}
