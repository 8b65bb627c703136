#![cfg(shmkit_loom)]
