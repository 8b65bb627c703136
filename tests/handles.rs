//! Handles and descriptors, from outside.

#![cfg(not(shmkit_loom))]

use shmkit::Pool;

/// A descriptor of what was in an entry before does not take away the hold on what is there now.
#[test]
fn a_stale_descriptor_leaves_the_next_object_alone() {
    let pool = Pool::builder().create().unwrap();
    let first = pool.create(1_u64).unwrap();
    let stale = first.handle();
    drop(first);
    let second = pool.create(2_u64).unwrap();
    assert!(stale.open().is_err());
    // Frees what nobody holds.
    pool.recover();
    assert_eq!(pool.check().objects, 1);
    assert_eq!(*second, 2);
}
