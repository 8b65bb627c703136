//! Matrices.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use shmkit::numbers::{self, NumbersError};
use shmkit::process::scope;
use shmkit::{Array, ElementError, KillSafe, Matrix, Pool, ResizeError, ShapeError, ShmSafe};

use crate::{Sealed, allocated, assert_sound, on_random, pool};

/// A row that is of another length each time it is asked.
struct Wavering(Cell<usize>);

impl AsRef<[u8]> for Wavering {
    fn as_ref(&self) -> &[u8] {
        let asked = self.0.replace(self.0.get() + 1);
        &[0; 4][..2 + asked % 2 * 2]
    }
}

#[derive(Clone, Debug)]
enum Step {
    Get(usize, usize),
    Set(usize, usize, u64),
    Update(usize, usize, u64),
    Grow(usize, u64),
    Row(usize),
    WriteRow(usize, u64),
    Rows(usize, usize),
    WriteRows(usize, usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (row, column) = (|| 0..20_usize, || 0..6_usize);
    let value = any::<u64>;
    prop_oneof![
        (row(), column()).prop_map(|(r, c)| Step::Get(r, c)),
        (row(), column(), value()).prop_map(|(r, c, v)| Step::Set(r, c, v)),
        (row(), column(), value()).prop_map(|(r, c, v)| Step::Update(r, c, v)),
        (row(), value()).prop_map(|(n, v)| Step::Grow(n, v)),
        row().prop_map(Step::Row),
        (row(), value()).prop_map(|(r, v)| Step::WriteRow(r, v)),
        (row(), row()).prop_map(|(a, b)| Step::Rows(a, b)),
        (row(), row(), value()).prop_map(|(a, b, v)| Step::WriteRows(a, b, v)),
    ]
}

/// Runs the steps on a matrix of elements that `of` makes, and on `Vec`s.
fn compare<T>(pool: Pool, columns: usize, steps: &[Step], of: fn(u64) -> T)
where
    T: KillSafe + Unpin + Copy + PartialEq + Debug,
{
    let element = |r, c| of((r * 10 + c) as u64);
    let matrix = Matrix::from_fn_in(pool, 3, columns, element).unwrap();
    let row = |r| (0..columns).map(|c| element(r, c)).collect::<Vec<_>>();
    let mut model: Vec<_> = (0..3).map(row).collect();
    for step in steps {
        let place = |r: usize, c: usize| model.get(r).and_then(|row| row.get(c)).copied();
        match *step {
            Step::Get(r, c) => assert_eq!(matrix.get(r, c).ok(), place(r, c)),
            Step::Set(r, c, v) => {
                assert_eq!(matrix.set(r, c, of(v)).ok(), place(r, c).map(|_| ()));
                if place(r, c).is_some() {
                    model[r][c] = of(v);
                }
            }
            Step::Update(r, c, v) => {
                assert_eq!(matrix.update(r, c, |_| of(v)).ok(), place(r, c));
                if place(r, c).is_some() {
                    model[r][c] = of(v);
                }
            }
            Step::Grow(n, v) => {
                assert_eq!(matrix.grow(n, of(v)).is_ok(), n >= model.len());
                model.resize(n.max(model.len()), vec![of(v); columns]);
            }
            Step::Row(r) => {
                let row = matrix.row(r).ok();
                assert_eq!(row.as_deref(), model.get(r).map(Vec::as_slice));
            }
            Step::WriteRow(r, v) => {
                let (row, expected) = (matrix.row_mut(r).ok(), model.get_mut(r));
                assert_eq!(row.is_some(), expected.is_some());
                if let (Some(mut row), Some(expected)) = (row, expected) {
                    assert_eq!(*row, **expected);
                    row.fill(of(v));
                    expected.fill(of(v));
                }
            }
            Step::Rows(a, b) => {
                let (band, expected) = (matrix.rows(a..b).ok(), model.get(a..b));
                assert_eq!(band.is_some(), expected.is_some());
                if let (Some(band), Some(expected)) = (band, expected) {
                    assert_eq!(band.dims(), (b - a, columns));
                    assert!(band.iter_rows().eq(expected));
                    assert!((0..b - a).all(|r| band.row(r) == expected[r]));
                }
            }
            Step::WriteRows(a, b, v) => {
                let (band, expected) = (matrix.rows_mut(a..b).ok(), model.get_mut(a..b));
                assert_eq!(band.is_some(), expected.is_some());
                if let (Some(mut band), Some(expected)) = (band, expected) {
                    assert!(!band.was_orphaned());
                    let rows = band.iter_rows_mut().zip(expected);
                    for ((row, expected), n) in rows.zip(0..) {
                        assert_eq!(row, expected);
                        row.fill(of(v ^ n));
                        expected.fill(of(v ^ n));
                    }
                }
            }
        }
        assert_eq!(matrix.dims(), (model.len(), columns));
    }
    assert_eq!(*matrix.rows(..).unwrap(), *model.concat());
}

pub fn matrices_behave_like_rows() {
    let pool = pool();
    drop(Matrix::filled_in(pool, 1, 1, 0_u8).unwrap());
    let before = allocated(pool);
    on_random(
        150,
        &(1..5_usize, vec(step(), 0..40)),
        |(columns, steps)| {
            compare(pool, columns, &steps, |v| v as u8);
            compare(pool, columns, &steps, |v| v as f64);
            compare(pool, columns, &steps, Sealed::new);
        },
    );
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

pub fn shapes() {
    let pool = pool();
    drop(Matrix::filled_in(pool, 1, 1, 0_u8).unwrap());
    let before = allocated(pool);
    let matrix = Matrix::filled_in(pool, 3, 4, 1_u8).unwrap();
    assert_eq!(matrix.dims(), (3, 4));
    let rows = Matrix::from_rows_in(pool, &[[1, 2, 3], [4, 5, 6]]).unwrap();
    assert_eq!((rows.dims(), rows.get(1, 0)), ((2, 3), Ok(4)));
    assert_eq!(rows.set(1, 0, 9), Ok(()));
    assert_eq!(rows.update(1, 0, |v| v + 1), Ok(9));
    assert_eq!(*rows.row(1).unwrap(), [10, 5, 6]);
    for row in [2, usize::MAX, usize::MAX / 3 + 1] {
        let refused = ElementError::RowOutOfBounds { row, rows: 2 };
        assert_eq!(rows.get(row, 2), Err(refused));
    }
    let (column, columns) = (3, 3);
    let refused = ElementError::ColumnOutOfBounds { column, columns };
    assert_eq!(rows.get(0, column), Err(refused));
    drop((matrix, rows));
    let refused = Matrix::from_rows_in(pool, &[Wavering(Cell::new(0))]).unwrap_err();
    let ragged = ShapeError::Ragged {
        row: 0,
        len: 4,
        columns: 2,
    };
    assert_eq!(refused, ragged);
    let refused = Matrix::filled_in(pool, 0, 4, 1_u8).unwrap_err();
    assert_eq!(
        refused,
        ShapeError::Empty {
            rows: 0,
            columns: 4
        }
    );
    assert!(Matrix::from_fn_in(pool, 4, 0, |_, _| 1_u8).is_err());
    assert!(Matrix::<u8>::from_rows_in(pool, &[[0_u8; 0]]).is_err());
    let refused = Matrix::filled_in(pool, usize::MAX, 2, 1_u8).unwrap_err();
    assert!(matches!(refused, ShapeError::Overflow { .. }));
    let refused = Matrix::from_rows_in(pool, &[vec![1_u8, 2], vec![3]]).unwrap_err();
    assert_eq!(
        refused,
        ShapeError::Ragged {
            row: 1,
            len: 1,
            columns: 2
        }
    );
    let refused = Matrix::filled_in(pool, 16 << 20, 2, 1_u8).unwrap_err();
    assert!(matches!(refused, ShapeError::OutOfMemory(_)));
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

pub fn bands() {
    let matrix = Matrix::from_fn_in(pool(), 4, 3, |r, c| r * 10 + c).unwrap();
    let mut top = matrix.rows_mut(..2).unwrap();
    assert!(matrix.rows(1..3).is_err());
    assert!(matrix.get(1, 2).is_err());
    let bottom = matrix.rows(2..).unwrap();
    assert_eq!((top.dims(), bottom.dims()), ((2, 3), (2, 3)));
    assert_eq!(
        (bottom.row(1), &bottom[3..]),
        (&[30, 31, 32][..], &[30, 31, 32][..])
    );
    for (to, from) in top.iter_rows_mut().zip(bottom.iter_rows()) {
        to.copy_from_slice(from);
    }
    top.row_mut(0)[2] = 7;
    assert_eq!(top[..], [20, 21, 7, 30, 31, 32]);
    assert_eq!(bottom.iter_rows().next_back().unwrap(), [30, 31, 32]);
    drop((top, bottom));
    assert_eq!(matrix.rows(4..).unwrap().iter_rows().len(), 0);
    assert!(matrix.rows(..=4).is_err() && matrix.row(4).is_err());
    matrix.row_mut(3).unwrap()[0] = 1;
    assert_eq!(matrix.get(3, 0), Ok(1));
}

pub fn a_matrix_grows() {
    let matrix = Matrix::filled_in(pool(), 2, 3, 1_u32).unwrap();
    matrix.grow(4, 2).unwrap();
    assert_eq!(
        (matrix.dims(), matrix.get(3, 2), matrix.get(1, 2)),
        ((4, 3), Ok(2), Ok(1))
    );
    let refused = matrix.grow(3, 0).unwrap_err();
    assert_eq!(refused, ResizeError::Shorter { len: 4 }.into());
    assert_eq!(matrix.fill(1, 1, 0), Err(ShapeError::NotEmpty));
    assert_eq!((matrix.dims(), matrix.get(3, 2)), ((4, 3), Ok(2)));
}

#[derive(ShmSafe)]
struct Model {
    steps: u32,
    weights: Matrix<f32>,
}

pub fn a_matrix_in_a_struct() {
    let model = Model {
        steps: 3,
        weights: Matrix::new(),
    };
    let model = pool().create(model).unwrap();
    assert_eq!((model.steps, model.weights.dims()), (3, (0, 0)));
    assert!(model.weights.fill(8 << 20, 2, 0.5).is_err());
    let (column, columns) = (0, 0);
    let refused = ElementError::ColumnOutOfBounds { column, columns };
    assert_eq!(model.weights.get(0, 0), Err(refused));
    assert!(model.weights.grow(3, 0.0).is_err());
    assert_eq!(model.weights.rows(..).unwrap().iter_rows().len(), 0);
    assert!(model.weights.is_empty());
    model.weights.fill(8, 2, 0.5).unwrap();
    assert!(!model.weights.is_empty());
    assert_eq!(model.weights.get(7, 1), Ok(0.5));
}

pub fn bands_across_processes() {
    let matrix = Matrix::filled_in(pool(), 16, 100, 0_u64).unwrap();
    scope(|s| {
        for worker in 0..4 {
            let matrix = &matrix;
            s.spawn(move || {
                let mut band = matrix.rows_mut(worker * 4..worker * 4 + 4).unwrap();
                for (r, row) in band.iter_rows_mut().enumerate() {
                    row.fill((worker * 4 + r) as u64);
                }
            })
            .unwrap();
        }
    });
    let all = matrix.rows(..).unwrap();
    for (r, row) in all.iter_rows().enumerate() {
        assert!(row.iter().all(|&v| v == r as u64));
    }
}

/// What is described is one of the arrays that ever had the name, with a length that it had.
pub fn what_is_replaced_is_described() {
    const ROUNDS: u64 = 10_000;
    let pool = pool();
    let done = pool.create(AtomicBool::new(false)).unwrap();
    scope(|s| {
        let done = &done;
        let child = s.spawn(move || {
            for round in 0..ROUNDS {
                let array = Array::filled_in(pool, 100, 7_u64).unwrap();
                pool.set_name("numbers", &array).unwrap();
                for n in 2..8 {
                    // Now and then there is time for two looks.
                    (0..round % 100).for_each(|_| std::hint::spin_loop());
                    array.grow(100 * n, 7).unwrap();
                }
                drop(array);
                pool.remove_name("numbers").unwrap();
                // In its place, and full of what is no length.
                drop(Array::filled_in(pool, 99 + (round % 7) as usize, round << 20 | 3).unwrap());
            }
            done.store(true, Ordering::SeqCst);
        });
        let child = child.unwrap();
        let mut seen = 0;
        while !done.load(Ordering::SeqCst) && !child.is_finished() {
            match numbers::describe(pool, "numbers") {
                Ok(found) => {
                    let len = found.shape[0];
                    assert!(len % 100 == 0 && len <= 700, "{found:?}");
                    seen += 1;
                }
                Err(NumbersError::NotFound | NumbersError::Changing) => {}
                Err(error) => panic!("{error}"),
            }
        }
        child.join().unwrap();
        assert!(seen > 0);
    });
}
