//! Why there is no answer, in words: so it can be sent from process to process.

use serde::{Deserialize, Serialize};

use crate::say;

#[derive(Debug, Serialize, Deserialize)]
pub struct Failure(pub String);

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(say::why(&error))
    }
}
