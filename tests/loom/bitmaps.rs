//! A span's bitmaps: no block is handed out twice, none is lost, no free is refused. There are no fences except where a
//! thread must see what another does after a step of its own.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering, fence};
use shmkit::protocol::bitmap::{Collected, Pair, Place, Sets, disown, take, tell, was_told};

use super::{Death, Deaths, Explorer};

const WORDS: usize = 2;
/// Blocks of a model: the first three of each word.
const BLOCKS: [u32; 6] = [0, 1, 2, 64, 65, 66];
/// The owner's place among `freeing` words.
const OWNER: usize = 0;

struct Span {
    words: [Pair; WORDS],
    /// A block + 1 that the thread frees for good.
    freeing: [AtomicU64; 3],
    /// A block + 1 that the owner is about to have.
    intent: AtomicU64,
    /// The ledger: which blocks somebody has. No part of the protocol.
    had: [AtomicBool; 128],
    /// What whoever has the block writes to it.
    data: Vec<UnsafeCell<u32>>,
}

fn place(block: u32) -> Place {
    Place(block)
}

impl Span {
    /// A span with these free blocks; somebody has the others.
    fn new(free: &[u32]) -> Arc<Self> {
        let span = Span {
            words: std::array::from_fn(|_| Pair {
                freed: AtomicU64::new(0),
                remote: AtomicU64::new(0),
            }),
            freeing: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)],
            intent: AtomicU64::new(0),
            had: std::array::from_fn(|_| AtomicBool::new(true)),
            data: BLOCKS.iter().map(|_| UnsafeCell::new(0)).collect(),
        };
        for &block in free {
            assert!(span.sets().free_own(place(block)));
            span.had[block as usize].store(false, Relaxed);
        }
        Arc::new(span)
    }

    fn sets(&self) -> Sets<'_, WORDS> {
        Sets(&self.words)
    }

    /// Takes out of the sets what `freeing` words name.
    fn keep_named(&self, taken: &mut [u64; WORDS]) {
        for freeing in &self.freeing {
            let named = freeing.load(Ordering::SeqCst);
            if named != 0 {
                let place = place(named as u32 - 1);
                taken[place.word()] &= !place.bit();
            }
        }
    }

    /// Uses a block that the caller has: loom finds fault if another one may use it too.
    fn touch(&self, block: u32) {
        let index = BLOCKS.iter().position(|&b| b == block).unwrap();
        // SAFETY: exclusive, or loom reports it.
        self.data[index].with_mut(|data| unsafe { *data += 1 });
    }

    fn collect(&self) -> Collected {
        self.sets().collect(WORDS, |taken| self.keep_named(taken))
    }

    /// As an owner that goes on to another span when all that it can collect of this one is handed out.
    fn use_up(&self, hints: &AtomicU64) {
        loop {
            match self.collect() {
                Collected::Some => {}
                Collected::Named => return tell(hints, 1),
                Collected::Nothing => return,
            }
        }
    }

    /// The word that blocks come from, as the owner goes from one to the next.
    fn stocked(&self) -> Option<usize> {
        let stocked = self.sets().stocked(WORDS, 0);
        if stocked.is_none() && self.collect() == Collected::Some {
            return self.sets().stocked(WORDS, 0);
        }
        stocked
    }

    /// As a container allocates: into the owner's intent.
    fn allocate(&self) -> Option<u32> {
        let word = self.stocked()?;
        let mut block = 0;
        let record = |bit| {
            block = word as u32 * 64 + bit;
            self.intent.store(u64::from(block) + 1, Ordering::Release);
        };
        assert!(take(self.sets().freed(word), record), "it has blocks");
        // The container has it from this store on.
        self.intent.store(0, Ordering::Release);
        assert!(
            !self.had[block as usize].swap(true, Relaxed),
            "{block} twice"
        );
        self.touch(block);
        Some(block)
    }

    /// As a container frees: through the thread's `freeing` word. True if the owner is to be told.
    fn free(&self, thread: usize, block: u32) -> bool {
        self.touch(block);
        self.freeing[thread].store(u64::from(block) + 1, Ordering::Release);
        self.had[block as usize].store(false, Relaxed);
        let is_first = if thread == OWNER {
            assert!(self.sets().free_own(place(block)), "{block} is refused");
            false
        } else {
            assert!(!self.sets().is_free(place(block)), "{block} is refused");
            self.sets().free_remote(place(block)) == 0
        };
        self.freeing[thread].store(0, Ordering::Release);
        is_first
    }

    fn release_for(&self, named: u64) {
        if named != 0 && !self.sets().is_free(place(named as u32 - 1)) {
            self.sets().free_remote(place(named as u32 - 1));
        }
    }

    /// What recovery does first, for any dead thread.
    fn finish_freeing(&self, thread: usize) {
        self.release_for(self.freeing[thread].load(Ordering::SeqCst));
        self.freeing[thread].store(0, Ordering::SeqCst);
    }

    /// What recovery does for a dead owner.
    fn recover(&self) {
        self.release_for(self.intent.load(Ordering::Acquire));
        self.finish_freeing(OWNER);
        self.intent.store(0, Ordering::Release);
        self.collect();
    }

    /// Every block is free, or somebody has it, and not both.
    fn check(&self) {
        for block in BLOCKS {
            let place = place(block);
            let free = self.sets().free_bits(place.word()) & place.bit() != 0;
            let had = self.had[block as usize].load(Relaxed);
            assert!(free != had, "{block}: free {free}, had {had}");
        }
        // Nor in two sets, now that everybody is at rest.
        for word in 0..WORDS {
            let remote = self.sets().remote(word).load(Ordering::Relaxed);
            let freed = self.sets().freed(word).load(Ordering::Relaxed);
            assert_eq!(remote & freed, 0);
        }
    }
}

