//! The shape of a type, as bytes: what its `Deserialize` asks for when it is run on made-up input,
//! which decides how the bytes that it reads are interpreted. Names and order of fields, names of
//! variants, kinds of numbers.
//!
//! Where a type branches (enums; an option, a sequence or a map, which has something or nothing),
//! one run sees one branch, and the same type may lie within itself, for ever if the same branch
//! were taken there. So each such type is a *node*, told from others by its visitor's type, with a
//! shape for each branch, and runs are made until none finds anything new. A run goes where
//! something is left to be seen. Within a node that is being looked into already, and where nothing
//! is left, the node's *base* is taken.
//!
//! Invariants
//! 1. The base of a node is the branch that was read to its end in the fewest steps. All nodes
//!    within it had bases by then, with fewer steps, and these are only replaced by ones with still
//!    fewer. So taking only bases ends, as early as it can.
//! 2. A branch that could not be read is tried again only if something was tried or read since it
//!    was begun. So runs come to an end: of the runs that follow each other, all but the last one
//!    try or read a branch for the first time.

use std::any::TypeId;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::value::{Error, U32Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// How deep types may be nested.
const DEEPEST: usize = 200;

/// The bytes, and whether they are the whole shape: they are not for a type that refuses made-up
/// input.
pub(super) fn of<T: DeserializeOwned>() -> (Vec<u8>, bool) {
    let mut tracer = Tracer::default();
    loop {
        let (before, mut root) = (tracer.news, Shape::default());
        let reader = Reader {
            tracer: &mut tracer,
            shape: &mut root,
        };
        let read = catch_unwind(AssertUnwindSafe(|| T::deserialize(reader).is_ok()));
        // The panic's payload is leaked: its destructor might panic again.
        let read = read.map_err(std::mem::forget);
        let is_whole = matches!(read, Ok(true)) && tracer.nodes.iter().all(Node::is_whole);
        if is_whole || read.is_err() || tracer.news == before {
            return (tracer.bytes(root), is_whole);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
enum Kind {
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Str,
    Bytes,
    Unit,
    UnitStruct,
    NewtypeStruct,
    Tuple,
    TupleStruct,
    Struct,
    Node,
    Option,
    Seq,
    Map,
    Enum,
}

/// What was asked for.
#[derive(Default)]
struct Shape {
    bytes: Vec<u8>,
    /// The nodes that it contains.
    nodes: Vec<usize>,
}

impl Shape {
    fn kind(&mut self, kind: Kind) {
        self.bytes.push(kind as u8);
    }

    fn number(&mut self, number: usize) {
        self.bytes.extend((number as u32).to_le_bytes());
    }

    fn name(&mut self, name: &str) {
        self.number(name.len());
        self.bytes.extend(name.as_bytes());
    }

    fn names(&mut self, names: &[&str]) {
        self.number(names.len());
        names.iter().for_each(|name| self.name(name));
    }
}

#[derive(Default)]
struct Branch {
    /// Set once it was read to its end.
    shape: Option<Shape>,
    /// The value of [`Tracer::news`] when it was last tried.
    tried: Option<usize>,
}

struct Node {
    /// Its kind and names.
    head: Shape,
    branches: Vec<Branch>,
    /// A branch, and the steps that it took.
    base: Option<(usize, usize)>,
    /// It is being looked into.
    is_open: bool,
}

impl Node {
    /// A collection may refuse to be empty.
    fn is_whole(&self) -> bool {
        let is_collection = [Kind::Seq as u8, Kind::Map as u8].contains(&self.head.bytes[0]);
        let mut needed = self.branches.iter().skip(usize::from(is_collection));
        needed.all(|branch| branch.shape.is_some())
    }
}

#[derive(Default)]
struct Tracer {
    numbers: HashMap<(TypeId, Kind), usize>,
    nodes: Vec<Node>,
    /// How many branches were tried for the first time, or read to their end for the first time.
    news: usize,
    /// How many times a node was met.
    steps: usize,
    only_bases: bool,
    depth: usize,
}

impl Tracer {
    fn bytes(self, root: Shape) -> Vec<u8> {
        let mut all = root;
        for node in self.nodes {
            all.bytes.extend(node.head.bytes);
            for branch in node.branches {
                match branch.shape {
                    Some(shape) => {
                        all.number(1 + shape.bytes.len());
                        all.bytes.extend(shape.bytes);
                    }
                    None => all.number(0),
                }
            }
        }
        all.bytes
    }

    /// A branch of the node that is still to be seen, or leads to one.
    fn branch_to_see(&self, node: usize) -> Option<usize> {
        let branches = &self.nodes[node].branches;
        let mut seen = HashSet::from([node]);
        let is_news = |branch: &Branch| self.is_news(branch);
        branches.iter().position(is_news).or_else(|| {
            branches
                .iter()
                .position(|branch| self.leads_on(branch, &mut seen))
        })
    }

    /// By invariant 2.
    fn is_news(&self, branch: &Branch) -> bool {
        branch.shape.is_none() && branch.tried.is_none_or(|tried| tried < self.news)
    }

    /// Not through a node that is being looked into already: of that, only the base is taken.
    fn leads_on(&self, branch: &Branch, seen: &mut HashSet<usize>) -> bool {
        branch.shape.iter().flat_map(|s| &s.nodes).any(|&next| {
            !self.nodes[next].is_open
                && seen.insert(next)
                && self.nodes[next]
                    .branches
                    .iter()
                    .any(|branch| self.is_news(branch) || self.leads_on(branch, seen))
        })
    }
}

/// Reads made-up input.
struct Reader<'a> {
    tracer: &'a mut Tracer,
    shape: &'a mut Shape,
}

impl Reader<'_> {
    fn again(&mut self) -> Reader<'_> {
        Reader {
            tracer: self.tracer,
            shape: self.shape,
        }
    }

    /// Has `read` read what lies within, one level deeper.
    fn within<R>(mut self, read: impl FnOnce(Reader<'_>) -> Result<R, Error>) -> Result<R, Error> {
        if self.tracer.depth == DEEPEST {
            return Err(Error::custom("types lie too deep in each other"));
        }
        self.tracer.depth += 1;
        let result = read(self.again());
        self.tracer.depth -= 1;
        result
    }

    /// Has `read` read a branch of a node.
    fn node<'de, V: Visitor<'de>>(
        self,
        (kind, name): (Kind, &str),
        branches: &[&str],
        read: impl FnOnce(Reader<'_>, usize) -> Result<V::Value, Error>,
    ) -> Result<V::Value, Error> {
        let Reader { tracer, shape } = self;
        let next = tracer.nodes.len();
        let key = (typeid::of::<V>(), kind);
        let number = *tracer.numbers.entry(key).or_insert(next);
        if number == next {
            let mut head = Shape::default();
            head.kind(kind);
            head.name(name);
            head.names(branches);
            tracer.nodes.push(Node {
                head,
                branches: branches.iter().map(|_| Branch::default()).collect(),
                base: None,
                is_open: false,
            });
        }
        shape.kind(Kind::Node);
        shape.number(number);
        shape.nodes.push(number);
        let steps = tracer.steps;
        tracer.steps += 1;

        let node = &tracer.nodes[number];
        let to_see = match tracer.only_bases || node.is_open {
            true => None,
            false => tracer.branch_to_see(number),
        };
        let mut within = Shape::default();
        let shape = &mut within;
        let Some(index) = to_see else {
            let unknown = || Error::custom("it lies within itself, and no other branch is known");
            let (base, _) = node.base.ok_or_else(unknown)?;
            let before = std::mem::replace(&mut tracer.only_bases, true);
            let result = Reader { tracer, shape }.within(|reader| read(reader, base));
            tracer.only_bases = before;
            return result;
        };
        let branch = &mut tracer.nodes[number].branches[index];
        tracer.news += usize::from(branch.tried.is_none());
        branch.tried = Some(tracer.news);
        tracer.nodes[number].is_open = true;
        let result = Reader { tracer, shape }.within(|reader| read(reader, index));
        let steps = tracer.steps - steps;
        let node = &mut tracer.nodes[number];
        node.is_open = false;
        if result.is_ok() {
            if node.base.is_none_or(|(_, fewest)| steps < fewest) {
                node.base = Some((index, steps));
            }
            let branch = &mut node.branches[index];
            tracer.news += usize::from(branch.shape.is_none());
            branch.shape.get_or_insert(within);
        }
        result
    }

    /// Has `visit` read `count` elements.
    fn elements<R>(
        self,
        count: usize,
        visit: impl FnOnce(Elements<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.within(|reader| {
            let left = count;
            visit(Elements { reader, left })
        })
    }
}

/// Numbers are 1, as some types refuse 0.
macro_rules! scalars {
    ($($method:ident $kind:ident $visit:ident $value:expr,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.shape.kind(Kind::$kind);
            visitor.$visit($value)
        })*
    };
}

const NOTHING_OR_SOMETHING: &[&str] = &["", "1"];

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    scalars! {
        deserialize_bool Bool visit_bool true,
        deserialize_i8 I8 visit_i8 1,
        deserialize_i16 I16 visit_i16 1,
        deserialize_i32 I32 visit_i32 1,
        deserialize_i64 I64 visit_i64 1,
        deserialize_i128 I128 visit_i128 1,
        deserialize_u8 U8 visit_u8 1,
        deserialize_u16 U16 visit_u16 1,
        deserialize_u32 U32 visit_u32 1,
        deserialize_u64 U64 visit_u64 1,
        deserialize_u128 U128 visit_u128 1,
        deserialize_f32 F32 visit_f32 1.0,
        deserialize_f64 F64 visit_f64 1.0,
        deserialize_char Char visit_char 'a',
        deserialize_str Str visit_borrowed_str "",
        deserialize_string Str visit_borrowed_str "",
        deserialize_bytes Bytes visit_borrowed_bytes b"",
        deserialize_byte_buf Bytes visit_borrowed_bytes b"",
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.shape.kind(Kind::Unit);
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.shape.kind(Kind::UnitStruct);
        self.shape.name(name);
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.shape.kind(Kind::NewtypeStruct);
        self.shape.name(name);
        self.within(|reader| visitor.visit_newtype_struct(reader))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.shape.kind(Kind::Tuple);
        self.shape.number(len);
        self.elements(len, |elements| visitor.visit_seq(elements))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.shape.kind(Kind::TupleStruct);
        self.shape.name(name);
        self.shape.number(len);
        self.elements(len, |elements| visitor.visit_seq(elements))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.shape.kind(Kind::Struct);
        self.shape.name(name);
        self.shape.names(fields);
        self.elements(fields.len(), |elements| visitor.visit_seq(elements))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node::<V>(
            (Kind::Option, ""),
            NOTHING_OR_SOMETHING,
            |reader, branch| match branch {
                0 => visitor.visit_none(),
                _ => visitor.visit_some(reader),
            },
        )
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node::<V>((Kind::Seq, ""), NOTHING_OR_SOMETHING, |reader, left| {
            visitor.visit_seq(Elements { reader, left })
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node::<V>((Kind::Map, ""), NOTHING_OR_SOMETHING, |reader, left| {
            visitor.visit_map(Elements { reader, left })
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.node::<V>((Kind::Enum, name), variants, |reader, index| {
            visitor.visit_enum(Variant { reader, index })
        })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("nothing tells what comes"))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }
}

struct Elements<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(self.reader.again()).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.reader.again())
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

struct Variant<'a> {
    reader: Reader<'a>,
    index: usize,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Reader<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Reader<'a>), Error> {
        let index: U32Deserializer<Error> = (self.index as u32).into_deserializer();
        Ok((seed.deserialize(index)?, self.reader))
    }
}

impl<'de> VariantAccess<'de> for Reader<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        self.shape.kind(Kind::Unit);
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}
