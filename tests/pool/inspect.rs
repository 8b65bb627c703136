//! Reports: how much each participant has, what lies where, what leaks.

use allocator_api2::vec::Vec as PoolVec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shmkit::inspect::{self, Leaks, Observer, Use};
use shmkit::process::scope;
use shmkit::{
    Array, AttachError, Foreign, HashMap, Link, Matrix, Pool, PoolAlloc, SharedCell, ShmSafe,
};

use super::common::{Random, TestPool, allocate, fork, free, leave, reap};

#[derive(ShmSafe)]
struct Node {
    next: Link<Node>,
    numbers: Array<u64>,
}

fn node() -> Node {
    Node {
        next: Link::null(),
        numbers: Array::new(),
    }
}

pub fn participants_and_what_they_have() {
    let pool = TestPool::new();
    let small: Vec<_> = (0..100).map(|_| allocate(*pool, 1000)).collect();
    let all = inspect::participants(*pool);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].process, std::process::id());
    assert_eq!(all[0].allocated, 100 * 1024);
    assert!(all[0].spans >= 2 && all[0].bytes >= all[0].allocated);
    scope(|s| {
        let child = s.spawn(|| {
            let mine = allocate(*pool, 500);
            let all = inspect::participants(*pool);
            let me = all.iter().find(|one| one.process == std::process::id());
            assert!(all.len() == 2 && me.unwrap().allocated == 512);
            let _ = mine;
        });
        child.unwrap().join().unwrap();
    });
    // The child's block lives on in a span that is nobody's.
    let all = inspect::participants(*pool);
    assert_eq!((all[0].slot, all[0].allocated), (0, 512));
    assert_eq!(all[1].allocated, 100 * 1024);
    small.into_iter().for_each(|block| free(*pool, block));
}

/// Makes objects of all kinds, names and links them, and removes them again, for ever.
fn busy(pool: Pool, name: &str) {
    loop {
        let numbers = pool.named_or_create("numbers", Array::<u8>::new).unwrap();
        let node = pool.named_or_create(name, node).unwrap();
        let next = pool.create(self::node()).unwrap();
        node.next.set(Some(&next)).unwrap();
        node.next.set(Some(&node)).unwrap();
        node.next.set(None).unwrap();
        let matrix = Matrix::filled_in(pool, 2, 3, 0.5).unwrap();
        let mine = format!("{name} matrix");
        // Of one that has died.
        let _ = pool.remove_name(&mine);
        pool.set_name(&mine, &matrix).unwrap();
        matrix.grow(20, 1.0).unwrap();
        let _ = numbers.extend_from_slice(&[1; 7]);
        if numbers.len() > 1_000 {
            let _ = pool.remove_name("numbers");
        }
        let _ = pool.remove_name(name);
        pool.remove_name(&mine).unwrap();
    }
}

/// What holds at every instant does, whatever the living do, and whenever the others die.
pub fn nothing_is_damaged_at_any_look() {
    let name = format!("test-looks-{}", std::process::id());
    let pool = TestPool::of(Pool::builder().create_named(&name).unwrap());
    let observer = Observer::open(&name).unwrap();
    Pool::unlink(&name).unwrap();
    let mut random = Random::new(3);
    let mut seen = 0;
    for _ in 0..100 {
        let children = ["first", "second"].map(|name| {
            fork().unwrap_or_else(|| {
                // SAFETY: changes what this process hears of; it goes with its case.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                busy(*pool, name);
                leave(false)
            })
        });
        for _ in 0..random.below(60) {
            let report = observer.check();
            assert!(report.is_ok(), "{report}");
            seen += report.objects;
            let objects = observer.objects();
            assert!(objects.iter().all(|object| !object.damaged), "{objects:?}");
        }
        for child in children {
            // SAFETY: a child of ours that was not waited for.
            assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
            reap(child);
            let report = observer.check();
            assert!(report.is_ok(), "{report}");
        }
        pool.recover();
        let report = pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
    }
    assert!(seen > 0);
}

pub fn a_map_of_the_data() {
    let pool = TestPool::with(|builder| builder.initial_size(4 << 20).max_size(4 << 20));
    let run = allocate(*pool, 100_000);
    let small = allocate(*pool, 100);
    let map = inspect::map(*pool);
    let mut next = 0;
    for part in &map.parts {
        assert_eq!(part.start, next);
        next += part.slices;
    }
    assert_eq!(next, (4 << 20) >> 14);
    let runs = map.parts.iter().filter(|part| part.usage == Use::Run);
    assert_eq!(runs.map(|part| part.slices).collect::<Vec<_>>(), [7]);
    let spans: usize = map.parts.iter().map(used).sum();
    assert_eq!(spans, 1);
    let text = map.to_string();
    assert!(
        text.contains("#------") && text.lines().count() == 5,
        "{text}"
    );
    let svg = map.to_svg();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<title>").count(), map.parts.len());
    free(*pool, run);
    free(*pool, small);
    pool.purge().unwrap();
    assert!(inspect::map(*pool).to_string().contains("_______"));
}

