//! [`Snapshot`]: what was in a queue at one moment, element by element.

use std::iter::FusedIterator;

/// The elements that were in a [`Queue`](super::Queue) at one moment; see [`Queue::iter`](super::Queue::iter).
///
/// ```
/// use shmkit::{Pool, Queue};
///
/// let pool = Pool::builder().create()?;
/// let queue = pool.create(Queue::bounded(8))?;
/// (1..=4).try_for_each(|n| queue.push(n))?;
/// let all = queue.iter();
/// queue.clear();
/// assert_eq!(all.len(), 4, "as they were");
/// assert!(all.rev().eq([4, 3, 2, 1]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot<T>(pub(super) std::vec::IntoIter<T>);

impl<T> Iterator for Snapshot<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<T> DoubleEndedIterator for Snapshot<T> {
    fn next_back(&mut self) -> Option<T> {
        self.0.next_back()
    }
}

impl<T> ExactSizeIterator for Snapshot<T> {}

impl<T> FusedIterator for Snapshot<T> {}
