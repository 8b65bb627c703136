//! shmkit
pub mod layout;
mod primitive;
pub mod process;
mod sys;
