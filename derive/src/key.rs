//! `#[derive(Key)]`: a struct or a field-less enum is identified by its bytes. They must represent the
//! value and nothing else: each field is a key itself, and there are no gaps between the fields.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Path, Result};

use crate::input::{
    allow_deprecated, bounded, crate_path, is_concrete, item, refuse_attributes, unchanged,
};

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    let krate = crate_path(&input.attrs)?;
    let allow_deprecated = allow_deprecated(&input);
    let key = item(&krate, "Key");
    let shm_safe = item(&krate, "ShmSafe");
    let (checks, is_valid) = of_data(&krate, &key, &input.data)?;
    let unchanged = unchanged(&krate, &input.data);
    let name = &input.ident;
    let generics = bounded(&input.generics, &key);
    let generics = bounded(&generics, &shm_safe);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let evaluate = is_concrete(&input.generics).then(|| {
        quote! {
            #allow_deprecated
            const _: ::core::option::Option<::core::primitive::usize> = <#name as #key>::LEN;
        }
    });
    Ok(quote! {
        // SAFETY: by `LEN`, which would not compile otherwise, every field is a key, there is no other, and
        // the type is plain: without padding, and without anything that is changed through `&`.
        #[automatically_derived]
        #allow_deprecated
        unsafe impl #impl_generics #key for #name #type_generics #where_clause {
            type Stored = Self;
            const LEN: ::core::option::Option<::core::primitive::usize> = {
                #unchanged
                #(#checks)*
                #krate::__private::assert_plain::<Self>();
                ::core::option::Option::Some(::core::mem::size_of::<Self>())
            };
            const ALIGN: ::core::primitive::usize = ::core::mem::align_of::<Self>();

            #[inline]
            fn bytes(&self) -> &[::core::primitive::u8] {
                const { #krate::__private::assert_plain::<Self>() };
                // SAFETY: the value's own bytes, all of them initialised, as it is plain.
                unsafe {
                    ::core::slice::from_raw_parts(
                        ::core::ptr::from_ref(self).cast::<::core::primitive::u8>(),
                        ::core::mem::size_of::<Self>(),
                    )
                }
            }

            #[inline]
            unsafe fn from_bytes(bytes: &[::core::primitive::u8]) -> &Self {
                // SAFETY: by the caller's promise a copy of a value's bytes, aligned.
                unsafe { &*bytes.as_ptr().cast::<Self>() }
            }

            #[inline]
            fn is_valid(bytes: &[::core::primitive::u8]) -> ::core::primitive::bool {
                let _ = bytes;
                #is_valid
            }
        }

        #evaluate
    })
}

/// Statements that do not compile if a field is no key, and an expression that says whether `bytes`
/// are those of a value.
fn of_data(krate: &Path, key: &Path, data: &Data) -> Result<(Vec<TokenStream>, TokenStream)> {
    match data {
        Data::Struct(data) => {
            refuse_attributes(&data.fields)?;
            let types = data.fields.iter().map(|field| &field.ty);
            let checks = types
                .map(|ty| quote_spanned!(ty.span()=> #krate::__private::is_key::<#ty>();))
                .collect();
            let valid = data
                .fields
                .members()
                .zip(&data.fields)
                .map(|(member, field)| {
                    let ty = &field.ty;
                    quote! {
                        <#ty as #key>::is_valid(
                            &bytes[::core::mem::offset_of!(Self, #member)..]
                                [..::core::mem::size_of::<#ty>()],
                        )
                    }
                });
            Ok((checks, quote!(true #(&& #valid)*)))
        }
        Data::Enum(data) => {
            if let Some(variant) = data.variants.iter().find(|v| !v.fields.is_empty()) {
                return Err(Error::new(
                    variant.span(),
                    "an enum with fields cannot be a Key: its values differ in what their bytes mean",
                ));
            }
            let names = data.variants.iter().map(|variant| &variant.ident);
            // Braces make a value of a variant of any form.
            let valid = quote!(false #(|| #key::bytes(&Self::#names {}) == bytes)*);
            Ok((Vec::new(), valid))
        }
        Data::Union(data) => Err(Error::new(
            data.union_token.span,
            "a union cannot be a Key: nothing says which field is valid",
        )),
    }
}
