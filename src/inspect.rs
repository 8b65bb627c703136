//! Reports about a pool, as data: who has how much, what lies where, what nobody can reach.
//!
//! All of it is counted from the pool's authoritative words when it is asked for; nothing is kept.
//! Nothing is printed: the reports can be looked through, or shown (`Display`).
//!
//! ```
//! use shmkit::{Pool, inspect};
//!
//! let pool = Pool::builder().max_size(4 << 20).create()?;
//! let object = pool.create([1_u64; 1000])?;
//! let mine = &inspect::participants(pool)[0];
//! assert!(mine.process == std::process::id() && mine.allocated >= 8000);
//! println!("{}", inspect::map(pool));
//! assert!(inspect::leaks(pool).is_empty());
//! drop(object);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Pool;
use crate::allocator::walk::{self, Piece};
use crate::layout::arena::{Arena, SLICE};
use crate::participants::detect;
use crate::participants::table::SlotPhase;
use crate::participants::tag::Tag;
use crate::pool::objects::{self, Phase};
use crate::pool::{names, types};

/// What one thread has in a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Participant {
    /// Its slot; 0 stands for nobody: what ended and dead threads left, for anybody to take.
    pub slot: usize,
    /// Its process's id; 0 where that is not known.
    pub process: u32,
    /// Spans that it has.
    pub spans: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// Bytes of the blocks in them that are allocated, by whomever they are used.
    pub allocated: usize,
}

/// Who has how much: nobody first, if nobody has anything, then the threads by their slots.
///
/// Blocks of whole slices (above 32 KiB) have no owner and are not counted here.
#[must_use]
pub fn participants(pool: Pool) -> Vec<Participant> {
    let arena = pool.0;
    let mut all: BTreeMap<usize, Participant> = BTreeMap::new();
    for (slot, entry) in arena.slots() {
        if matches!(entry.state().phase, SlotPhase::Live | SlotPhase::Parked) {
            let record = Tag::of_word(entry.watched.process.load(Ordering::Acquire));
            let known = record.slot() != 0 && record.slot() < arena.process_count();
            let pid = known.then(|| arena.process(record.slot()).pid.load(Ordering::Relaxed));
            let process = pid.unwrap_or(0) as u32;
            let participant = Participant {
                slot,
                process,
                ..Participant::default()
            };
            all.insert(slot, participant);
        }
    }
    for (_, piece) in walk::pieces(arena) {
        let Piece::Span {
            start,
            slices,
            owner,
        } = piece
        else {
            continue;
        };
        let slot = owner.slot();
        let entry = all.entry(slot).or_insert(Participant {
            slot,
            ..Participant::default()
        });
        entry.spans += 1;
        entry.bytes += slices * SLICE;
        let blocks = walk::blocks_of_span(arena, start);
        entry.allocated += blocks.map(|(_, size)| size).sum::<usize>();
    }
    all.into_values().collect()
}

/// What a part of a pool's data is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Use {
    /// Free; `holes` of its slices have no memory.
    Free {
        /// Slices without memory.
        holes: usize,
    },
    /// Blocks of one size.
    Span {
        /// The slot of its owner; 0 for nobody.
        owner: usize,
        /// Bytes a block.
        block: usize,
        /// Blocks that are allocated.
        used: usize,
        /// Blocks that there are.
        blocks: usize,
    },
    /// One block of whole slices.
    Run,
    /// On its way from one use to another.
    Changing,
}

/// A part of a pool's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Its first slice.
    pub start: usize,
    /// How many slices of 16 KiB it has.
    pub slices: usize,
    /// What they are used for.
    pub usage: Use,
}

/// A map of a pool's data; [`fmt::Display`] draws it as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Map {
    /// The parts, one behind the other, all slices of the pool.
    pub parts: Vec<Part>,
}

