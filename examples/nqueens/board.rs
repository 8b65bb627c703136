//! Solutions, and which of them are the same up to symmetry.
//!
//! A board is a word with four bits per column: the row of the column's queen. Mirrors are done to all
//! columns at once. The eight symmetries are two mirrors, applied to the board and to its transposition.

use std::hash::{BuildHasherDefault, Hasher};

/// Boards of up to this many rows fit in a word.
pub const LARGEST: u32 = 16;

/// A part of the search: the rows of the queens in the first two columns, which do not attack each
/// other.
#[derive(Clone, Copy)]
pub struct Part {
    first: u32,
    second: u32,
}

/// All parts of the search on a board of the given size.
pub fn parts(size: u32) -> Vec<Part> {
    let pairs = (0..size).flat_map(|first| (0..size).map(move |second| Part { first, second }));
    // There is no second column on the smallest board.
    pairs
        .filter(|part| size == 1 || part.first.abs_diff(part.second) > 1)
        .collect()
}

/// Calls `found` with each solution of a part of the search, up to the first error.
pub fn search<E>(
    size: u32,
    part: Part,
    mut found: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    let start = Columns {
        all: (1 << size) - 1,
        depth: 0,
        board: 0,
    };
    let attacks = Attacks::default();
    if size == 1 {
        return found(0);
    }
    let (start, attacks) = (start.with(part.first), attacks.with(1 << part.first));
    let (start, attacks) = (start.with(part.second), attacks.with(1 << part.second));
    let mut result = Ok(());
    start.fill(attacks, &mut |board| {
        result = found(board);
        result.is_ok()
    });
    result
}

/// The columns that have queens.
#[derive(Clone, Copy)]
struct Columns {
    /// A bit per row.
    all: u32,
    depth: u32,
    board: u64,
}

/// The rows of the next column that are attacked: along rows, and along both diagonals.
#[derive(Clone, Copy, Default)]
struct Attacks {
    rows: u32,
    rising: u32,
    falling: u32,
}

impl Attacks {
    /// The same for the column after the next, with a queen in that row of the next column.
    fn with(self, row: u32) -> Attacks {
        Attacks {
            rows: self.rows | row,
            rising: (self.rising | row) << 1,
            falling: (self.falling | row) >> 1,
        }
    }
}

impl Columns {
    fn with(self, row: u32) -> Columns {
        Columns {
            board: self.board | u64::from(row) << (4 * self.depth),
            depth: self.depth + 1,
            ..self
        }
    }

    /// Fills the columns that are left, in every way, as long as `found` says to go on. Only whether it
    /// does is returned: that fits into a register, while an error would have to be handed from column
    /// to column.
    fn fill(self, attacks: Attacks, found: &mut impl FnMut(u64) -> bool) -> bool {
        let mut free = self.all & !(attacks.rows | attacks.rising | attacks.falling);
        while free != 0 {
            let row = free & free.wrapping_neg();
            free ^= row;
            let next = self.with(row.trailing_zeros());
            let goes_on = match attacks.rows | row == self.all {
                true => found(next.board),
                false => next.fill(attacks.with(row), found),
            };
            if !goes_on {
                return false;
            }
        }
        true
    }
}

/// The smallest of the boards that a board becomes by turning and mirroring.
pub fn representative(size: u32, board: u64) -> u64 {
    let mut transposed = 0;
    for column in 0..size {
        let row = board >> (4 * column) & 0xf;
        transposed |= u64::from(column) << (4 * row);
    }
    let least = |board| {
        let mirrored = mirror(size, board);
        let others = [
            mirrored,
            upside_down(size, board),
            upside_down(size, mirrored),
        ];
        others.into_iter().fold(board, u64::min)
    };
    least(board).min(least(transposed))
}

/// The last column becomes the first.
fn mirror(size: u32, board: u64) -> u64 {
    let swapped = board.swap_bytes();
    let reversed = (swapped & 0x0f0f_0f0f_0f0f_0f0f) << 4 | swapped >> 4 & 0x0f0f_0f0f_0f0f_0f0f;
    reversed >> (64 - 4 * size)
}

/// The last row becomes the first. No column borrows from the next.
fn upside_down(size: u32, board: u64) -> u64 {
    let ones = 0x1111_1111_1111_1111 >> (64 - 4 * size);
    ones * u64::from(size - 1) - board
}

/// A hasher for boards: a multiplication, folded.
#[derive(Default)]
pub struct BoardHasher(u64);

impl Hasher for BoardHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Boards, in the memory of one process.
pub type Boards = std::collections::HashSet<u64, BuildHasherDefault<BoardHasher>>;
