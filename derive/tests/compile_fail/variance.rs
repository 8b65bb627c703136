use std::marker::PhantomData;

use shmkit::sync::{Mutex, RwLock};
use shmkit::{Array, Foreign, HashMap, KillSafe, Link, Mailbox, Matrix, MultiMap, Queue, ShmSafe, SharedCell};

// A function that takes any text also takes a static one. A container of the former must not become one of the
// latter all the same: a function that keeps the text could be stored through it.
type Any = Foreign<for<'a> fn(&'a str)>;
type Static = Foreign<fn(&'static str)>;

fn cell(of_any: &SharedCell<Any>) -> &SharedCell<Static> {
    of_any
}

fn link(of_any: &Link<Any>) -> &Link<Static> {
    of_any
}

fn queue(of_any: &Queue<Any>) -> &Queue<Static> {
    of_any
}

fn mailbox(of_any: &Mailbox<Any>) -> &Mailbox<Static> {
    of_any
}

fn map(of_any: &HashMap<u64, Any>) -> &HashMap<u64, Static> {
    of_any
}

fn multi_map(of_any: &MultiMap<u64, Any>) -> &MultiMap<u64, Static> {
    of_any
}

fn mutex(of_any: &Mutex<Any>) -> &Mutex<Static> {
    of_any
}

fn rwlock(of_any: &RwLock<Any>) -> &RwLock<Static> {
    of_any
}

#[derive(ShmSafe)]
struct Number<T>(u64, PhantomData<T>);

// SAFETY: this is only checked for whether it compiles.
unsafe impl<T: ShmSafe> KillSafe for Number<T> {}

fn array(of_any: &Array<Number<Any>>) -> &Array<Number<Static>> {
    of_any
}

fn matrix(of_any: &Matrix<Number<Any>>) -> &Matrix<Number<Static>> {
    of_any
}

fn main() {}
