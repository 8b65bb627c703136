//! What the macros read from a type: the path of the library, bounds, the names of fields.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Field, Fields, GenericParam, Generics, Ident, Index,
    LitStr, Member, Path, Result, TypeParamBound, parse_quote,
};

/// The path of the shmkit crate: `::shmkit`, or what `#[shmkit(crate = "path")]` says. All checks are made by
/// the code at that path: the attribute is part of what the user vouches for, and is documented so.
pub(crate) fn crate_path(attrs: &[Attribute]) -> Result<Path> {
    let mut path = parse_quote!(::shmkit);
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("shmkit")) {
        attr.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(meta.error("expected `crate = \"path\"`"));
            }
            path = meta.value()?.parse::<LitStr>()?.parse()?;
            Ok(())
        })?;
    }
    Ok(path)
}

/// Refuses `#[shmkit(..)]` where it has no meaning.
pub(crate) fn refuse_attributes<'a>(fields: impl IntoIterator<Item = &'a Field>) -> Result<()> {
    for attr in fields.into_iter().flat_map(|field| &field.attrs) {
        if attr.path().is_ident("shmkit") {
            return Err(Error::new_spanned(attr, "no shmkit attribute on fields"));
        }
    }
    Ok(())
}

/// A user who stores a deprecated type has been warned, or has silenced the warning, where the type is
/// defined.
pub(crate) fn allow_deprecated(input: &DeriveInput) -> Option<TokenStream> {
    let (variants, fields): (Vec<_>, Vec<_>) = match &input.data {
        Data::Struct(data) => (Vec::new(), data.fields.iter().collect()),
        Data::Enum(data) => (
            data.variants.iter().collect(),
            data.variants.iter().flat_map(|v| &v.fields).collect(),
        ),
        Data::Union(_) => Default::default(),
    };
    let of_variants = variants.iter().flat_map(|variant| &variant.attrs);
    let of_fields = fields.iter().flat_map(|field| &field.attrs);
    let says_so = |attr: &Attribute| {
        let allows = ["allow", "expect"].iter().any(|a| attr.path().is_ident(a));
        attr.path().is_ident("deprecated") || allows && text(&attr.meta).contains("deprecated")
    };
    let mut all = input.attrs.iter().chain(of_variants).chain(of_fields);
    all.any(says_so).then(|| quote!(#[allow(deprecated)]))
}

/// The generics with `bound` on every type parameter.
pub(crate) fn bounded(generics: &Generics, bound: &Path) -> Generics {
    let mut generics = generics.clone();
    for param in &mut generics.params {
        if let GenericParam::Type(param) = param {
            let bound: TypeParamBound = parse_quote!(#bound);
            param.bounds.push(bound);
        }
    }
    generics
}

/// The path of `item` in the library at `krate`.
pub(crate) fn item(krate: &Path, item: &str) -> Path {
    let name = format_ident!("{item}");
    parse_quote!(#krate::#name)
}

/// How a field is named in an expression, and in text.
pub(crate) fn member(index: usize, field: &Field) -> (Member, String) {
    match &field.ident {
        Some(ident) => (Member::Named(ident.clone()), ident.unraw().to_string()),
        None => (Member::Unnamed(Index::from(index)), index.to_string()),
    }
}

/// A statement that does not compile unless the type has the variants and the fields that the macro has
/// read, with their types: an attribute below the derive is expanded after it, and may change them.
pub(crate) fn unchanged(krate: &Path, data: &Data) -> TokenStream {
    let this = Ident::new("this", Span::mixed_site());
    // By value: a struct may be packed, and it may have become a union, from which safe code cannot move
    // anything.
    let arms: Vec<_> = match data {
        Data::Struct(data) => vec![arm(krate, &quote!(Self), &data.fields)],
        Data::Enum(data) => {
            let of_each = |variant: &syn::Variant| {
                let name = &variant.ident;
                arm(krate, &quote!(Self::#name), &variant.fields)
            };
            data.variants.iter().map(of_each).collect()
        }
        Data::Union(_) => Vec::new(),
    };
    quote! {
        let _ = |#this: Self| match #this {
            #(#arms)*
        };
    }
}

/// The arm of a match that destructures the fields, all of them, and checks their types.
fn arm(krate: &Path, of: &TokenStream, fields: &Fields) -> TokenStream {
    let members = fields.iter().enumerate().map(|(i, f)| member(i, f).0);
    let bindings: Vec<_> = (0..fields.len())
        .map(|i| Ident::new(&format!("field_{i}"), Span::mixed_site()))
        .collect();
    let checks = fields.iter().zip(&bindings).map(|(field, binding)| {
        let ty = &field.ty;
        quote_spanned!(ty.span()=> #krate::__private::is::<#ty>(&raw const #binding);)
    });
    quote!(#of { #(#members: #bindings),* } => { #(#checks)* })
}

/// Whether a type has no parameters, so that its constants can be evaluated where it is defined.
pub(crate) fn is_concrete(generics: &Generics) -> bool {
    generics.params.is_empty()
}

/// The text of tokens without the spaces between them.
pub(crate) fn text(tokens: &impl ToTokens) -> String {
    tokens.to_token_stream().to_string().replace(' ', "")
}
