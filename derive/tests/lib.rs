//! Tests of the derive macros, and of what must not compile; nothing else is here.
