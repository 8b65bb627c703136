//! What an entry point's types look like to serde, as a number.
//!
//! Programs that are built separately agree on an entry by its name and on its types by this number.
//! A type is traced (by the crate serde-reflection): its `Deserialize` is run on made-up input, which tells the
//! names and order of fields, the variants, the kinds of numbers: all that decides about the bytes.
//! A type that refuses made-up input (because it validates) is known by the name that the compiler
//! gives it instead, which is the same in programs that have it from one crate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_reflection::{Samples, Tracer, TracerConfig};

use super::Wire;
use crate::layout::fnv;

pub(super) fn hash(bytes: &[u8]) -> u64 {
    let step = |hash, byte: &u8| fnv::step(hash, u64::from(*byte));
    bytes.iter().fold(fnv::START, step)
}

/// A number that is equal where the bytes of both types mean the same.
pub(super) fn signature<A: Wire, R: Wire>() -> u64 {
    let mut bytes = shape::<A>();
    // Neither's end is the other's beginning.
    bytes.extend((bytes.len() as u64).to_le_bytes());
    bytes.extend(shape::<R>());
    hash(&bytes)
}

fn shape<T: Wire>() -> Vec<u8> {
    let traced = catch_unwind(AssertUnwindSafe(|| {
        let mut tracer = Tracer::new(TracerConfig::default());
        let (format, _) = tracer.trace_type::<T>(&Samples::new()).ok()?;
        let registry = tracer.registry().ok()?;
        postcard::to_stdvec(&(format, registry)).ok()
    }));
    match traced {
        Ok(Some(bytes)) => bytes,
        _ => std::any::type_name::<T>().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    mod one {
        use super::*;
        #[derive(Serialize, Deserialize)]
        pub struct Point {
            pub x: f64,
            pub y: Option<u32>,
        }
        #[derive(Serialize, Deserialize)]
        pub enum Shape {
            Empty,
            At(Point),
        }
    }

    mod other {
        use super::*;
        #[derive(Serialize, Deserialize)]
        pub struct Point {
            pub x: f64,
            pub y: Option<u32>,
        }
        #[derive(Serialize, Deserialize)]
        pub enum Shape {
            Empty,
            At(Point),
        }
    }

    mod changed {
        use super::*;
        #[derive(Serialize, Deserialize)]
        pub struct Point {
            pub x: f64,
            pub y: Option<u64>,
        }
        #[derive(Serialize, Deserialize)]
        pub enum Shape {
            Empty,
            At(Point),
        }
    }

    #[test]
    fn equal_shapes_have_equal_signatures() {
        let one = signature::<one::Shape, Vec<one::Point>>();
        assert_eq!(one, signature::<other::Shape, Vec<other::Point>>());
        assert_ne!(one, signature::<changed::Shape, Vec<one::Point>>());
        assert_ne!(one, signature::<one::Shape, Vec<changed::Point>>());
        assert_ne!(signature::<u32, u64>(), signature::<u64, u32>());
        assert_ne!(signature::<(), ()>(), signature::<(), Vec<()>>());
    }

    /// Fails on made-up input.
    #[derive(Serialize)]
    struct Odd(u8);

    impl<'de> Deserialize<'de> for Odd {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            match u8::deserialize(from)? {
                n if n % 2 == 1 => Ok(Odd(n)),
                n => panic!("{n} is even"),
            }
        }
    }

    #[test]
    fn types_that_cannot_be_traced_have_names() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let (odd, same) = (signature::<Odd, ()>(), signature::<Odd, ()>());
        std::panic::set_hook(hook);
        assert_eq!(odd, same);
        assert_ne!(odd, signature::<u8, ()>());
        assert_eq!(Odd(3).0, 3);
    }
}
