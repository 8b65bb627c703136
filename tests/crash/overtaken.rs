//! Operations that are stopped at each of their points, and overtaken by others: the results that both sides got, and
//! the final state, must be explained by one order of the operations.

mod arrays;
mod blocks;
mod buffers;
mod cells;
mod heaps;
mod helpers;
mod links;
mod locks;
mod mailboxes;
mod maps;
mod multi_maps;
mod names;
mod queues;
mod recoverers;
mod takers;

use std::fmt::Debug;

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, ensure};

/// Something to do to a world, and what it does to a model of it.
trait Operation: Copy + Debug + 'static {
    type World: InPool + 'static;
    type Model: Clone + PartialEq + Debug;

    /// Does it; what it was told.
    fn perform(self, world: &mut Self::World) -> u64;
    fn model(self, model: &mut Self::Model) -> u64;

    /// Whether it changes nothing.
    fn reads(self) -> bool;
    /// Whether it may have to wait for somebody who is stopped, who may do nothing but read.
    fn waits(self, _for_reader: bool) -> bool {
        false
    }
    /// What it is then for the model that who did it has died before it was told that.
    fn comes_to_nothing(self, _answer: u64, _model: &mut Self::Model) {}

    /// What the world is now. It must be sound, and nothing lost.
    fn found(world: &mut Self::World, crash: &Crash) -> Result<Self::Model, String>;
    /// After a look at what was found: it is of use, and gives back what it has.
    fn ends(world: &mut Self::World) -> Result<(), String>;
}

/// The answer where there is nothing.
const NONE: u64 = u64::MAX - 1;

/// The mark of who was told all that, in this order.
fn told(mark: u64, answer: u64) -> u64 {
    mark.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(answer + 1)
}

/// Does all of that, with a mark after each.
fn perform<O: Operation>(world: &mut O::World, operations: &[O]) {
    let mut mark = 0;
    for operation in operations {
        mark = told(mark, operation.perform(world));
        progress(mark);
    }
}

/// A history of which some has been explained.
#[derive(Clone)]
struct Order<'a, O: Operation> {
    model: O::Model,
    /// What is left of each side, and the mark of what it has done.
    victim: (&'a [O], u64),
    overtaker: (&'a [O], u64),
    /// The victim's last operation, its answer, and the mark before it.
    last: Option<(O, u64, u64)>,
    /// The victim has done what it was told of before it was stopped.
    is_stopped: bool,
}

impl<'a, O: Operation> Order<'a, O> {
    fn new(model: O::Model, victim: &'a [O], overtaker: &'a [O]) -> Self {
        Order {
            model,
            victim: (victim, 0),
            overtaker: (overtaker, 0),
            last: None,
            is_stopped: false,
        }
    }

    /// Whether it can go on so that it ends with what was found.
    ///
    /// The overtaker does nothing before the victim was stopped; and the victim no more than what it was doing then before
    /// the overtaker has ended, unless it has gone on at once.
    fn explains(&self, crash: &Crash, found: &O::Model) -> bool {
        // Of its last operation who was killed has told nobody.
        let untold = self.last.filter(|&(.., before)| before == crash.progress);
        let is_right = |mark| mark == self.overtaker.1;
        let overtaker_is_right = is_right(crash.overtaken.map_or(0, |how| how.mark));
        if overtaker_is_right
            && (self.ends_told(crash, found) || self.ends_untold(untold, crash, found))
        {
            return true;
        }
        let mut may = (untold.is_none(), false);
        let mut is_stopped = self.is_stopped;
        if let Some(how) = crash.overtaken {
            let is_past = self.last.is_some_and(|(.., before)| before == how.at);
            is_stopped |= is_past || self.victim.1 == how.at;
            may.0 &= !is_past || how.at_once || self.overtaker.0.is_empty();
            may.1 = is_stopped;
        }
        let next = |of_victim: bool| {
            let mut order = self.clone();
            order.is_stopped = is_stopped;
            let side = if of_victim {
                &mut order.victim
            } else {
                &mut order.overtaker
            };
            let (&first, rest) = side.0.split_first()?;
            let (before, answer) = (side.1, first.model(&mut order.model));
            *side = (rest, told(before, answer));
            if of_victim {
                order.last = Some((first, answer, before));
            }
            Some(order)
        };
        let goes_on = |of_victim| next(of_victim).is_some_and(|order| order.explains(crash, found));
        may.0 && goes_on(true) || may.1 && goes_on(false)
    }

    fn ends_told(&self, crash: &Crash, found: &O::Model) -> bool {
        self.victim.1 == crash.progress && self.model == *found
    }

    fn ends_untold(&self, untold: Option<(O, u64, u64)>, crash: &Crash, found: &O::Model) -> bool {
        untold.is_some_and(|(last, answer, _)| {
            let mut model = self.model.clone();
            last.comes_to_nothing(answer, &mut model);
            !crash.finished && (self.model == *found || model == *found)
        })
    }
}

/// A case of which the world has been `old`.
fn case<O: Operation>(
    name: String,
    setup: impl Fn() -> O::World + 'static,
    old: impl Fn(&O::World) -> O::Model + 'static,
    sides: [&[O]; 2],
) -> Case<O::World> {
    let [victim, overtaker] = sides.map(<[O]>::to_vec);
    let (performed, by_overtaker) = (victim.clone(), overtaker.clone());
    let reads = |side: &[O]| side.iter().all(|operation| operation.reads());
    let one_reads = reads(&victim) || reads(&overtaker);
    let for_reader = reads(&victim);
    let may_wait = overtaker
        .iter()
        .any(|operation| operation.waits(for_reader));
    let case = in_pool::case(format!("overtaken/{name}"), setup)
        .operation(move |world| perform(world, &performed))
        .overtaken_by(move |world| perform(world, &by_overtaker))
        .verify(move |world, crash| {
            let found = O::found(world, crash)?;
            let order = Order::new(old(world), &victim, &overtaker);
            ensure(order.explains(crash, &found), || {
                let answers = (crash.progress, crash.overtaken);
                format!(
                    "{found:?} of {:?} by {victim:?}, {overtaker:?}; {answers:x?}",
                    old(world)
                )
            })?;
            O::ends(world)
        })
        .without_second_order()
        .without_real_kills();
    let case = if one_reads { case.only_goes_on() } else { case };
    if may_wait { case.may_wait() } else { case }
}

/// What is stopped at each of its points, and overtaken there.
pub fn cases(suite: &mut Suite) {
    blocks::cases(suite);
    names::cases(suite);
    links::cases(suite);
    locks::cases(suite);
    arrays::cases(suite);
    mailboxes::cases(suite);
    cells::cases(suite);
    buffers::cases(suite);
    heaps::cases(suite);
    maps::cases(suite);
    helpers::cases(suite);
    multi_maps::cases(suite);
    queues::cases(suite);
    recoverers::cases(suite);
    takers::cases(suite);
}
