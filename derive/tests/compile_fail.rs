//! Code that must not compile does not, with an error that says why.
//!
//! A file per refusal in `compile_fail/`, with the compiler's message beside it. After a change of
//! messages: `TRYBUILD=overwrite cargo test --test compile_fail`, and read the difference.

#[test]
fn refusals() {
    trybuild::TestCases::new().compile_fail("compile_fail/*.rs");
}
