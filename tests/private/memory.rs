//! What a single thread gets.

use std::alloc::{GlobalAlloc as _, Layout};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Command;
use std::ptr::NonNull;

use shmkit::{AllocError, FreeError};

use super::HEAP;
use super::common::{Random, layout, program, refuse, succeeded};

#[track_caller]
pub fn assert_sound() {
    let report = HEAP.check_quiescent();
    assert!(report.is_ok(), "{report}");
}

fn allocate(size: usize) -> NonNull<u8> {
    HEAP.allocate(layout(size, 16)).unwrap()
}

fn free(block: NonNull<u8>) -> Result<(), FreeError> {
    // SAFETY: the tests use no block that they have freed; other pointers are refused by contract.
    unsafe { HEAP.deallocate(block) }
}

pub fn collections() {
    let before = HEAP.stats().allocated;
    {
        let mut random = Random::new(5);
        let mut tree = BTreeMap::new();
        let mut hash = HashMap::new();
        let mut queue = VecDeque::new();
        for i in 0..50_000_u64 {
            let key = random.next() % 5000;
            let text = "x".repeat(random.below(200));
            assert_eq!(
                tree.insert(key, text.clone()),
                hash.insert(key, text.clone())
            );
            queue.push_back(text);
            if i % 3 == 0 {
                let key = random.next() % 5000;
                assert_eq!(tree.remove(&key), hash.remove(&key));
                queue.pop_front();
            }
        }
        assert_eq!(tree.len(), hash.len());
        assert!(tree.iter().all(|(key, text)| hash[key] == *text));
        let mut long = String::new();
        for i in 0..100_000 {
            write!(long, "{i},").unwrap();
        }
        assert_eq!(long.split(',').count(), 100_001);
        assert!(HEAP.stats().allocated > before + long.len());
    }
    assert!(HEAP.stats().allocated < before + 4096);
    assert_sound();
}

pub fn zeroed_memory_is_zero() {
    let sizes = [1, 16, 100, 4000, 33_000, 100_000, 3_000_000];
    for round in 0..3 {
        for size in sizes {
            let layout = layout(size, 16);
            let block = HEAP.allocate_zeroed(layout).unwrap();
            // SAFETY: a new block of that size.
            let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), size) };
            assert!(
                bytes.iter().all(|&byte| byte == 0),
                "{size} in round {round}"
            );
            bytes.fill(0xff);
            free(block).unwrap();
        }
    }
}

/// Bytes of memory that the process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

pub fn memory_goes_back() {
    const SIZE: usize = 100 << 20;
    let before = resident();
    let mut blocks: Vec<_> = (0..100).map(|_| vec![1_u8; SIZE / 100]).collect();
    assert!(resident() > before + SIZE * 9 / 10);
    blocks.clear();
    HEAP.purge().unwrap();
    assert!(resident() < before + SIZE / 10);
    // And is used again.
    let again = vec![2_u8; SIZE];
    assert!(again.iter().all(|&byte| byte == 2));
}

/// The flags that the kernel has for the mapping that a block lies in; none without huge pages.
fn mapping_flags(block: NonNull<u8>) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        let number = |digits| usize::from_str_radix(digits, 16).ok();
        if let Some((Some(from), Some(to))) = range.map(|(from, to)| (number(from), number(to))) {
            inside = (from..to).contains(&block.addr().get());
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    Vec::new()
}

/// Large data without them takes a third to a half more time, but nothing else shows it: a heap whose
/// advice is lost works as before. A small program, in turn, would take 2 MiB for its first block.
pub fn large_data_has_huge_pages() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return;
    }
    let is_huge = |block| mapping_flags(block).iter().any(|flag| flag == "hg");
    let run = allocate(8 << 20);
    assert!(is_huge(run));
    free(run).unwrap();
    // The first that the process has allocated: made before `main`.
    let first = allocate(16);
    let granule = 1 << 40;
    let data = 40 << 30;
    let start = first.addr().get() / granule * granule + data;
    assert!(!is_huge(
        NonNull::new(std::ptr::with_exposed_provenance_mut(start)).unwrap()
    ));
    free(first).unwrap();
}

