//! Single words that no use of a container stores, and that a stray write may.

use shmkit::{AppendError, Array, Buffer, ResizeError};

use super::common::TestPool;

/// Stores a word of something that nobody uses meanwhile.
fn damage(address: usize, word: u64) {
    // SAFETY: a word of a container, each of which is atomic, in a pool of this process alone.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write(word) };
}

fn word(address: usize) -> u64 {
    // SAFETY: as in `damage`.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read() }
}

/// Claims of the living, of no element, in all places.
pub fn a_table_full_of_empty_claims() {
    /// Where the table begins: how many of its places are used, and three words for each.
    const HIGH: usize = 24;
    const PLACES: usize = 62;
    let pool = TestPool::new();
    let array = Array::filled_in(*pool, 10, 1_u64).unwrap();
    let table = std::ptr::from_ref(&*array).expose_provenance() + HIGH;
    let claim = array.claim(..).unwrap();
    let held = word(table + 24);
    assert_eq!(word(table), 1);
    drop(claim);
    damage(table, PLACES as u64);
    for place in 0..PLACES {
        damage(table + 8 + 24 * place, 0);
        damage(table + 16 + 24 * place, 0);
        damage(table + 24 + 24 * place, held);
    }
    assert_eq!(array.grow(20, 1), Err(ResizeError::TooManyClaims));
    assert_eq!(array.get(9), Ok(1));
}

/// A chunk that is said to be the last of as many as can be told apart.
pub fn the_last_chunk_that_can_be_counted() {
    /// Where a chunk has its number.
    const INDEX: usize = 32;
    let pool = TestPool::new();
    let buffer = pool.create(Buffer::new()).unwrap();
    buffer.append(b"bytes").unwrap();
    let chunk = word(std::ptr::from_ref(&*buffer).expose_provenance()) as usize;
    assert_eq!(word(chunk + INDEX), 0);
    damage(chunk + INDEX, u64::MAX);
    assert_eq!(buffer.append(&[1; 10_000]), Err(AppendError::Closed));
    assert_eq!(buffer.view(0..5).unwrap().to_vec(), b"bytes");
    assert!(buffer.truncate_front(5).is_ok() && buffer.close().is_ok());
}
