//! The places of managed resources, in the control pool.
//!
//! ```text
//! FREE ──> CLAIMED(tag) ──> REQUESTED(id) ──> MANAGED(id) <──> CHECKING(id) ──> FREE
//!  │       worker                        │                    master    │
//!  │                                     └──> REFUSED(id) ──> FREE      │  (master, once seen)
//!  └──> STUCK(0) (keep, at the start)                                   └──> STUCK(id) (tend)
//!
//! STUCK: it could not be removed. The place stays so for the run, so that its record is not overwritten.
//!
//! CLAIMED becomes FREE if there is no memory for the name, or the worker's job is over; REQUESTED, if its worker is gone.
//!
//! If two workers announce the same at once, it is one resource: the master gives the second the use of the first.
//! ```
//!
//! # Invariants
//!
//! 1. A user sets its bit, then looks at the state; the master stores CHECKING, then looks at the
//!    bits. So if a `get` and a removal happen at once, one sees the other. A user that finds
//!    CHECKING sleeps until the master has decided, as long as there is a master, even one that is
//!    stopped.
//! 2. A worker's bits belong to its job's place, which nobody else has before the job is over; the
//!    master then clears them. When the job is to have another process, the master clears the bits
//!    of what the last process got itself. What was inherited stays; the starter marks that by a
//!    second bit.
//!
//! # Crash behaviour
//!
//! | killed | leaves | repaired by |
//! |---|---|---|
//! | while CLAIMED | a place without a resource | the master: FREE |
//! | REQUESTED or REFUSED | a request of nobody, once its job is over | the master: FREE |
//! | a user | its bit | the master, before the job is over or has another process |
//! | a starter, between the bits of an heir | the heir's use, not yet permanent | the master: there is no such job |
//! | the master | the journal's records | the next run |
//! | the master, while CHECKING | the record of a resource that may or may not have been removed | the next run |
//! | the master, with STUCK places | their records | the next run tries again; `keep` makes STUCK what cannot be removed |

use super::{Inherit, ResourceId};
use crate::ShmSafe;
use crate::participants::lock::TICK;
use crate::participants::tag::Tag;
use crate::pool::Pool;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::process::Resource;
use crate::process::jobs::{INLINE, JOBS, Payload, PayloadKind};
use crate::process::table::{self, PHASE, StateWord, Used};
use crate::sys::futex;

/// Resources that a run can manage at once.
pub(crate) const PLACES: usize = 256;

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
pub(super) const REQUESTED: u64 = 2;
const MANAGED: u64 = 3;
pub(super) const REFUSED: u64 = 4;
const CHECKING: u64 = 5;
/// It could not be removed: its place is not used again, so that its record stays.
const STUCK: u64 = 6;
pub(super) const ID_SHIFT: u32 = 8;

pub(super) fn word(phase: u64, id: u64) -> u64 {
    id << ID_SHIFT | phase
}

/// A bit for each job's place.
#[derive(ShmSafe)]
pub(super) struct Users([AtomicU64; JOBS / 64]);

impl Users {
    fn bit(&self, user: usize) -> (&AtomicU64, u64) {
        (&self.0[user / 64 % (JOBS / 64)], 1 << (user % 64))
    }

    pub(super) fn set(&self, user: usize) {
        let (word, bit) = self.bit(user);
        word.fetch_or(bit, Ordering::SeqCst);
    }

    pub(super) fn clear(&self, user: usize) {
        let (word, bit) = self.bit(user);
        if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    fn has(&self, user: usize) -> bool {
        let (word, bit) = self.bit(user);
        word.load(Ordering::SeqCst) & bit != 0
    }

    fn wipe(&self) {
        let wipe = |word: &AtomicU64| word.store(0, Ordering::Relaxed);
        self.0.iter().for_each(wipe);
    }
}

/// A resource's place.
#[derive(ShmSafe)]
pub(crate) struct Place {
    pub(super) state: StateWord,
    /// What threads that wait for the master sleep on.
    pub(super) answered: AtomicU32,
    pub(super) kind: AtomicU32,
    pub(super) users: Users,
    /// Those that use it until their job is over for good.
    heirs: Users,
    pub(super) name: Payload,
    /// Why it was refused.
    pub(super) answer: Payload,
}

/// The places, in the control block.
#[derive(ShmSafe)]
pub(crate) struct Table {
    pub(super) last_id: AtomicU64,
    used: Used,
    places: [Place; PLACES],
}

impl Place {
    pub(super) fn resource(&self) -> Option<Resource> {
        let kind = self.kind.load(Ordering::Relaxed);
        self.name.read(|name| Resource::of(kind, name))
    }