/// The owner allocates, frees and collects while two others free: two words of blocks, so
/// that the owner goes from one to the other under the eyes of who frees.
#[test]
fn owner_against_freers() {
    let explorer = Explorer::without_fences("bitmaps: owner against freers");
    explorer.run(1, || {
        let span = Span::new(&[0, 65]);
        let others: Vec<_> = [(1, 1), (2, 64)]
            .map(|(thread, block)| {
                let span = Arc::clone(&span);
                thread::spawn(move || span.free(thread, block))
            })
            .into();
        let first = span.allocate().unwrap();
        span.allocate().unwrap();
        span.free(OWNER, first);
        span.allocate().unwrap();
        span.allocate();
        for other in others {
            other.join().unwrap();
        }
        span.check();
    });
}

/// A block whose neighbours move from one set to the other: who frees it is not refused.
#[test]
fn no_free_is_refused() {
    let explorer = Explorer::without_fences("bitmaps: no free is refused");
    explorer.run(3, || {
        let span = Span::new(&[0, 65]);
        let other = Arc::clone(&span);
        let other = thread::spawn(move || other.free(1, 64));
        span.allocate().unwrap();
        let second = span.allocate().unwrap();
        span.free(OWNER, second);
        span.collect();
        other.join().unwrap();
        span.check();
    });
}

/// A block that was freed is in one of the sets, for who knows that it was, while the owner moves it from the one to the
/// other: so a second free of it is refused.
#[test]
fn a_second_free_is_refused() {
    let explorer = Explorer::without_fences("bitmaps: a second free is refused");
    explorer.run(3, || {
        let span = Span::new(&[]);
        let owner = Arc::clone(&span);
        let owner = thread::spawn(move || owner.collect());
        span.free(1, 1);
        assert!(span.sets().is_free(place(1)), "1 is freed twice");
        owner.join().unwrap();
        span.check();
    });
}

/// What others free is collected, or the owner has a hint that there is something: nobody's hint
/// is spared because of one that the owner has looked after already. Two blocks of one word, or of two.
#[test]
fn frees_leave_a_hint() {
    for (name, second) in [
        ("bitmaps: frees of one word leave a hint", 1),
        ("bitmaps: frees of two words leave a hint", 64),
    ] {
        let explorer = Explorer::new(name);
        explorer.run(3, move || {
            let span = Span::new(&[]);
            let hints = Arc::new(AtomicU64::new(1));
            let others: Vec<_> = [(1, 0), (2, second)]
                .map(|(thread, block)| {
                    let (span, hints) = (Arc::clone(&span), Arc::clone(&hints));
                    thread::spawn(move || {
                        if span.free(thread, block) {
                            tell(&hints, 1);
                        }
                    })
                })
                .into();
            for _ in 0..2 {
                if was_told(&hints, 1) {
                    span.use_up(&hints);
                }
            }
            for other in others {
                other.join().unwrap();
            }
            let left = (0..WORDS).any(|word| span.sets().remote(word).load(Ordering::SeqCst) != 0);
            assert!(
                !left || hints.load(Ordering::SeqCst) == 1,
                "nobody will look"
            );
        });
    }
}

