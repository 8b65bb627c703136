//! Derive macros for shmkit.