    fn is_used(&self) -> bool {
        let used = |word: &AtomicU64| word.load(Ordering::SeqCst) != 0;
        self.users.0.iter().any(used)
    }

    /// The place, and the value of `answered`, if the master is about to free the place, or to
    /// decide whether to, or has freed it.
    fn leaving(&self) -> Option<(&Place, u32)> {
        let seen = self.answered.load(Ordering::Acquire);
        let is_leaving = match self.state.load() & PHASE {
            FREE | CHECKING => true,
            REQUESTED | REFUSED | MANAGED => !self.is_used(),
            _ => false,
        };
        is_leaving.then_some((self, seen))
    }

    pub(super) fn release(&self) {
        self.name.clear();
        self.answer.clear();
        self.users.wipe();
        self.heirs.wipe();
        self.state.store(FREE);
    }

    fn answer(&self, state: u64) {
        self.state.store(state);
        self.wake();
    }

    fn wake(&self) {
        self.answered.fetch_add(1, Ordering::Release);
        futex::wake(&self.answered, u32::MAX);
    }
}

impl Table {
    /// The places that were ever used.
    fn used(&self) -> &[Place] {
        self.used.of(&self.places)
    }

    /// Claims a free place, or one that the master is about to free, unless the master is dead, as
    /// `over` tells.
    pub(super) fn claim(&self, by: Tag, over: &dyn Fn() -> bool) -> Option<&Place> {
        let claimed = by.word() | CLAIMED;
        loop {
            if let Some(index) = self.used.claim(&self.places, |at| &at.state, claimed) {
                return Some(&self.places[index]);
            }
            if over() {
                return None;
            }
            let (place, seen) = self.used().iter().find_map(Place::leaving)?;
            // One that is free by now was about to be freed when it was tried.
            if place.state.load() != FREE {
                futex::wait(&place.answered, seen, TICK);
            }
        }
    }

    pub(super) fn find(&self, id: u64) -> Option<&Place> {
        let has = |place: &&Place| {
            let state = place.state.load();
            matches!(state & PHASE, MANAGED | CHECKING) && state >> ID_SHIFT == id
        };
        self.used().iter().find(has)
    }

    /// Sets the user's bit, if the resource exists. `over` tells whether the master is dead, for
    /// which this would otherwise wait.
    pub(super) fn hold(&self, id: u64, user: usize, over: &dyn Fn() -> bool) -> bool {
        let Some(place) = self.find(id) else {
            return false;
        };
        let had = place.users.has(user);
        place.users.set(user);
        loop {
            let answered = place.answered.load(Ordering::Acquire);
            // By invariant 1.
            let state = place.state.load();
            if state == word(MANAGED, id) {
                return true;
            }
            if state != word(CHECKING, id) || over() {
                if !had {
                    place.users.clear(user);
                }
                return false;
            }
            futex::wait(&place.answered, answered, TICK);
        }
    }

    /// The managed resource that is the same file as one announced, and its id.
    pub(super) fn managed_as(&self, resource: &Resource) -> Option<(ResourceId, &Place)> {
        self.used().iter().find_map(|place| {
            let state = place.state.load();
            let is = |managed: Resource| managed.path() == resource.path();
            let same = state & PHASE == MANAGED && place.resource().is_some_and(is);
            same.then_some((ResourceId(state >> ID_SHIFT), place))
        })
    }

