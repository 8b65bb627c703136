//! What lies where in a pool: as data, as text, and as a drawing.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::Pool;
use crate::allocator::walk::{self, Piece};
use crate::layout::arena::Arena;
use crate::participants::tag::Tag;
use crate::primitive::Ordering;

/// What a part of a pool's data is used for.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// let object = pool.create(7_u64)?;
/// let parts = inspect::map(pool).parts;
/// assert!(parts.iter().any(|part| matches!(part.usage, inspect::Use::Span { used: 1.., .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Use {
    /// Free; `holes` of its slices have no memory.
    Free {
        /// Slices without memory.
        holes: usize,
    },
    /// Blocks of one size.
    Span {
        /// The slot of its owner; 0 if nobody owns it.
        owner: usize,
        /// Bytes per block.
        block: usize,
        /// Blocks that are allocated.
        used: usize,
        /// Blocks in all.
        blocks: usize,
    },
    /// One block of whole slices.
    Run,
    /// Changing from one use to another.
    Changing,
}

/// A part of a pool's data.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// let parts = inspect::map(pool).parts;
/// // They lie one behind the other.
/// assert!(parts.windows(2).all(|two| two[0].start + two[0].slices == two[1].start));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// Its first slice.
    pub start: usize,
    /// How many slices of 16 KiB it has.
    pub slices: usize,
    /// What these slices are used for.
    pub usage: Use,
}

/// A map of a pool's data; [`fmt::Display`] draws it as text.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// println!("{}", inspect::map(pool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Map {
    /// The parts, in order, which together cover all slices of the pool.
    pub parts: Vec<Part>,
}

/// What lies where, at about this moment.
///
/// ```
/// # use shmkit::{Pool, inspect};
/// let pool = Pool::builder().max_size(4 << 20).create()?;
/// assert!(!inspect::map(pool).parts.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn map(pool: Pool) -> Map {
    map_of(pool.0)
}

pub(super) fn map_of(arena: Arena) -> Map {
    let mut parts: Vec<Part> = Vec::new();
    for (start, piece) in walk::pieces(arena) {
        let (slices, usage) = match piece {
            Piece::Free { slices, holes } => (slices, Use::Free { holes }),
            Piece::Span { slices, owner, .. } => (slices, span_use(arena, start, owner)),
            Piece::Run { slices, .. } => (slices, Use::Run),
            Piece::Other => (1, Use::Changing),
        };
        parts.push(Part {
            start,
            slices,
            usage,
        });
    }
    Map { parts }
}

fn span_use(arena: Arena, start: usize, owner: Tag) -> Use {
    let span = arena.span(start);
    Use::Span {
        owner: owner.slot(),
        block: span.size.load(Ordering::Relaxed) as usize,
        used: walk::blocks_of_span(arena, start).count(),
        blocks: span.blocks.load(Ordering::Relaxed) as usize,
    }
}

/// The number of slices in a row of a drawn map.
const ROW: usize = 64;

impl Part {
    /// `.` for free, `_` for free without memory, `0` to `9` for a span and how full it is, `#` for
    /// a run.
    fn letter(&self) -> char {
        match self.usage {
            Use::Free { holes } if holes == self.slices => '_',
            Use::Free { .. } => '.',
            Use::Span { used, blocks, .. } => {
                let tenth = (used * 9).div_ceil(blocks.max(1)).min(9);
                char::from(b'0' + tenth as u8)
            }
            Use::Run => '#',
            Use::Changing => '?',
        }
    }

    fn colour(&self) -> &'static str {
        match self.letter() {
            '_' => "#ffffff",
            '.' => "#e0e0e0",
            '#' => "#3060b0",
            '?' => "#d04040",
            '0'..='3' => "#c8e6c0",
            '4'..='6' => "#80c070",
            _ => "#308030",
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "16 KiB each: . free, _ free without memory, 0-9 a span, how full, # a run, - its rest"
        )?;
        let slices = self.parts.iter().flat_map(|part| {
            let first = part.letter();
            let rest = match part.usage {
                Use::Free { .. } => first,
                _ => '-',
            };
            std::iter::once(first).chain(std::iter::repeat_n(rest, part.slices - 1))
        });
        for (index, letter) in slices.enumerate() {
            if index % ROW == 0 {
                write!(f, "{}{index:>9} ", if index == 0 { "" } else { "\n" })?;
            }
            f.write_char(letter)?;
        }
        writeln!(f)
    }
}

impl Map {
    /// The map as a drawing in SVG: 64 slices to a row, each part with a title that says what it
    /// is.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect};
    /// let pool = Pool::builder().max_size(4 << 20).create()?;
    /// assert!(inspect::map(pool).to_svg().starts_with("<svg"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn to_svg(&self) -> String {
        const SIDE: usize = 12;
        let slices: usize = self.parts.iter().map(|part| part.slices).sum();
        let (width, height) = (ROW * SIDE, slices.div_ceil(ROW).max(1) * SIDE);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\">\n"
        );
        for part in &self.parts {
            let _ = writeln!(
                svg,
                "<g fill=\"{}\" stroke=\"#808080\" stroke-width=\"0.5\">",
                part.colour()
            );
            let _ = writeln!(svg, "<title>slice {}: {:?}</title>", part.start, part.usage);
            let mut at = part.start;
            let end = part.start + part.slices;
            while at < end {
                let stop = end.min((at / ROW + 1) * ROW);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{SIDE}\"/>",
                    at % ROW * SIDE,
                    at / ROW * SIDE,
                    (stop - at) * SIDE
                );
                at = stop;
            }
            svg.push_str("</g>\n");
        }
        svg.push_str("</svg>\n");
        svg
    }
}
