fn send<T: Send>(_: T) {}

fn f(array: &shmkit::Array<u32>) {
    send(array.claim(..));
    send(array.claim_mut(..));
}

fn main() {}
