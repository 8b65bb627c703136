//! The only code that talks to the kernel. Everything above speaks of pools and participants.
//!
//! | module    | contract |
//! |-----------|----------|
//! | `memory`  | memfds and files as pool backing: map at a fixed address, commit, punch, limits |
//! | `call`    | system calls without the C library |
//! | `clock`   | a clock for the allocator |
//! | `descriptor` | descriptors to keep: none of the standard streams' |
//! | `file_lock` | a file's lock: shared for life, taken by a process that removes the file, queried |
//! | `file_size` | whether a file may become that long |
//! | `futex`   | sleep on one word, two or many, with a time limit; wake |
//! | `limits`  | what this process may use |
//! | `robust`  | words that the kernel marks when the thread that holds them dies |
//! | `process` | who am I, does that task still live, fork, reap |
//! | `refusal` | refusals on demand, for tests |
//! | `signals` | start a thread that takes no signal |
//! | `thread_end` | what a thread does last |
//! | `thread_lock` | a lock between this process's threads that no fork leaves locked |
//! | `thread_word` | one word for each thread, without a call |
//! | `watch`   | what a master sleeps on: a counter, a pipe, a timer, pidfds |

pub(crate) mod call;
pub(crate) mod clock;
pub(crate) mod descriptor;
pub(crate) mod file_lock;
pub(crate) mod file_size;
pub(crate) mod futex;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod process;
#[cfg(feature = "testing")]
pub(crate) mod refusal;
pub(crate) mod robust;
pub(crate) mod signals;
pub(crate) mod thread_end;
pub(crate) mod thread_lock;
pub(crate) mod thread_word;
pub(crate) mod watch;