/// A span that changes hands: its tag, and the hints that tell of blocks that were freed of it.
struct Handed {
    span: Arc<Span>,
    tag: AtomicU64,
    orphans: AtomicU64,
    /// Of each owner.
    hints: [AtomicU64; 3],
}

/// Who has the span. The first has it at the beginning.
const NOBODY: u64 = 0;
const FORMER: u64 = 1;
const ADOPTER: u64 = 2;
const GONE: u64 = 3;

impl Handed {
    fn new(free: &[u32]) -> Arc<Self> {
        Arc::new(Handed {
            span: Span::new(free),
            tag: AtomicU64::new(FORMER),
            orphans: AtomicU64::new(0),
            hints: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    fn is_empty(&self) -> bool {
        let is_free = |&block: &u32| self.span.sets().is_free(place(block));
        let is_named = |freeing: &AtomicU64| freeing.load(Ordering::SeqCst) != 0;
        BLOCKS.iter().all(is_free) && !self.span.freeing.iter().any(is_named)
    }

    fn adopt(&self, by: u64) -> bool {
        self.tag
            .compare_exchange(NOBODY, by, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn tell_owner(&self, owner: u64) {
        if let Some(hints) = self.hints.get(owner as usize) {
            tell(hints, 1);
        }
    }

    /// As `allocator::span::Span::collect`.
    fn collect(&self) {
        if self.span.collect() == Collected::Named {
            self.tell_owner(self.tag.load(Ordering::Acquire));
        }
    }

    /// As `allocator::block::free_elsewhere`, and `cache::note_orphan`.
    fn free(&self, thread: usize, block: u32) {
        let is_first = self.span.free(thread, block);
        // The free and the load are in one order. The owner has no fence but that of `disown`.
        fence(Ordering::SeqCst);
        let owner = self.tag.load(Ordering::SeqCst);
        if owner == NOBODY {
            tell(&self.orphans, 1);
            fence(Ordering::SeqCst);
            if self.is_empty() && self.adopt(GONE) {
                assert!(self.is_empty());
            }
        } else if is_first && owner != GONE {
            self.tell_owner(owner);
        }
    }

    /// As `allocator::recover::release_own`.
    fn leave(&self) {
        let mut orphans = 1;
        loop {
            self.collect();
            if self.is_empty() {
                self.tag.store(GONE, Ordering::Release);
                orphans = 0;
                break;
            }
            if !disown(&self.tag, NOBODY, || self.is_empty()) || !self.adopt(FORMER) {
                break;
            }
        }
        self.orphans.fetch_or(orphans, Ordering::SeqCst);
    }

    /// As `allocator::cache::adopt_orphan`.
    fn adopt_orphan(&self) {
        let sets = self.span.sets();
        if !was_told(&self.orphans, 1)
            || self.tag.load(Ordering::Acquire) != NOBODY
            || (0..WORDS).all(|word| sets.free_bits(word) == 0)
            || !self.adopt(ADOPTER)
        {
            return;
        }
        if sets.stocked(WORDS, 0).is_none() {
            self.collect();
        }
        if sets.stocked(WORDS, 0).is_some() {
            self.orphans.fetch_or(1, Ordering::SeqCst);
        }
    }

    /// What is free somebody hands out, or is told of, or it has gone back.
    fn check(&self) {
        let is_set = |word: &AtomicU64| word.load(Ordering::SeqCst) != 0;
        let sets = self.span.sets();
        let freed = (0..WORDS).any(|word| is_set(sets.freed(word)));
        let remote = (0..WORDS).any(|word| is_set(sets.remote(word)));
        match self.tag.load(Ordering::SeqCst) {
            NOBODY => {
                assert!(!self.is_empty(), "left behind");
                assert!(!freed && !remote || is_set(&self.orphans), "nobody asks");
            }
            ADOPTER => assert!(
                freed || !remote || is_set(&self.hints[2]),
                "he does not look"
            ),
            GONE => {}
            owner => panic!("{owner} has left"),
        }
    }
}

/// An owner leaves while the last blocks are freed by others: the span goes back by one of them.
#[test]
fn an_empty_span_is_not_left_behind() {
    for (name, free, last) in [
        (
            "bitmaps: an empty span is not left behind",
            &[0, 1, 2, 64, 65][..],
            &[66][..],
        ),
        ("bitmaps: nor by two", &[0, 1, 2, 65], &[64, 66]),
    ] {
        let explorer = Explorer::without_fences(name);
        explorer.run(3, move || {
            let span = Handed::new(free);
            let freers: Vec<_> = last
                .iter()
                .zip(1..)
                .map(|(&block, thread)| {
                    let span = Arc::clone(&span);
                    thread::spawn(move || span.free(thread, block))
                })
                .collect();
            span.leave();
            freers.into_iter().for_each(|freer| freer.join().unwrap());
            span.check();
            assert_eq!(span.tag.load(Ordering::Relaxed), GONE, "left behind");
        });
    }
}

/// An owner leaves while a block is freed by another, and a third asks for such blocks: somebody has it, or is told.
#[test]
fn an_orphan_is_found() {
    let explorer = Explorer::new("bitmaps: an orphan is found");
    explorer.run(3, || {
        let span = Handed::new(&[]);
        let others = [
            |span: &Handed| [0, 1].into_iter().for_each(|block| span.free(1, block)),
            |span: &Handed| (0..2).for_each(|_| span.adopt_orphan()),
        ]
        .map(|does: fn(&Handed)| {
            let span = Arc::clone(&span);
            thread::spawn(move || does(&span))
        });
        span.leave();
        others.into_iter().for_each(|other| other.join().unwrap());
        span.check();
    });
}

/// Who adopts what an owner has left finds it as that one left it: none of its blocks is handed out again.
#[test]
fn an_adopted_span_is_as_it_was_left() {
    let explorer = Explorer::without_fences("bitmaps: an adopted span is as it was left");
    explorer.run(3, || {
        let handed = Handed::new(&[0, 1, 64]);
        let heir = Arc::clone(&handed);
        let heir = thread::spawn(move || {
            if heir.adopt(ADOPTER) {
                heir.span.allocate();
            }
        });
        handed.span.allocate();
        assert!(!disown(&handed.tag, NOBODY, || false));
        heir.join().unwrap();
        handed.span.check();
    });
}

fn dying_owner(deaths: Deaths, at: Death, recoverer: (Deaths, Death)) -> impl Fn() + Send + Sync {
    move || {
        let span = Span::new(&[0, 65]);
        let other = {
            let span = Arc::clone(&span);
            thread::spawn(move || span.free(1, 1))
        };
        let died = deaths.kill(at, || {
            let first = span.allocate().unwrap();
            span.free(OWNER, first);
            span.allocate().unwrap();
            span.allocate();
        });
        if died {
            recoverer.0.kill(recoverer.1, || span.recover());
            // Another one, who does it again from the start.
            span.recover();
        }
        // The next owner.
        span.allocate();
        span.allocate();
        other.join().unwrap();
        span.check();
    }
}

/// The owner dies at every write, and so does who recovers what it left, while another frees.
#[test]
fn death_of_the_owner() {
    let explorer = Explorer::without_fences("bitmaps: death of the owner");
    explorer.each_death(2, |deaths, at| dying_owner(deaths, at, Default::default()));
}

/// And so does who recovers what it left.
#[test]
fn death_of_the_recoverer() {
    let explorer = Explorer::without_fences("bitmaps: death of the owner, then of the recoverer");
    explorer.each_recovery(1, |(deaths, at), recoverer| {
        dying_owner(deaths, at, recoverer)
    });
}

/// Who frees a block of another's dies at every write; recovery frees the block, once.
#[test]
fn death_of_a_freer() {
    let explorer = Explorer::without_fences("bitmaps: death of a freer");
    explorer.each_death(3, |deaths, at| {
        move || {
            let span = Span::new(&[0]);
            let deaths = deaths.clone();
            let other = {
                let span = Arc::clone(&span);
                thread::spawn(move || {
                    if deaths.kill(at, || _ = span.free(1, 1)) {
                        // Recovery comes later: the owner may have had the block again by then.
                        thread::yield_now();
                        span.finish_freeing(1);
                    }
                })
            };
            span.allocate().unwrap();
            if let Some(block) = span.allocate() {
                span.free(OWNER, block);
                span.allocate();
            }
            other.join().unwrap();
            span.check();
        }
    });
}
