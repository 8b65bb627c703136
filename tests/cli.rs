#[test]
fn x() {
    assert!(
        std::process::Command::new(env!("CARGO_BIN_EXE_shmkit"))
            .status()
            .unwrap()
            .success()
    );
}
