//! What a macro may do to an item that a derive macro above it has read already.

use proc_macro::TokenStream;

/// Replaces the item to which it is applied by another one.
#[proc_macro_attribute]
pub fn becomes(other: TokenStream, _: TokenStream) -> TokenStream {
    other
}