pub fn a_copy_is_not_the_pool_itself() {
    let name = format!("copied-{}", std::process::id());
    let pool = Pool::builder()
        .max_size(4 << 20)
        .create_named(&name)
        .unwrap();
    let observer = Observer::open(&name).unwrap();
    // SAFETY: nothing in it is opened.
    let copy = unsafe { observer.into_copy() };
    Pool::unlink(&name).unwrap();
    let (base, taken) = (pool.base(), copy.unwrap_err());
    assert!(matches!(taken, AttachError::AddressTaken { base: at, .. } if at == base));
    // SAFETY: nothing refers to it.
    unsafe { pool.unmap() };
}

fn used(part: &inspect::Part) -> usize {
    match part.usage {
        Use::Span { used, .. } => used,
        _ => 0,
    }
}

pub fn leaks_are_what_nobody_reaches() {
    let pool = TestPool::new();
    let nothing = Leaks::default();
    assert_eq!(inspect::leaks(*pool), nothing);
    // Reached by a handle, a name, a link, an owner, and words of another crate's collection.
    let head = pool.create(node()).unwrap();
    head.numbers.grow(1000, 7).unwrap();
    let second = pool.create(node()).unwrap();
    second.numbers.grow(50_000, 8).unwrap();
    head.next.set(Some(&second)).unwrap();
    drop(second);
    let named = pool.named_or_create("named", node).unwrap();
    named.numbers.grow(10, 9).unwrap();
    drop(named);
    // SAFETY: stays in this process.
    let mut words: PoolVec<u64, PoolAlloc> = PoolVec::new_in(unsafe { pool.allocator() });
    words.extend(0..5000);
    // SAFETY: refers to the pool alone.
    let words = pool.create(unsafe { Foreign::new(words) }).unwrap();
    assert_eq!(inspect::leaks(*pool), nothing);
    // A raw block that nobody in the pool knows of.
    let raw = allocate(*pool, 3000);
    let leaks = inspect::leaks(*pool);
    assert_eq!(leaks.blocks, [(raw.addr().get(), 3072)]);
    assert_eq!((leaks.objects, leaks.bytes()), (0, 3072));
    free(*pool, raw);
    // The foreign collection's memory, once its object is gone.
    drop(words);
    assert!(inspect::leaks(*pool).bytes() >= 40_000);
    let before = inspect::leaks(*pool).blocks.len();
    // A cycle.
    let one = pool.create(node()).unwrap();
    let other = pool.create(node()).unwrap();
    one.next.set(Some(&other)).unwrap();
    other.next.set(Some(&one)).unwrap();
    other.numbers.grow(10, 1).unwrap();
    assert_eq!(inspect::leaks(*pool).blocks.len(), before);
    drop((one, other));
    let leaks = inspect::leaks(*pool);
    assert_eq!((leaks.objects, leaks.blocks.len()), (2, before + 3));
}

pub fn a_large_block_takes_no_memory_to_look_into() {
    let pool = TestPool::with(|b| b.max_size(64 << 20));
    let large = allocate(*pool, 32 << 20);
    let names_it = pool.create(large.expose_provenance().get()).unwrap();
    let Some(child) = fork() else {
        let used = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = used.split(' ').next().unwrap().parse().unwrap();
        let before = getrlimit(Resource::As);
        let current = Some(pages * rustix::param::page_size() as u64 + (8 << 20));
        setrlimit(Resource::As, Rlimit { current, ..before }).unwrap();
        leave(inspect::leaks(*pool).is_empty());
    };
    assert_eq!(reap(child), 0);
    drop(names_it);
    free(*pool, large);
}

pub fn containers_reach_what_they_own() {
    let pool = TestPool::new();
    let map = pool.create(HashMap::<u64, u64>::new()).unwrap();
    let texts = pool.create(HashMap::<str, u64>::new()).unwrap();
    let cell = pool.create(SharedCell::<[u64; 100]>::new()).unwrap();
    for i in 0..2000_u64 {
        map.insert(&i, i).unwrap();
        texts.insert(&format!("the text of {i}"), i).unwrap();
        cell.set([i; 100]).unwrap();
    }
    for i in 0..1000 {
        map.remove(&(i * 2)).unwrap();
    }
    let leaks = inspect::leaks(*pool);
    assert!(leaks.is_empty(), "{} blocks", leaks.blocks.len());
    drop((map, texts, cell));
}
