//! Links.

use super::super::engine::{Crash, Suite};
use super::super::in_pool::{in_use, sound};
use super::super::pool::{World, node, use_it};
use super::super::sync::slot;
use super::{NONE, Operation};

/// What is done to the link of a node. Nobody else holds what it leads to.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// A new node of that value.
    Set(u64),
    Clear,
    /// So many nodes of that value, to which no link leads, that one of them comes to where another was.
    Fill(u64),
    Get,
    View,
}

impl Operation for Do {
    type World = World;
    /// The value of the node that the link leads to.
    type Model = Option<u64>;

    fn perform(self, world: &mut World) -> u64 {
        let link = &world.nodes[0].next;
        match self {
            Do::Set(n) => {
                let new = world.pool.create(node(n)).expect("room");
                link.set(Some(&new)).expect("set");
                0
            }
            Do::Clear => {
                link.set(None).expect("set");
                0
            }
            Do::Fill(n) => {
                let new = || world.pool.create(node(n)).expect("room");
                world.nodes.extend((0..64).map(|_| new()));
                0
            }
            Do::Get => link.get().map_or(NONE, |node| node.value),
            Do::View => link.view().map_or(NONE, |node| node.value),
        }
    }

    fn model(self, model: &mut Option<u64>) -> u64 {
        match self {
            Do::Set(n) => {
                *model = Some(n);
                0
            }
            Do::Clear => {
                *model = None;
                0
            }
            Do::Fill(_) => 0,
            Do::Get | Do::View => model.unwrap_or(NONE),
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Get | Do::View)
    }

    fn found(world: &mut World, _: &Crash) -> Result<Option<u64>, String> {
        sound(world.pool)?;
        Ok(world.nodes[0].next.get().map(|node| node.value))
    }

    fn ends(world: &mut World) -> Result<(), String> {
        world.nodes.truncate(1);
        world.nodes[0]
            .next
            .set(None)
            .map_err(|error| error.to_string())?;
        sound(world.pool)?;
        in_use(world.pool, world.before)?;
        use_it(world.pool)
    }
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let setup = || {
            let mut world = World::new();
            let first = world.pool.create(node(0)).expect("room");
            world.nodes.push(first);
            let world = world.settled();
            let next = world.pool.create(node(1)).expect("room");
            world.nodes[0].next.set(Some(&next)).expect("set");
            drop(next);
            world
        };
        let case = super::case(
            format!("link/{name}"),
            setup,
            |_: &World| Some(1),
            [victim, overtaker],
        );
        suite.run(case.attach(|world| slot(world.pool)));
    };
    case("set by set", &[Set(7)], &[Set(8)]);
    case("set by clear", &[Set(7)], &[Clear]);
    case("clear by set", &[Clear], &[Set(8), Get]);
    case("get by clear", &[Get], &[Clear, Set(8)]);
    case("get by set", &[Get], &[Set(8), Set(9)]);
    case("get by others", &[Get], &[Clear, Fill(8)]);
    case("view by others", &[View], &[Clear, Fill(8)]);
    case("view by clear", &[View], &[Clear, Set(8)]);
}
