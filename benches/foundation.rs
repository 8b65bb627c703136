//! What the foundations cost, each beside what one would use without them.
#![allow(
    missing_docs,
    reason = "the macros of criterion make a public function"
)]

use std::alloc::Layout;
use std::hint::black_box;
use std::time::Duration;

use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use shmkit::process::scope;
use shmkit::{Matrix, Mutex, Pool};

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    group
}

fn mutex_uncontended(c: &mut Criterion) {
    let pool = Pool::builder().create().unwrap();
    let ours = pool.create(Mutex::new(0_u64)).unwrap();
    let std = std::sync::Mutex::new(0_u64);
    let parking_lot = parking_lot::Mutex::new(0_u64);
    let mut group = group(c, "mutex_uncontended");
    group.bench_function("shmkit", |b| b.iter(|| *ours.lock().unwrap() += 1));
    group.bench_function("std", |b| b.iter(|| *std.lock().unwrap() += 1));
    group.bench_function("parking_lot", |b| b.iter(|| *parking_lot.lock() += 1));
    group.finish();
    black_box((std, parking_lot));
}

fn spawn_join(c: &mut Criterion) {
    let mut group = group(c, "spawn_join");
    group.bench_function("shmkit", |b| {
        b.iter(|| scope(|s| s.spawn(|| 7_u64).unwrap().join().unwrap()));
    });
    group.bench_function("fork_wait", |b| {
        b.iter(|| {
            // SAFETY: the child exits at once; the parent waits for it.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::_exit(0);
                }
                assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
            }
        });
    });
    group.finish();
}

fn alloc_free_64(c: &mut Criterion) {
    let pool = Pool::builder().create().unwrap();
    let layout = Layout::from_size_align(64, 8).unwrap();
    let mut group = group(c, "alloc_free_64");
    group.bench_function("shmkit", |b| {
        b.iter(|| {
            let block = black_box(pool.allocate(layout).unwrap());
            // SAFETY: allocated just now, not used any more.
            unsafe { pool.deallocate(block.cast()) }.unwrap();
        });
    });
    group.bench_function("system", |b| {
        b.iter(|| {
            // SAFETY: allocated just now with that layout, not used any more.
            unsafe { std::alloc::dealloc(black_box(std::alloc::alloc(layout)), layout) }
        });
    });
    group.finish();
}

/// The sum of each row; one copy of the code, wherever the rows are.
#[inline(never)]
fn row_sums<T: Copy + std::iter::Sum>(cells: &[T], columns: usize, sums: &mut [T]) {
    for (sum, row) in sums.iter_mut().zip(cells.chunks_exact(columns)) {
        *sum = row.iter().copied().sum();
    }
}

fn matrix_row_sum(c: &mut Criterion) {
    const SIDE: usize = 1000;
    let cell = |row: usize, column: usize| (row * SIDE + column) as f64;
    let pool = Pool::builder().create().unwrap();
    let ours = Matrix::from_fn_in(pool, SIDE, SIDE, cell).unwrap();
    let slice: Vec<f64> = (0..SIDE * SIDE).map(|i| cell(i / SIDE, i % SIDE)).collect();
    let mut sums = vec![0.0; SIDE];
    let mut group = group(c, "matrix_row_sum");
    group.bench_function("shmkit", |b| {
        b.iter(|| {
            let band = ours.rows(..).unwrap();
            row_sums(black_box(&band[..]), SIDE, &mut sums);
        });
    });
    group.bench_function("slice", |b| {
        b.iter(|| row_sums(black_box(&slice[..]), SIDE, &mut sums));
    });
    group.finish();
    black_box(sums);
}

criterion_group!(
    benches,
    mutex_uncontended,
    spawn_join,
    alloc_free_64,
    matrix_row_sum
);
criterion_main!(benches);
