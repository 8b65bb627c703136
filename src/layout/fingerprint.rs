//! Type fingerprints: 128 bits that are equal if the layouts and the names are.
//!
//! A named object stores the fingerprint of its type, and a program that opens it by name compares
//! that with its own. Programs are built separately, so nothing that depends on one build is
//! included if a type can be another program's: no address, no [`TypeId`], no module path.
//!
//! # What is hashed
//!
//! The tree of [`TypeInfo`] in depth-first order: shape, name, size, alignment, lengths, offsets,
//! names of fields and variants, discriminants. A type with parts is numbered when it is first met
//! and stands for its number from then on. So recursive types end, the work is linear in the
//! number of distinct types however often they refer to each other, and equal trees get equal
//! numbers in every program.
//!
//! Two things are included only if needed: the compiler's version for layouts that it does not
//! promise (most layouts are identified by their offsets), and the image's nonce for types that are
//! bound to one program image. Those include the hash of their [`TypeId`] as well, which within one
//! image tells apart what fields do not: `Foreign<A>` describes nothing of `A`.
//!
//! # The hash
//!
//! The first half of SHA-256. Code that opens an object as another type gets its bytes as that
//! type's values. So it must not be possible to *make* a type that has another's fingerprint by
//! computing a name or a constant, which safe code chooses. Finding one by trial takes safe code
//! 2^64 attempts.

use core::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
// Not `crate::primitive`: the one word here belongs to the process and to no protocol.
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::field::{Field, Part, Place};
use super::owned::OwnedKind;
use super::type_info::{Shape, TypeInfo};

/// Mixed in first, so that a change of the scheme changes every fingerprint.
const SCHEME: u64 = 2;

/// The compiler that built this crate, and so every program image that contains it.
const COMPILER: &str = env!("SHMKIT_RUSTC");

thread_local! {
    /// Fingerprints already computed. A lock here would be inherited, perhaps held, by a fork.
    static KNOWN: RefCell<HashMap<TypeId, u128>> = RefCell::default();
}

impl TypeInfo {
    /// A hash of the type's structure, equal in all programs that see the same structure: this is
    /// compared when an object is asked for by its name, or by a handle. [`TypeInfo`] says what
    /// counts.
    ///
    /// No choice of a name or a constant in a type gives it another type's fingerprint: that takes
    /// 2^64 attempts. The build does not matter, with two exceptions: types with an `Option` or a
    /// `Duration` in them have another fingerprint with another compiler, and those [bound to an
    /// image](super::ShmSafe::IMAGE_BOUND) have another one in another program.
    ///
    /// ```
    /// use shmkit::{ShmSafe, TypeInfo};
    ///
    /// mod old {
    ///     #[derive(shmkit::ShmSafe)]
    ///     pub struct Point { pub x: f64, pub y: f64 }
    /// }
    /// mod new {
    ///     #[derive(shmkit::ShmSafe)]
    ///     pub struct Point { pub x: f64, pub z: f64 }
    /// }
    ///
    /// let old = TypeInfo::of::<old::Point>().fingerprint();
    /// assert_ne!(old, TypeInfo::of::<new::Point>().fingerprint());
    /// ```
    pub fn fingerprint(&'static self) -> u128 {
        // While the thread's locals are torn down, there is no cache, and none is needed.
        let known = KNOWN.try_with(|known| known.borrow().get(&self.id).copied());
        if let Ok(Some(fingerprint)) = known {
            return fingerprint;
        }
        let fingerprint = self.compute();
        let _ = KNOWN.try_with(|known| known.borrow_mut().insert(self.id, fingerprint));
        fingerprint
    }

    fn compute(&'static self) -> u128 {
        self.compute_for(COMPILER, image_nonce)
    }

    fn compute_for(&'static self, compiler: &'static str, nonce: fn() -> u64) -> u128 {
        let mut walk = Walk {
            compiler,
            nonce,
            hash: Words::default(),
            numbers: HashMap::new(),
        };
        walk.hash.word(SCHEME);
        walk.visit(self);
        walk.hash.finish()
    }
}

