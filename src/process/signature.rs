//! What an entry point's types look like to serde, as a number.
//!
//! Programs that are built separately agree on an entry by its name, and on its types by this
//! number. It is made from the types' shapes (`shape.rs`). If a type refuses made-up input (because
//! it validates), so that its whole shape is not known, the name that the compiler gives it counts
//! as well; this is the same in programs that have the type from one crate.

use super::{Wire, shape};
use crate::layout::fnv;

pub(super) fn hash(bytes: &[u8]) -> u64 {
    let step = |hash, byte: &u8| fnv::step(hash, u64::from(*byte));
    bytes.iter().fold(fnv::START, step)
}

/// A number that is equal if the bytes of both types mean the same.
pub(super) fn signature<A: Wire, R: Wire>() -> u64 {
    let mut bytes = known_by::<A>();
    // So that neither's end can be taken for the other's beginning.
    bytes.extend((bytes.len() as u64).to_le_bytes());
    bytes.extend(known_by::<R>());
    hash(&bytes)
}

fn known_by<T: Wire>() -> Vec<u8> {
    let (mut bytes, is_whole) = shape::of::<T>();
    if !is_whole {
        bytes.extend(std::any::type_name::<T>().as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    /// The same types once more, in another place and with another number type.
    macro_rules! program {
        ($program:ident $number:ty, $($last:ident)?) => {
            mod $program {
                use super::*;

                #[derive(Serialize, Deserialize)]
                pub struct Point {
                    pub x: f64,
                    pub y: Option<$number>,
                }

                #[derive(Serialize, Deserialize)]
                pub enum Shape {
                    Empty,
                    At(Point),
                    Named { name: String, $($last: ())? },
                }

                #[derive(Serialize, Deserialize)]
                pub struct Work {
                    pub shapes: Vec<Shape>,
                    pub how: Result<Shape, Option<Shape>>,
                }

                /// What comes first contains itself.
                #[derive(Serialize, Deserialize)]
                pub enum Term {
                    Sum(Box<Term>, Box<Term>),
                    Call { name: String, arguments: Vec<Term> },
                    Of(Box<Factor>),
                    Number($number),
                }

                #[derive(Serialize, Deserialize)]
                pub enum Factor {
                    Of(Box<Term>),
                    Shape(Box<Shape>),
                }
            }
        };
    }
    program!(one u32,);
    program!(same u32,);
    program!(number u64,);
    program!(field u32, last);

    #[test]
    fn equal_shapes_have_equal_signatures() {
        let one = signature::<one::Shape, Vec<one::Point>>();
        assert_eq!(one, signature::<same::Shape, Vec<same::Point>>());
        assert_ne!(one, signature::<number::Shape, Vec<one::Point>>());
        assert_ne!(one, signature::<one::Shape, Vec<number::Point>>());
        assert_ne!(signature::<u32, u64>(), signature::<u64, u32>());
        assert_ne!(signature::<(), ()>(), signature::<(), Vec<()>>());
    }

    #[test]
    fn what_lies_deep_counts() {
        let work = [
            signature::<one::Work, ()>(),
            signature::<same::Work, ()>(),
            signature::<number::Work, ()>(),
            signature::<field::Work, ()>(),
        ];
        assert_eq!(work[0], work[1]);
        assert!(work[0] != work[2] && work[0] != work[3] && work[2] != work[3]);
    }

    #[test]
    fn types_within_themselves_are_seen_to_their_ends() {
        let (_, is_whole) = shape::of::<one::Term>();
        assert!(is_whole);
        let terms = [
            signature::<one::Term, one::Factor>(),
            signature::<same::Term, same::Factor>(),
            signature::<number::Term, number::Factor>(),
            signature::<field::Term, field::Factor>(),
        ];
        assert_eq!(terms[0], terms[1]);
        assert!(terms[0] != terms[2] && terms[0] != terms[3] && terms[2] != terms[3]);
    }

    /// What is taken of a type again and again is its smallest branch; otherwise these would take
    /// for ever.
    #[test]
    fn many_types_of_three_of_the_next_are_seen_to_their_ends() {
        #[derive(Serialize, Deserialize)]
        enum Level<T> {
            Three(Box<T>, Box<T>, Box<T>),
            Nothing,
        }
        type Four<T> = Level<Level<Level<Level<T>>>>;
        type Sixteen<T> = Four<Four<Four<Four<T>>>>;
        assert!(shape::of::<Sixteen<Four<u8>>>().1);
    }

    /// What is left to be seen of one type is not looked for through the other, which is being
    /// looked into already.
    #[test]
    fn types_within_each_other_are_seen_to_their_ends() {
        #[derive(Serialize, Deserialize)]
        enum Outer {
            Inner(Box<Inner>),
            Left(One),
        }
        #[derive(Serialize, Deserialize)]
        enum Inner {
            Outer(Box<Outer>),
            Left(Other),
        }
        #[derive(Serialize, Deserialize)]
        enum One {
            A,
            B,
            C,
            D,
            E,
        }
        #[derive(Serialize, Deserialize)]
        enum Other {
            A,
            B,
            C,
            D,
            E,
        }
        assert!(shape::of::<Outer>().1);
        assert!(shape::of::<Inner>().1);
    }

    #[test]
    fn types_without_end_have_names() {
        #[derive(Serialize, Deserialize)]
        enum Endless {
            Cons(u8, Box<Endless>),
        }
        #[derive(Serialize, Deserialize)]
        struct Ring(Box<Ring>);
        assert!(!shape::of::<Endless>().1);
        assert!(!shape::of::<Ring>().1);
        assert!(!shape::of::<Vec<Ring>>().1);
    }

    /// Fails on made-up input.
    #[derive(Serialize)]
    struct Even(u8);

    impl<'de> Deserialize<'de> for Even {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            match u8::deserialize(from)? {
                n if n % 2 == 0 => Ok(Even(n)),
                n => panic!("{n} is odd"),
            }
        }
    }

    /// A value that panics when it is dropped, unless that would end the process.
    struct Loud;

    impl Drop for Loud {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "dropped");
        }
    }

    /// Panics with a [`Loud`], on any input.
    #[derive(Serialize)]
    struct Refuses;

    impl<'de> Deserialize<'de> for Refuses {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            std::panic::panic_any(Loud)
        }
    }

    #[test]
    fn types_that_cannot_be_traced_have_names() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let (even, same) = (signature::<Even, ()>(), signature::<Even, ()>());
        let (with_more, more) = (
            signature::<(u8, Even), ()>(),
            signature::<(u16, Even), ()>(),
        );
        let refuses = signature::<Refuses, ()>();
        std::panic::set_hook(hook);
        assert_ne!(refuses, even);
        assert_eq!(even, same);
        assert_ne!(even, signature::<u8, ()>());
        assert_ne!(with_more, more);
        assert_eq!(Even(4).0, 4);
    }
}
