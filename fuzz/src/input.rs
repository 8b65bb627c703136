//! The fuzzer's input as a sequence of operations. It is read to its last byte, and each operation takes few:
//! what the fuzzer makes at random has many of them.

use arbitrary::{Arbitrary, Result, Unstructured};

/// As many as the input has. (Arbitrary's `Vec` ends at every second one.)
#[derive(Debug)]
pub struct Steps<S>(pub Vec<S>);

impl<'a, S: Arbitrary<'a>> Arbitrary<'a> for Steps<S> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let mut steps = Vec::new();
        while !input.is_empty() {
            steps.push(input.arbitrary()?);
        }
        Ok(Steps(steps))
    }
}

/// An operation, and whose.
#[derive(Debug)]
pub struct Step<O> {
    pub who: bool,
    /// Writes before its death.
    pub dies: Option<usize>,
    pub operation: O,
}

impl<'a, O: Arbitrary<'a>> Arbitrary<'a> for Step<O> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let first = u8::arbitrary(input)?;
        Ok(Step {
            who: first & 1 != 0,
            dies: (first & 2 != 0).then(|| writes(input)).transpose()?,
            operation: input.arbitrary()?,
        })
    }
}

/// How many writes somebody makes before his death: mostly few.
pub fn writes(input: &mut Unstructured<'_>) -> Result<usize> {
    let few = usize::from(u8::arbitrary(input)?);
    Ok(if few < 192 {
        few % 16
    } else {
        16 + usize::from(u8::arbitrary(input)?)
    })
}

/// Has one byte of the input say which variant of an enum is made: each as often as its weight says. (What
/// arbitrary derives takes four bytes.)
#[macro_export]
macro_rules! operations {
    ($(#[$of_all:meta])* enum $name:ident {
        $($(#[$of_one:meta])* $weight:literal: $variant:ident $({ $($field:ident: $type:ty),* })?,)*
    }) => {
        $(#[$of_all])*
        #[derive(Clone, Copy, Debug)]
        enum $name {
            $($(#[$of_one])* $variant $({ $($field: $type),* })?),*
        }

        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(input: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                let which = u8::arbitrary(input)? % (0 $(+ $weight)*);
                let end = 0;
                $(
                    let end = end + $weight;
                    if which < end {
                        return Ok($name::$variant $({ $($field: input.arbitrary()?),* })?);
                    }
                )*
                unreachable!()
            }
        }
    };
}
