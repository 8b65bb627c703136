//! `#[derive(KillSafe)]`: an implementation whose hidden constant names every field's type where
//! only kill-safe types compile.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Result};

use crate::input::{allow_deprecated, bounded, crate_path, item, refuse_attributes, unchanged};

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    let krate = crate_path(&input.attrs)?;
    let allow_deprecated = allow_deprecated(&input);
    let data = match &input.data {
        Data::Struct(data) => data,
        Data::Enum(data) => {
            return Err(Error::new(
                data.enum_token.span,
                "an enum cannot be KillSafe: a killed process may leave the discriminant of one \
                 value with the fields of another",
            ));
        }
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span,
                "a union cannot be KillSafe: nothing says which field is valid",
            ));
        }
    };
    refuse_attributes(&data.fields)?;

    let unchanged = unchanged(&krate, &input.data);
    let name = &input.ident;
    let kill_safe = item(&krate, "KillSafe");
    let generics = bounded(&input.generics, &kill_safe);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let checks = data.fields.iter().map(|field| {
        let ty = &field.ty;
        quote_spanned!(ty.span()=> #krate::__private::kill_safe::<#ty>();)
    });
    Ok(quote! {
        // SAFETY: every field is KillSafe, and there is no other, or `FIELDS` would not compile.
        #[automatically_derived]
        #allow_deprecated
        unsafe impl #impl_generics #kill_safe for #name #type_generics #where_clause {
            const FIELDS: () = {
                #unchanged
                #(#checks)*
            };
        }
    })
}