/// A depth-first walk over a type and everything that it refers to.
struct Walk {
    compiler: &'static str,
    nonce: fn() -> u64,
    hash: Words,
    numbers: HashMap<TypeId, u64>,
}

/// Separates the kinds of things that are hashed, so that no two sequences read alike.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Tag {
    Seen = 1,
    Scalar,
    Sequence,
    Record,
    Variants,
    Variant,
    Library,
    Link,
    Block,
    At,
    Within,
    Mentioned,
    Constant,
    CompilerLayout,
    ImageBound,
    Engine,
}

impl Walk {
    fn visit(&mut self, info: &'static TypeInfo) {
        // A scalar takes no more words than its number would.
        if !matches!(info.shape, Shape::Scalar) {
            let next = self.numbers.len() as u64;
            if let Some(&number) = self.numbers.get(&info.id) {
                self.hash.tag(Tag::Seen);
                self.hash.word(number);
                return;
            }
            self.numbers.insert(info.id, next);
        }
        if info.compiler_layout {
            self.hash.tag(Tag::CompilerLayout);
            self.hash.text(self.compiler);
        }
        if info.image_bound {
            self.hash.tag(Tag::ImageBound);
            self.hash.word((self.nonce)());
            let mut id = DefaultHasher::new();
            info.id.hash(&mut id);
            self.hash.word(id.finish());
        }
        self.shape(info);
    }

    fn shape(&mut self, info: &'static TypeInfo) {
        match info.shape {
            Shape::Scalar => self.head(Tag::Scalar, info),
            Shape::Sequence { element, len } => {
                self.head(Tag::Sequence, info);
                self.hash.word(len as u64);
                self.part(element);
            }
            Shape::Record(fields) => {
                self.head(Tag::Record, info);
                self.fields(fields);
            }
            Shape::Variants {
                repr,
                parameters,
                variants,
            } => {
                self.head(Tag::Variants, info);
                self.hash.text(repr);
                self.fields(parameters);
                self.hash.word(variants.len() as u64);
                for variant in variants {
                    self.hash.tag(Tag::Variant);
                    self.hash.text(variant.name);
                    self.hash.wide(variant.discriminant);
                    self.fields(variant.fields);
                }
            }
            Shape::Library(fields) => {
                self.head(Tag::Library, info);
                self.fields(fields);
            }
            Shape::Owned(OwnedKind::Link(target)) => {
                self.head(Tag::Link, info);
                self.visit(target());
            }
            Shape::Owned(OwnedKind::Block) => self.head(Tag::Block, info),
            Shape::Owned(OwnedKind::Engine(engine)) => {
                self.head(Tag::Engine, info);
                self.hash.word(engine as u64);
            }
        }
    }

    fn head(&mut self, tag: Tag, info: &TypeInfo) {
        self.hash.tag(tag);
        self.hash.text(info.name);
        self.hash.word(info.size as u64);
        self.hash.word(info.align as u64);
    }

    fn fields(&mut self, fields: &'static [Field]) {
        self.hash.word(fields.len() as u64);
        for field in fields {
            self.hash.text(field.name);
            match field.place {
                Place::At { offset, part } => {
                    self.hash.tag(Tag::At);
                    self.hash.word(offset as u64);
                    self.part(part);
                }
                Place::Within(part) => {
                    self.hash.tag(Tag::Within);
                    self.part(part);
                }
                Place::Mentioned(ty) => {
                    self.hash.tag(Tag::Mentioned);
                    self.visit(ty());
                }
                Place::Constant(value) => {
                    self.hash.tag(Tag::Constant);
                    self.hash.wide(value);
                }
            }
        }
    }

    fn part(&mut self, part: Part) {
        self.visit((part.ty)());
    }
}

/// A number that tells this program image's processes from those of other images.
///
/// It is random at first use and inherited through fork. Code that maps a pool or forks asks for it
/// beforehand, so that parents and children agree. It is a word and not a `OnceLock`: a fork while
/// another thread initialises that would leave the child waiting for ever.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn image_nonce() -> u64 {
    static NONCE: AtomicU64 = AtomicU64::new(0);

    // Relaxed: the number itself is all that is published.
    let known = NONCE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // The standard library seeds this from the system's random numbers and cannot fail.
    let fresh = RandomState::new().hash_one(COMPILER) | 1;
    match NONCE.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => fresh,
        Err(winner) => winner,
    }
}

