//! Processes that die, or stop, at chosen moments, for a `setup` that needs them.

use std::time::Duration;

use super::child::{Child, Fork};
use super::stepper::{Stepper, perform};

/// For one instruction, and for what comes before the first.
const LIMIT: Duration = Duration::from_secs(5);

/// A process that waits before its operation, or in the middle of it.
pub struct Doomed(Stepper);

impl Doomed {
    /// Forks it. It prepares itself, and waits.
    pub fn new(prepare: impl FnOnce(), operation: impl FnOnce()) -> Doomed {
        let child = Child::fork(Fork::Library, || {
            prepare();
            perform(|| {
                operation();
                Ok(())
            })
        });
        let stepper = Stepper::new(child.expect("a process"), LIMIT);
        Doomed(stepper.expect("a process that waits"))
    }

    /// Lets it go on until something is so, which is asked after each instruction.
    pub fn go_on_until(&mut self, is_so: impl Fn() -> bool) {
        while !is_so() {
            self.0.step(LIMIT).expect("a step");
            assert!(!self.0.finished(), "the moment did not come");
        }
    }

    /// Leaves it as it is until the case ends; its pid.
    pub fn stays(self) -> u32 {
        let child = Box::leak(Box::new(self.0.into_child()));
        child.pid() as u32
    }

    /// Lets it go on to the end of its operation, and ends it.
    pub fn ends(mut self) {
        self.0.run_to_end(LIMIT).expect("an end");
        self.die();
    }

    /// Kills it where it is, and reaps it.
    pub fn die(self) {
        self.0.into_child().end();
    }
}