pub fn refused_by_name() {
    let (small, large) = (allocate(100), allocate(1 << 20));
    let inside = |block: NonNull<u8>, offset| NonNull::new(block.as_ptr().wrapping_add(offset));
    let local = 0_u64;
    let stack = NonNull::from(&local).cast();
    assert_eq!(free(inside(small, 16).unwrap()), Err(FreeError::Interior));
    assert_eq!(free(inside(small, 1).unwrap()), Err(FreeError::Interior));
    assert_eq!(
        free(inside(large, 1 << 15).unwrap()),
        Err(FreeError::Interior)
    );
    assert_eq!(free(stack), Err(FreeError::Foreign));
    assert_eq!(HEAP.usable_size(stack), Err(FreeError::Foreign));
    free(small).unwrap();
    free(large).unwrap();
    assert_eq!(free(small), Err(FreeError::NotAllocated));
    assert_eq!(free(large), Err(FreeError::NotAllocated));
    assert_eq!(HEAP.usable_size(small), Err(FreeError::NotAllocated));
    assert_sound();
}

pub fn refused_through_the_global_allocator() {
    for role in ["frees_twice", "reallocates_what_is_freed"] {
        let output = program(role).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
        assert!(text.contains("freed already"), "{text}");
    }
}

pub fn frees_twice() {
    let layout = Layout::new::<[u64; 9]>();
    // SAFETY: the second is refused, and ends the process, by contract.
    unsafe {
        let block = HEAP.alloc(layout);
        HEAP.dealloc(block, layout);
        HEAP.dealloc(block, layout);
    }
}

pub fn reallocates_what_is_freed() {
    let layout = Layout::new::<[u64; 9]>();
    // SAFETY: the last call is refused, and ends the process, by contract.
    unsafe {
        let block = HEAP.alloc(layout);
        HEAP.dealloc(block, layout);
        HEAP.realloc(block, layout, 1000);
    }
}

/// Runs a copy of this program in a role, under a limit as the shell sets it.
fn run_limited(limit: &str, role: &str) {
    let this = program(role);
    let script = format!("ulimit {limit}; exec {:?} role:{role}", this.get_program());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    succeeded(&output);
}

pub fn a_limited_address_space() {
    run_limited("-v 1000000", "is_limited");
}

/// There is less to be had than the heap would begin with.
pub fn little_memory_to_begin_with() {
    run_limited("-d 40000", "has_little");
}

pub fn has_little() {
    drop(vec![1_u8; 4 << 20]);
    assert!(HEAP.stats().committed < 40_000 << 10);
    assert_sound();
}

/// Where the auxiliary vector must be read from a file: kernels before 6.4 do not tell it.
pub fn the_auxiliary_vector_is_not_told() {
    let mut role = program("has_freed_much");
    // SAFETY: the calls that the child makes before its program starts allocate nothing.
    unsafe {
        role.pre_exec(|| {
            refuse(libc::SYS_prctl, libc::EINVAL);
            Ok(())
        })
    };
    succeeded(&role.output().unwrap());
}

/// What is freed is looked after with a clock.
pub fn has_freed_much() {
    (0..3).for_each(|_| drop(vec![1_u8; 100 << 20]));
    assert_sound();
}

pub fn is_limited() {
    assert!(HEAP.stats().maximum < 512 << 20);
    let blocks: Vec<_> = (0..3).map(|_| vec![1_u8; 100 << 20]).collect();
    let refused = HEAP.allocate(layout(300 << 20, 16));
    assert_eq!(refused, Err(AllocError::PoolFull));
    drop(blocks);
    drop(vec![1_u8; 300 << 20]);
}

pub fn what_is_not_to_be_had() {
    let too_large = HEAP.allocate(layout(1 << 45, 16));
    assert_eq!(too_large, Err(AllocError::TooLarge));
    let mut kept = vec![7_u8; 100];
    assert!(kept.try_reserve_exact(1 << 45).is_err());
    assert_eq!(kept, [7_u8; 100]);
}