    /// The master's answer to a worker that announces what is managed already: its id, and the use
    /// of it.
    fn lead_to(&self, announced: &Place, same: &Place) -> (PayloadKind, Vec<u8>) {
        for (from, to) in announced.users.0.iter().zip(&same.users.0) {
            to.fetch_or(from.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        let id = same.state.load() >> ID_SHIFT;
        (PayloadKind::Value, id.to_ne_bytes().to_vec())
    }

    /// The ids of what a user uses.
    pub(crate) fn used_by(&self, user: usize) -> impl Iterator<Item = ResourceId> {
        let used = move |place: &&Place| place.users.has(user);
        self.used().iter().filter(used).filter_map(|place| {
            let state = place.state.load();
            matches!(state & PHASE, MANAGED | CHECKING).then_some(ResourceId(state >> ID_SHIFT))
        })
    }

    /// Makes a worker that is about to be started a user of what its starter uses.
    pub(crate) fn bequeath(
        &self,
        from: usize,
        to: usize,
        which: Inherit<'_>,
        over: &dyn Fn() -> bool,
    ) {
        let list: Vec<ResourceId> = match which {
            Inherit::None => return,
            Inherit::All => self.used_by(from).collect(),
            Inherit::These(list) => list.to_vec(),
        };
        for id in list {
            if self.hold(id.0, to, over)
                && let Some(place) = self.find(id.0)
            {
                place.heirs.set(to);
            }
        }
    }

    /// A job is over, or never came to be.
    pub(crate) fn clear_user(&self, user: usize) {
        for place in self.used() {
            place.users.clear(user);
            place.heirs.clear(user);
        }
    }

    /// The process of a job is dead, and the job will have another.
    pub(crate) fn clear_process(&self, user: usize) {
        let got = |place: &&Place| !place.heirs.has(user);
        let used = self.used().iter();
        used.filter(got).for_each(|place| place.users.clear(user));
    }

    /// Keeps the places of what a crashed run has left and that could not be removed: see `STUCK`.
    pub(crate) fn keep(&self, places: &[usize]) {
        for place in places.iter().filter_map(|&place| self.places.get(place)) {
            place.state.store(word(STUCK, 0));
        }
    }

    /// The master's work: answers requests, and removes what nobody uses. `journal` records a
    /// resource at a place, or says why not, in an answer of that kind; `remove` removes one and
    /// strikes it, and returns whether it could.
    pub(crate) fn tend(
        &self,
        pool: Pool,
        mut journal: impl FnMut(usize, &Resource) -> Result<(), (PayloadKind, String)>,
        mut remove: impl FnMut(usize, &Resource) -> bool,
    ) {
        for (index, place) in self.used().iter().enumerate() {
            let state = place.state.load();
            let id = state >> ID_SHIFT;
            match state & PHASE {
                CLAIMED if table::is_abandoned(pool.0, state) => place.release(),
                // Whoever waited for the answer is dead.
                REQUESTED if !place.is_used() => place.release(),
                REQUESTED => {
                    let recorded = match place.resource() {
                        Some(resource) => match self.managed_as(&resource) {
                            Some((_, same)) => Err(self.lead_to(place, same)),
                            None => journal(index, &resource)
                                .map_err(|(kind, why)| (kind, why.into_bytes())),
                        },
                        None => Err((PayloadKind::NotStarted, b"its name is damaged".to_vec())),
                    };
                    if let Err((kind, why)) = &recorded {
                        let cut = &why[..why.len().min(INLINE)];
                        // An answer that short needs no memory.
                        let _ = place.answer.store(pool, *kind, cut);
                    }
                    let phase = if recorded.is_ok() { MANAGED } else { REFUSED };
                    place.answer(word(phase, id));
                }
                REFUSED if !place.is_used() => place.release(),
                MANAGED if !place.is_used() => {
                    // By invariant 1.
                    place.state.store(word(CHECKING, id));
                    if place.is_used() {
                        place.answer(word(MANAGED, id));
                    } else {
                        match place.resource() {
                            Some(resource) if !remove(index, &resource) => {
                                place.answer(word(STUCK, id));
                            }
                            _ => {
                                place.release();
                                place.wake();
                            }
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::Layout;
    use std::os::fd::AsFd;
    use std::time::Instant;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::process::jobs::Control;
    use crate::process::{ResourceError, Resources, part};
    use crate::sys::process::pid;

    fn empty() -> Box<Table> {
        // SAFETY: it consists of atomics and links, of which zeros are valid.
        unsafe { Box::<Table>::new_zeroed().assume_init() }
    }

    /// What was inherited belongs to a job to its end, and not to the next job at its place, nor to
    /// the next resource.
    #[test]
    fn who_comes_next_has_inherited_nothing() {
        let table = empty();
        let over = || false;
        let place = table.claim(Tag::new(1, 1), &|| true).unwrap();
        place.state.store(word(MANAGED, 7));
        let inherit = Inherit::These(&[ResourceId(7), ResourceId(8)]);
        table.bequeath(0, 1, inherit, &over);
        table.clear_process(1);
        assert!(place.is_used());
        table.clear_user(1);
        assert!(!place.is_used());
        // For the next job, this is something that it got itself.
        let is_got = |id| {
            assert!(table.hold(id, 1, &over) && place.is_used());
            table.clear_process(1);
            !place.is_used()
        };
        assert!(is_got(7));
        table.bequeath(0, 1, inherit, &over);
        place.release();
        place.state.store(word(MANAGED, 8));
        assert!(is_got(8));
    }

    /// As if the master were stopped before it has decided: a thread that waits for it looks now
    /// and then.
    #[test]
    fn who_meets_a_removal_sleeps() {
        let table = empty();
        let place = table.claim(Tag::new(1, 1), &|| true).unwrap();
        place.state.store(word(CHECKING, 7));
        let looks = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let start = Instant::now();
            let user = scope.spawn(|| {
                let count = || {
                    looks.fetch_add(1, Ordering::SeqCst);
                    false
                };
                table.hold(7, 1, &count)
            });
            // As many looks as take several ticks, if the thread sleeps in between.
            while looks.load(Ordering::SeqCst) < 8 {
                std::thread::yield_now();
            }
            place.answer(word(MANAGED, 7));
            assert!(user.join().unwrap());
            let looks = u128::from(looks.load(Ordering::SeqCst));
            let most = start.elapsed().as_millis() / TICK.as_millis() + 3;
            assert!(looks <= most, "{looks} looks, {most} at most");
        });
    }

    /// The master is dead, in the middle of a removal.
    #[test]
    fn who_gets_nothing_uses_nothing() {
        let table = empty();
        let place = table.claim(Tag::new(1, 1), &|| true).unwrap();
        place.state.store(word(CHECKING, 7));
        assert!(!table.hold(7, 1, &|| true));
        assert!(!place.is_used());
    }

    /// The master frees the place after the claim has been tried, and before the place is looked
    /// at.
    #[test]
    fn who_finds_the_place_free_that_goes_has_it() {
        let table = empty();
        for id in 1..=PLACES as u64 {
            let place = table.claim(Tag::new(1, 1), &|| true).unwrap();
            place.users.set(0);
            place.state.store(word(MANAGED, id));
        }
        let claim = |over: &dyn Fn() -> bool| table.claim(Tag::new(1, 1), over).is_some();
        assert!(!claim(&|| false));
        let last = table.find(PLACES as u64).unwrap();
        last.users.clear(0);
        // A master that is dead frees nothing.
        assert!(!claim(&|| true));
        assert!(claim(&|| {
            last.release();
            false
        }));
    }

    /// Its announcement has a place until then.
    #[test]
    fn who_is_led_to_what_others_have_announced_has_one_use() {
        let pool = Pool::builder().create().unwrap();
        let control = Control::create(pool).unwrap();
        let [first, second] = [0, 1].map(|user| Resources::new(control.clone(), user, pid()));
        let table = &control.resources;
        let count = |phase| {
            let is = |place: &&Place| place.state.load() & PHASE == phase;
            table.used().iter().filter(is).count()
        };
        let tend = || table.tend(pool, |_, _| Ok(()), |_, _| true);
        let file = Resource::File("/announced/twice".into());
        first.request(&file).unwrap();
        std::thread::scope(|scope| {
            let led = scope.spawn(|| second.manage(file.clone()).unwrap());
            while count(REQUESTED) < 2 {
                std::thread::yield_now();
            }
            tend();
            let led = led.join().unwrap();
            tend();
            assert_eq!((count(MANAGED), count(REFUSED)), (1, 0));
            table.clear_user(0);
            tend();
            assert_eq!(count(MANAGED), 1);
            drop(led);
        });
        tend();
        assert_eq!(count(FREE), 2);
    }

    /// Another thread of its process has ended their use of it, which was the last one.
    #[test]
    fn who_is_led_to_what_is_gone_by_then_announces_it_anew() {
        let pool = Pool::builder().create().unwrap();
        let control = Control::create(pool).unwrap();
        let [first, second] = [0, 1].map(|user| Resources::new(control.clone(), user, pid()));
        let table = &control.resources;
        let tend = || table.tend(pool, |_, _| Ok(()), |_, _| true);
        let file = Resource::File("/announced/anew".into());
        let (_, same) = first.request(&file).unwrap();
        std::thread::scope(|scope| {
            let led = scope.spawn(|| second.manage(file.clone()).unwrap().id());
            let is_requested = |place: &&Place| place.state.load() & PHASE == REQUESTED;
            while table.used().iter().filter(is_requested).count() < 2 {
                std::thread::yield_now();
            }
            // It is answered, and does not get there yet.
            let uses = second.uses();
            tend();
            let led_to = ResourceId(same.state.load() >> ID_SHIFT);
            [0, 1].iter().for_each(|&user| same.users.clear(user));
            tend();
            assert_eq!(same.state.load(), FREE);
            drop(uses);
            while !led.is_finished() {
                tend();
                std::thread::yield_now();
            }
            assert_ne!(led.join().unwrap(), led_to);
        });
    }

    /// For want of memory for its name, or because the job is over.
    #[test]
    fn what_cannot_be_announced_has_no_place() {
        let pool = Pool::builder().max_size(4 << 20).create().unwrap();
        let control = Control::create(pool).unwrap();
        let resources = Resources::new(control.clone(), 0, pid());
        let is_free = |place: &Place| place.state.load() == FREE;
        let are_free = || control.resources.used().iter().all(is_free);
        let file = Resource::File("/announced".repeat(10).into());
        for size in [1 << 18, 1 << 12, 1 << 8, 1 << 4] {
            let layout = Layout::from_size_align(size, 1).unwrap();
            while pool.allocate(layout).is_ok() {}
        }
        let refused = resources.request(&file).map(drop);
        assert!(
            matches!(refused, Err(ResourceError::NoMemory(_))),
            "{refused:?}"
        );
        assert!(are_free());
        let short = Resource::File("/short".into());
        resources.end();
        let refused = resources.request(&short).map(drop);
        assert!(
            matches!(refused, Err(ResourceError::RunOver)),
            "{refused:?}"
        );
        assert!(are_free());
        drop((resources, control));
        // SAFETY: nothing refers to it any more.
        unsafe { pool.unmap() };
    }

    /// The place that it has looked at may have been another's by then, whose end had to wait for that.
    #[test]
    fn who_finds_a_resource_gone_has_the_master_look() {
        let pool = Pool::builder().create().unwrap();
        let control = Control::create(pool).unwrap();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let counter = eventfd(0, flags).unwrap();
        part::set_wake(pool, counter.as_fd()).unwrap();
        let gone = Resources::new(control, 0, pid()).get(ResourceId(7));
        part::forget_wake(pool);
        assert!(matches!(gone, Err(ResourceError::Gone)));
        assert_eq!(rustix::io::read(&counter, &mut [0; 8]), Ok(8));
    }

    /// The record of a place is that of its resource.
    #[test]
    fn what_cannot_be_removed_keeps_its_place() {
        let pool = Pool::builder().create().unwrap();
        let table = empty();
        let claim = || table.claim(Tag::new(1, 1), &|| true).unwrap();
        let [removed, stays] = [(); 2].map(|()| claim());
        for (place, id) in [(removed, 7), (stays, 8)] {
            let file = Resource::File(format!("/{id}").into());
            place.kind.store(file.kind(), Ordering::Relaxed);
            let name = file.name().unwrap();
            place.name.store(pool, PayloadKind::Value, &name).unwrap();
            place.state.store(word(MANAGED, id));
        }
        let remove = |_, file: &Resource| *file == Resource::File("/7".into());
        table.tend(pool, |_, _| Ok(()), remove);
        assert_eq!(stays.state.load(), word(STUCK, 8));
        let next = [(); 2].map(|()| std::ptr::from_ref(claim()));
        assert!(next[0] == removed && next[1] != stays);
    }
}
