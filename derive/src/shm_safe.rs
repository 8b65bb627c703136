//! `#[derive(ShmSafe)]`: the description of a type, from its fields.
//!
//! The library's constructors check the description when it is evaluated; for types without
//! parameters the output evaluates it on the spot, so that `cargo check` reports what is wrong.

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DataEnum, DeriveInput, Error, Fields, GenericParam, Generics, Ident, Meta,
    Path, Result, Token,
};

use crate::input::{
    allow_deprecated, bounded, crate_path, is_concrete, item, member, refuse_attributes, text,
    unchanged,
};

/// The representations that fix the layout of an enum. Those of 128 bits are left out: no object needs
/// them, and this way discriminants fit into an `i128`.
const INTEGERS: [&str; 10] = [
    "u8", "u16", "u32", "u64", "usize", "i8", "i16", "i32", "i64", "isize",
];

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    let krate = crate_path(&input.attrs)?;
    let allow_deprecated = allow_deprecated(&input);
    let Description {
        info,
        checks,
        owns,
        image_bound,
    } = match &input.data {
        Data::Struct(data) => of_struct(&krate, &input, &data.fields)?,
        Data::Enum(data) => of_enum(&krate, &input, data)?,
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span,
                "a union cannot be ShmSafe: nothing says which field is valid",
            ));
        }
    };

    let unchanged = unchanged(&krate, &input.data);
    let name = &input.ident;
    let shm_safe = item(&krate, "ShmSafe");
    let generics = bounded(&input.generics, &shm_safe);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let evaluate = is_concrete(&input.generics).then(|| {
        quote! {
            #allow_deprecated
            const _: &#krate::__private::TypeInfo = <#name as #shm_safe>::TYPE;
        }
    });
    Ok(quote! {
        // SAFETY: every field is ShmSafe and described, and there is no other, or `TYPE` would not
        // compile; with `ShmSafeTypesHaveNoDrop` below, a type with `Drop` would not either.
        #[automatically_derived]
        #allow_deprecated
        unsafe impl #impl_generics #shm_safe for #name #type_generics #where_clause {
            const TYPE: &'static #krate::__private::TypeInfo = {
                #unchanged
                #(#checks)*
                const { &#info }
            };
            const IMAGE_BOUND: ::core::primitive::bool = false #(|| #image_bound)*;
            const OWNS: ::core::primitive::bool = false #(|| #owns)*;
        }

        #[automatically_derived]
        #allow_deprecated
        impl #impl_generics #krate::__private::ShmSafeTypesHaveNoDrop
            for #name #type_generics #where_clause {}

        #evaluate
    })
}

/// Expressions for the constants of the implementation.
struct Description {
    info: TokenStream,
    /// Statements that do not compile if the description is wrong.
    checks: Vec<TokenStream>,
    owns: Vec<TokenStream>,
    image_bound: Vec<TokenStream>,
}

