//! What the macros read from a type: the path of the library, bounds, the names of fields.

use quote::{ToTokens, format_ident};
use syn::ext::IdentExt;
use syn::{
    Attribute, Error, Field, GenericParam, Generics, Index, LitStr, Member, Path, Result,
    TypeParamBound, parse_quote,
};

/// The path of the shmkit crate: `::shmkit`, or what `#[shmkit(crate = "path")]` says. All checks are
/// behind it: the attribute is part of what the user vouches for, and documented so.
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

/// Refuses `#[shmkit(..)]` where it says nothing.
pub(crate) fn refuse_attributes<'a>(fields: impl IntoIterator<Item = &'a Field>) -> Result<()> {
    for attr in fields.into_iter().flat_map(|field| &field.attrs) {
        if attr.path().is_ident("shmkit") {
            return Err(Error::new_spanned(attr, "no shmkit attribute on fields"));
        }
    }
    Ok(())
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

/// How a field is called in an expression, and in text.
pub(crate) fn member(index: usize, field: &Field) -> (Member, String) {
    match &field.ident {
        Some(ident) => (Member::Named(ident.clone()), ident.unraw().to_string()),
        None => (Member::Unnamed(Index::from(index)), index.to_string()),
    }
}

/// Whether a type has no parameters, so that its constants can be evaluated where it is defined.
pub(crate) fn is_concrete(generics: &Generics) -> bool {
    generics.params.is_empty()
}

/// The text of tokens without the spaces between them.
pub(crate) fn text(tokens: &impl ToTokens) -> String {
    tokens.to_token_stream().to_string().replace(' ', "")
}
