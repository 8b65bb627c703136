//! Single values, and elements of arrays and matrices.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shmkit::{Array, Matrix, Shared, SharedCell, ShmSafe};

use crate::crew::Crew;
use crate::maps::pool;

/// What the original's bench has in its variable: an integer, a float, and a short string.
#[derive(Clone, Copy, ShmSafe)]
struct Record {
    number: i64,
    real: f64,
    text: [u8; 8],
}

fn record(number: u64) -> Record {
    Record {
        number: number as i64,
        real: 1.5,
        text: *b"hello\0\0\0",
    }
}

const TIMES: u64 = 10_000_000;

pub fn run(crew: &Crew, bench: &str, subject: &str) {
    match (bench, subject) {
        ("cell_get", "shmkit") => {
            let cell = pool().create(SharedCell::new()).expect("a cell");
            cell.set([1_u64; 4]).expect("room");
            crew.repeat(TIMES, |_| {
                black_box(cell.get());
            });
        }
        ("cell_get", "arc-swap") => {
            let cell = ArcSwap::new(Arc::new([1_u64; 4]));
            crew.repeat(TIMES, |_| {
                black_box(**cell.load());
            });
        }
        ("record_get", _) => {
            let cell = pool().create(SharedCell::new()).expect("a cell");
            cell.set(record(0)).expect("room");
            crew.repeat(TIMES, |_| {
                black_box(cell.get());
            });
        }
        ("record_set", _) => {
            let cell = pool().create(SharedCell::new()).expect("a cell");
            crew.repeat(TIMES / 5, |i| cell.set(record(i)).expect("room"));
        }
        ("array_set" | "array_get" | "array_view", _) => array(crew, bench),
        ("matrix_set" | "matrix_get" | "matrix_view", _) => matrix(crew, bench),
        other => panic!("{other:?}"),
    }
}

/// Elements of the array, rows and columns of the matrix: as in the original's bench.
const LEN: usize = 1000;
const ROWS: usize = 100;
const COLUMNS: usize = 100;
/// How often a slice is gone through, element by element: for some tenths of a second, as the original is,
/// so that it does not count which worker has begun first.
const PASSES: u64 = 1_000_000;

#[allow(
    clippy::needless_range_loop,
    reason = "elements one by one are what is measured"
)]
fn array(crew: &Crew, bench: &str) {
    let array: Shared<Array<f64>> = Array::filled_in(pool(), LEN, 0.0).expect("an array");
    match bench {
        "array_set" => crew.repeat(TIMES, |i| {
            array.set(i as usize % LEN, 2.5).expect("an element");
        }),
        "array_get" => crew.repeat(TIMES, |i| {
            black_box(array.get(i as usize % LEN).expect("an element"));
        }),
        // As a slice, which is claimed once. By index, as in the original.
        _ => crew.run(|_, gate| {
            let elements = array.claim(..).expect("a claim");
            gate.work(|| {
                for _ in 0..PASSES {
                    for index in 0..LEN {
                        black_box(elements[index]);
                    }
                }
            });
            PASSES * LEN as u64
        }),
    }
}

#[allow(
    clippy::needless_range_loop,
    reason = "elements one by one are what is measured"
)]
fn matrix(crew: &Crew, bench: &str) {
    let matrix: Shared<Matrix<f64>> =
        Matrix::filled_in(pool(), ROWS, COLUMNS, 0.0).expect("a matrix");
    let place = |i: u64| (i as usize % ROWS, i as usize / ROWS % COLUMNS);
    match bench {
        "matrix_set" => crew.repeat(TIMES, |i| {
            let (row, column) = place(i);
            matrix.set(row, column, 2.5).expect("an element");
        }),
        "matrix_get" => crew.repeat(TIMES, |i| {
            let (row, column) = place(i);
            black_box(matrix.get(row, column).expect("an element"));
        }),
        _ => crew.run(|_, gate| {
            let band = matrix.rows(..).expect("a claim");
            gate.work(|| {
                for _ in 0..PASSES / 10 {
                    for row in 0..ROWS {
                        for column in 0..COLUMNS {
                            black_box(band.row(row)[column]);
                        }
                    }
                }
            });
            PASSES / 10 * (ROWS * COLUMNS) as u64
        }),
    }
}