fn of_struct(krate: &Path, input: &DeriveInput, fields: &Fields) -> Result<Description> {
    refuse_attributes(fields)?;
    let name = input.ident.unraw().to_string();
    let constants = constants(krate, &input.generics);
    // Everything about a field goes through one function, so that a field that does not qualify gives one
    // error and not three.
    let field_at = quote!(#krate::__private::Field::at);
    let described = fields.iter().enumerate().map(|(i, field)| {
        let ((member, text), ty) = (member(i, field), &field.ty);
        quote_spanned! {ty.span()=>
            #field_at::<#ty>(#text, ::core::mem::offset_of!(Self, #member))
        }
    });
    Ok(Description {
        info: quote! {
            #krate::__private::TypeInfo::record::<Self>(
                #name,
                const { &[#(#described,)* #(#constants,)*] },
            )
        },
        checks: Vec::new(),
        owns: on_each(
            fields,
            |ty| quote_spanned!(ty.span()=> #field_at::<#ty>("", 0).owns()),
        ),
        image_bound: on_each(
            fields,
            |ty| quote_spanned!(ty.span()=> #field_at::<#ty>("", 0).image_bound()),
        ),
    })
}

fn of_enum(krate: &Path, input: &DeriveInput, data: &DataEnum) -> Result<Description> {
    let repr = Repr::of(&input.attrs)?.ok_or_else(|| {
        Error::new(
            data.enum_token.span,
            "an enum needs #[repr(u8)] or another integer to be ShmSafe: without it, its layout \
             is the compiler's choice",
        )
    })?;
    let (name, repr_text, integer) = (input.ident.unraw().to_string(), &repr.text, &repr.integer);
    let constants = constants(krate, &input.generics);
    let field_within = quote!(#krate::__private::Field::within);

    // Discriminants count up from the last explicit one, as the language says. They cannot be read from
    // variants with fields; those of other variants are compared, because an attribute below the derive
    // may have changed them. No name is introduced where the user's types and expressions are: they would
    // refer to it, where they mean something of their own.
    let has_units_only = data
        .variants
        .iter()
        .all(|v| matches!(v.fields, Fields::Unit));
    let mut variants = Vec::new();
    let mut checks = Vec::new();
    let (mut explicit, mut beyond) = (quote!(0), 0);
    let (mut owns, mut image_bound) = (Vec::new(), Vec::new());
    for variant in &data.variants {
        refuse_attributes(&variant.fields)?;
        if let Some((_, value)) = &variant.discriminant {
            (explicit, beyond) = (value.to_token_stream(), 0);
        }
        let literal = Literal::usize_unsuffixed(beyond);
        let discriminant = quote! {
            (::core::convert::identity::<::core::primitive::#integer>(#explicit) + #literal)
                as ::core::primitive::i128
        };
        beyond += 1;
        if has_units_only {
            let name = &variant.ident;
            checks.push(quote! {
                ::core::assert!(
                    Self::#name as ::core::primitive::i128 == #discriminant,
                    "an attribute below the derive has changed the discriminant of a variant"
                );
            });
        }
        let fields = variant.fields.iter().enumerate().map(|(i, field)| {
            let ((_, text), ty) = (member(i, field), &field.ty);
            quote_spanned!(ty.span()=> #field_within::<#ty>(#text))
        });
        let text = variant.ident.unraw().to_string();
        variants.push(quote! {
            #krate::__private::Variant::new(#text, #discriminant, const { &[#(#fields),*] })
        });
        owns.extend(on_each(&variant.fields, |ty| {
            let field = quote_spanned!(ty.span()=> #field_within::<#ty>(""));
            quote_spanned!(ty.span()=> #krate::__private::owns_nothing(#field))
        }));
        image_bound.extend(on_each(
            &variant.fields,
            |ty| quote_spanned!(ty.span()=> #field_within::<#ty>("").image_bound()),
        ));
    }
    Ok(Description {
        info: quote! {
            #krate::__private::TypeInfo::variants::<Self>(
                #name,
                #repr_text,
                const { &[#(#constants),*] },
                const { &[#(#variants),*] },
            )
        },
        checks,
        owns,
        image_bound,
    })
}

fn on_each(fields: &Fields, f: impl Fn(&syn::Type) -> TokenStream) -> Vec<TokenStream> {
    fields.iter().map(|field| f(&field.ty)).collect()
}

/// Const parameters tell types apart, so their values belong in the description.
fn constants(krate: &Path, generics: &Generics) -> Vec<TokenStream> {
    let constant = |param: &GenericParam| match param {
        GenericParam::Const(param) => {
            let (ident, name) = (&param.ident, param.ident.unraw().to_string());
            let value = match text(&param.ty).as_str() {
                // A `char` becomes an integer only by way of u32, which would cut off a part of a number
                // if another type had this name.
                "char" => quote! {
                    ::core::convert::identity::<::core::primitive::char>(#ident)
                        as ::core::primitive::u32
                },
                _ => quote!(#ident),
            };
            Some(quote! {
                #krate::__private::Field::constant(#name, #value as ::core::primitive::i128)
            })
        }
        GenericParam::Type(_) | GenericParam::Lifetime(_) => None,
    };
    generics.params.iter().filter_map(constant).collect()
}

/// What an enum's `repr` attribute says about its layout.
struct Repr {
    integer: Ident,
    text: String,
}

impl Repr {
    fn of(attrs: &[Attribute]) -> Result<Option<Self>> {
        let (mut integer, mut c) = (None, false);
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("repr")) {
            let hints = attr.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)?;
            for hint in hints {
                // Alignment, the other possible hint, shows in the alignment of the type itself.
                if let Meta::Path(path) = hint
                    && let Some(ident) = path.get_ident()
                {
                    c |= ident == "C";
                    if INTEGERS.iter().any(|name| ident == name) {
                        integer = Some(ident.clone());
                    }
                }
            }
        }
        Ok(integer.map(|integer| {
            let text = if c {
                format!("C,{integer}")
            } else {
                integer.to_string()
            };
            Self { integer, text }
        }))
    }
}
