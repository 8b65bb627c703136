//! Death at every instruction: an engine that enumerates crashes of an operation on shared memory.
//!
//! A killed process leaves a prefix of its stores, in program order. So the states that a crash of one operation can
//! leave behind can be enumerated: one for each instruction that changes the arena. The engine visits all of them.
//!
//! ```text
//!  runner (a process per case)                    victim
//!    setup: fresh arena and state
//!    fork ------------------------------------->  attach, SIGSTOP
//!    single step ------------------------------>  one instruction of the operation
//!    arena changed? copy its data to a memfd         (stopped)
//!    fork -------->  survivor
//!                      puts itself onto the copy
//!                      bury, recover, verify
//!    <-- verdict --    exits
//!    single step ------------------------------>  the next instruction
//! ```
//!
//! * First order: every change of the arena by the operation, its start, its end, every mark given to [`progress`].
//! * Second order: from an image of the first order, `recover` itself is stepped, and each of its changes is followed
//!   by the recovery and verification by another survivor. All images in full mode, a sample of them in a short run:
//!   the middle one in any case, if need be with only some of its recovery's points.
//! * Real kills: the case is run again in a new process to a random point, the victim is killed there with SIGKILL
//!   and reaped, and a survivor recovers the arena itself, with the kernel's marks of death instead of `bury`'s.
//! * Overtaken: the case is run again in a new process to a point, the victim is stopped there, alive, and another
//!   process does an operation of its own, for which it must not need the victim (or may wait for it, if the case says
//!   so). Then the victim goes on with the arena as the other left it, with a survivor after each of its changes as in
//!   the first order. This is done at each point, then after each other instruction (what was read may be out of date),
//!   or in some of these places in a short run.
//!
//! Each case has processes of its own, so a case may leave anything behind in its address space. Rules for a case: the
//! runner has one thread; the arena is a memfd mapped shared from its offset 0; the operation does not wait for
//! something that only another process can do, unless that process was started by `setup`; children that the operation
//! forks die with it. While such processes write to the arena, an image of it is not one moment's.
//!
//! | file | |
//! |---|---|
//! | `case.rs` | what the author of a case writes |
//! | `suite.rs` | running cases, the environment, the report |
//! | `explore.rs` | the orders of crashes |
//! | `overtake.rs` | another process's operation in the middle of the victim's |
//! | `stepper.rs` | a victim under ptrace |
//! | `shutter.rs` | a victim that runs from write to write |
//! | `decode.rs` | what an instruction may write |
//! | `image.rs` | copies of the arena and their differences |
//! | `child.rs` | forking, waiting, cleaning up |
//! | `doomed.rs` | processes that die at chosen moments, for a `setup` |

mod case;
mod child;
mod decode;
mod doomed;
mod explore;
mod image;
mod overtake;
#[path = "../../common/pick.rs"]
mod pick;
mod shutter;
mod stepper;
mod suite;

pub use case::{Arena, Case, Crash, Overtaken, Victim};
pub use child::{Child, Ended, Fork, progress};
pub use doomed::Doomed;
pub use suite::{Suite, in_parts};