/// What lies where, at about this moment.
#[must_use]
pub fn map(pool: Pool) -> Map {
    let arena = pool.0;
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

/// Slices in a row of a drawn map.
const ROW: usize = 64;

impl Part {
    /// `.` free, `_` free without memory, `0` to `9` a span and how full it is, `#` a run.
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
    /// The map as a drawing in SVG: 64 slices a row, each part with a title that says what it is.
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

/// What nobody can reach; see [`leaks`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leaks {
    /// Objects that are reached from no name and no handle: cycles of links.
    pub objects: usize,
    /// Blocks, as address and bytes; those of such objects too.
    pub blocks: Vec<(usize, usize)>,
}

impl Leaks {
    /// True if everything can be reached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|(_, size)| size).sum()
    }
}

/// The blocks that are reached from no named object and no handle, while nobody is using the pool.
///
/// A block is reached if an object that is reached has it, links to it, or if any word of a reached
/// block is an address in it, or names it as maps name their nodes. So a leak can be missed, where
/// a number happens to look like a name, but not invented, but for one thing: a raw block ([`Pool::allocate`]) that only private memory knows of is
/// reported: the pool does not know that it is in use.
#[must_use]
pub fn leaks(pool: Pool) -> Leaks {
    let arena = pool.0;
    let blocks: BTreeMap<usize, usize> = walk::blocks(arena).into_iter().collect();
    let named: BTreeSet<usize> = names::all(arena)
        .into_iter()
        .map(|(_, index)| index)
        .collect();
    let live = |index: usize| {
        let entry = arena.object(index);
        entry.filter(|entry| entry.state().phase == Phase::Live)
    };
    let mut objects: Vec<usize> = (0..arena.object_count())
        .filter(|&index| live(index).is_some())
        .filter(|index| named.contains(index) || objects::is_held(arena, *index))
        .collect();
    let mut seen: BTreeSet<usize> = objects.iter().copied().collect();
    let mut reached: BTreeSet<usize> = BTreeSet::new();
    // What was unlinked and is not freed yet.
    for (_, slot) in arena.slots() {
        let retired = slot.limbo.head.load(Ordering::Relaxed) as usize;
        reach(&blocks, retired, &mut reached);
    }
    while let Some(index) = objects.pop() {
        let Some(entry) = live(index) else { continue };
        let address = entry.address.load(Ordering::Acquire) as usize;
        let Some(size) = blocks.get(&address) else {
            continue;
        };
        reach(&blocks, address, &mut reached);
        for word in types::owned_words(arena, entry.kind(), *size) {
            if word.offset.is_multiple_of(8)
                && word.kind == types::Owned::Link
                && let value = detect::value(read(address + word.offset))
                && let Some(target) = (value as usize).checked_sub(1)
                && seen.insert(target)
            {
                objects.push(target);
            }
        }
    }
    let unreached = |address: &usize| !reached.contains(address);
    Leaks {
        objects: (0..arena.object_count())
            .filter(|&index| live(index).is_some() && !seen.contains(&index))
            .count(),
        blocks: blocks
            .iter()
            .filter(|(address, _)| unreached(address))
            .map(|(address, size)| (*address, *size))
            .collect(),
    }
}

/// Notes the block that an address lies in, and the blocks that words of its content lead to.
fn reach(blocks: &BTreeMap<usize, usize>, address: usize, reached: &mut BTreeSet<usize>) {
    let within = |address: usize| {
        let (start, size) = blocks.range(..=address).next_back()?;
        (address - start < *size).then_some((*start, *size))
    };
    let mut todo = vec![address];
    while let Some(address) = todo.pop() {
        if let Some((start, size)) = within(address)
            && reached.insert(start)
        {
            for at in (start..start + size).step_by(8) {
                todo.push(read(at) as usize);
            }
        }
    }
}

/// A word of an allocated block.
fn read(address: usize) -> u64 {
    // SAFETY: a whole word, at a multiple of eight, of a block that the pool's tags say is
    // allocated, so it is mapped and committed. Others may write to it: the load is atomic.
    unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address) }.load(Ordering::Relaxed)
}
