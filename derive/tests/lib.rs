//! Tests of the derive macros, and of code that must not compile; nothing else is here.
