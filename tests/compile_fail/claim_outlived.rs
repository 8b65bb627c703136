fn f(array: &shmkit::Array<u32>) -> &[u32] {
    let claim = array.claim(..).unwrap();
    &claim[1..]
}

fn g(array: shmkit::Shared<shmkit::Array<u32>>) -> shmkit::ClaimMut<'static, u32> {
    array.claim_mut(..).unwrap()
}

fn main() {}
