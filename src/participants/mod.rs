//! Who is attached to a pool, which of them live, and what is done for the dead.
//!
//! | module     | what |
//! |------------|------|
//! | `tag`      | (slot, generation), the name of an owner anywhere in the pool; see `protocol` |
//! | `table`    | thread slots and process records |
//! | `thread`   | this thread's slot: found in two loads, claimed at first use, left at its end |
//! | `here`     | the pool that a value is in, and this thread's slot there |
//! | `process`  | this process's record; what happens at fork |
//! | `pid`      | the process id in a process's record |
//! | `life`     | the verdict: does that owner live? |
//! | `deadline` | until when a wait goes on |
//! | `habit`    | what is done before sleeping |
//! | `asked`    | how often the system is asked about a process |
//! | `lock`     | a lock whose word names its owner, so that a dead owner's can be taken over |
//! | `detect`   | a compare-exchange whose outcome can be told after its author's death |
//! | `permits`  | permits of semaphores, given back for the dead |
//! | `readers`  | who reads under which lock |
//! | `epoch`    | pins: what may still be looked at is not freed |
//! | `recovery` | what is done for a dead slot or process, in order |

pub(crate) mod asked;
pub(crate) mod deadline;
pub(crate) mod detect;
pub(crate) mod epoch;
pub(crate) mod habit;
pub(crate) mod here;
pub(crate) mod life;
pub(crate) mod lock;
pub(crate) mod permits;
pub(crate) mod pid;
pub(crate) mod process;
pub(crate) mod readers;
pub(crate) mod recovery;
pub(crate) mod table;
pub(crate) mod thread;

pub(crate) use crate::protocol::tag;
