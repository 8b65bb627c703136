//! `#[derive(Trace)]`: an implementation that shows each field of the value to the tracer.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Result};

use crate::input::{allow_deprecated, bounded, crate_path, item, member, refuse_attributes};

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    let krate = crate_path(&input.attrs)?;
    let allow_deprecated = allow_deprecated(&input);
    let trace = item(&krate, "Trace");
    let arms = match &input.data {
        Data::Struct(data) => vec![arm(&trace, &quote!(Self), &data.fields)?],
        Data::Enum(data) => {
            let arm = |variant: &syn::Variant| {
                let name = &variant.ident;
                arm(&trace, &quote!(Self::#name), &variant.fields)
            };
            data.variants.iter().map(arm).collect::<Result<_>>()?
        }
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span,
                "a union cannot be Trace: nothing says which field is valid",
            ));
        }
    };
    let (name, tracer) = (&input.ident, item(&krate, "Tracer"));
    let generics = bounded(&input.generics, &trace);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        #allow_deprecated
        impl #impl_generics #trace for #name #type_generics #where_clause {
            #[inline]
            fn trace(&self, tracer: &mut #tracer<'_>) {
                let _ = &tracer;
                match *self {
                    #(#arms)*
                }
            }
        }
    })
}

/// The arm of a variant, or of a struct: each field is traced.
fn arm(trace: &syn::Path, path: &TokenStream, fields: &Fields) -> Result<TokenStream> {
    refuse_attributes(fields)?;
    let (mut patterns, mut calls) = (Vec::new(), Vec::new());
    for (i, field) in fields.iter().enumerate() {
        let ((member, _), ty) = (member(i, field), &field.ty);
        let binding = format_ident!("field_{i}");
        patterns.push(quote!(#member: ref #binding));
        calls.push(quote_spanned!(ty.span()=> <#ty as #trace>::trace(#binding, tracer);));
    }
    Ok(quote!(#path { #(#patterns),* } => { #(#calls)* }))
}