/// What is hashed.
#[derive(Default)]
struct Words(Sha256);

impl Words {
    fn word(&mut self, word: u64) {
        self.0.update(word.to_le_bytes());
    }

    fn tag(&mut self, tag: Tag) {
        self.word(tag as u64);
    }

    fn wide(&mut self, value: i128) {
        self.word(value as u64);
        self.word((value >> 64) as u64);
    }

    /// The length first, so that the end of one text is not the start of the next.
    fn text(&mut self, text: &str) {
        self.word(text.len() as u64);
        for chunk in text.as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(bytes));
        }
    }

    fn finish(self) -> u128 {
        let [half, _]: [[u8; 16]; 2] = bytemuck::cast(<[u8; 32]>::from(self.0.finalize()));
        u128::from_be_bytes(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_stay() {
        // Computed by another implementation of what the module's header describes.
        let golden = [
            (
                TypeInfo::of::<u32>(),
                0x027c_8e52_9416_090f_be68_fafd_0a63_bc79,
            ),
            (
                TypeInfo::of::<[u32; 3]>(),
                0xb01c_6cc2_9149_fdb9_3bd8_fd5a_86a2_9a23,
            ),
        ];
        for (info, fingerprint) in golden {
            assert_eq!(info.compute(), fingerprint, "{info:?}");
        }
    }

    #[test]
    fn texts_are_told_apart_by_length() {
        let hash = |texts: &[&str]| {
            let mut words = Words::default();
            texts.iter().for_each(|text| words.text(text));
            words.finish()
        };
        assert_ne!(hash(&["a"]), hash(&["a\0"]));
        assert_ne!(hash(&["a", "b"]), hash(&["ab"]));
        assert_ne!(hash(&["a", "b"]), hash(&["b", "a"]));
    }

    #[test]
    fn another_compiler_or_image_differs_where_it_matters() {
        struct Bound;
        // SAFETY: there are no bytes.
        unsafe impl crate::ShmSafe for Bound {
            const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>("Bound", &[]);
            const IMAGE_BOUND: bool = true;
        }
        let differs = |info: &'static TypeInfo| {
            let here = info.compute_for("here", || 1);
            let by_compiler = here != info.compute_for("elsewhere", || 1);
            let by_image = here != info.compute_for("here", || 2);
            (by_compiler, by_image)
        };
        assert_eq!(differs(TypeInfo::of::<(u8, [u64; 2])>()), (false, false));
        assert_eq!(differs(TypeInfo::of::<(u8, Option<u64>)>()), (true, false));
        assert_eq!(differs(TypeInfo::of::<(u8, [Bound; 2])>()), (false, true));
    }

    #[test]
    fn what_is_bound_to_the_image_is_told_by_its_type() {
        use crate::Foreign;
        let numbers = TypeInfo::of::<Foreign<[usize; 2]>>();
        assert_eq!(numbers.compute(), numbers.compute());
        let text = TypeInfo::of::<Foreign<&'static str>>();
        assert_ne!(numbers.compute(), text.compute());
        // Inside another type, too.
        let (numbers, text) = (
            TypeInfo::of::<(u8, [Foreign<[usize; 2]>; 2])>(),
            TypeInfo::of::<(u8, [Foreign<&'static str>; 2])>(),
        );
        assert_ne!(numbers.compute(), text.compute());
    }

    #[test]
    fn the_nonce_stays_within_a_process() {
        let nonce = image_nonce();
        assert_ne!(nonce, 0);
        assert_eq!(nonce, image_nonce());
        assert_eq!(
            Ok(nonce),
            std::thread::spawn(image_nonce).join().map_err(drop)
        );
    }

    #[test]
    fn the_cache_gives_what_is_computed() {
        let info = TypeInfo::of::<Option<(u8, u64)>>();
        assert_eq!(info.fingerprint(), info.compute());
        assert_eq!(info.fingerprint(), info.compute());
    }
}
