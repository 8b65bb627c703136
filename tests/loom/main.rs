//! The protocols of `src/protocol` under every interleaving that loom finds, and after a death at
//! every write.
//!
//! ```sh
//! RUSTFLAGS="--cfg shmkit_loom" cargo test --test loom --release -- --nocapture
//! ```
//!
//! The models run the product's code and add what the pool does around it. A thread that dies unwinds in place of its
//! n-th write (`primitive::model`), for every n; recovery runs after that, because the kernel marks a life word after
//! everything that its owner wrote. The number of preemptions is bounded where a model would take too long.

#![cfg(shmkit_loom)]

mod bell;
mod bitmaps;
mod chain;
mod claimed;
mod detect;
mod keeping;
mod leased;
mod left;
mod lifecycle;
mod lines;
mod lock_word;
mod moving;
mod permits;
mod pins;
mod readers;
mod ring;
mod rings;
mod rounds;
mod split;
mod sweep;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use shmkit::primitive::{Killed, kill_after, without_fences};

/// Where a thread dies: instead of that write, or nowhere.
type Death = Option<usize>;

/// Whether anybody was killed, in any of the executions of a model.
#[derive(Clone, Default)]
struct Deaths(Arc<AtomicBool>);

impl Deaths {
    /// Runs `work`, unless it dies before. True if it died.
    fn kill(&self, at: Death, work: impl FnOnce()) -> bool {
        kill_after(at);
        let ended = catch_unwind(AssertUnwindSafe(work));
        kill_after(None);
        match ended {
            Ok(()) => false,
            Err(why) if why.is::<Killed>() => {
                self.0.store(true, Ordering::Relaxed);
                // Others go on before anybody recovers. loom does not try that by itself where they look at a word
                // before they change it: of who used a word it knows the last alone, and that look hides the recovery's.
                loom::thread::yield_now();
                true
            }
            Err(why) => resume_unwind(why),
        }
    }
}

struct Explorer {
    name: &'static str,
    /// With a fence before what is SeqCst: see `primitive::model`.
    has_fences: bool,
    executions: Arc<AtomicUsize>,
    started: Instant,
}

impl Explorer {
    fn new(name: &'static str) -> Self {
        Explorer {
            name,
            has_fences: true,
            executions: Arc::default(),
            started: Instant::now(),
        }
    }

    /// For models that need no order of all that is SeqCst: they find out about orders whose work the fences would do.
    fn without_fences(name: &'static str) -> Self {
        let mut explorer = Explorer::new(name);
        explorer.has_fences = false;
        explorer
    }

    /// Every execution with at most so many preemptions.
    fn run(&self, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let executions = Arc::clone(&self.executions);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 20_000;
        let check = || {
            builder.check(move || {
                executions.fetch_add(1, Ordering::Relaxed);
                model();
            });
        };
        match self.has_fences {
            true => check(),
            false => without_fences(check),
        }
    }

    /// The same for every death of who uses the given place, and for none.
    fn each_death<M>(&self, preemptions: usize, model: impl Fn(Deaths, Death) -> M)
    where
        M: Fn() + Send + Sync + 'static,
    {
        for at in 0.. {
            let deaths = Deaths::default();
            self.run(preemptions, model(deaths.clone(), Some(at)));
            if !deaths.0.load(Ordering::Relaxed) {
                assert!(at > 0, "nobody writes anything");
                break;
            }
        }
    }

    /// The same for every death of a victim, and then every death of who recovers it.
    fn each_recovery<M>(
        &self,
        preemptions: usize,
        model: impl Fn((Deaths, Death), (Deaths, Death)) -> M,
    ) where
        M: Fn() + Send + Sync + 'static,
    {
        for victim_at in 0.. {
            let victims = Deaths::default();
            for at in 0.. {
                let recoverers = Deaths::default();
                let victim = (victims.clone(), Some(victim_at));
                self.run(preemptions, model(victim, (recoverers.clone(), Some(at))));
                if !recoverers.0.load(Ordering::Relaxed) {
                    break;
                }
            }
            if !victims.0.load(Ordering::Relaxed) {
                assert!(victim_at > 0, "nobody writes anything");
                break;
            }
        }
    }
}

impl Drop for Explorer {
    fn drop(&mut self) {
        let executions = self.executions.load(Ordering::Relaxed);
        let seconds = self.started.elapsed().as_secs_f32();
        println!("{}: {executions} executions, {seconds:.2} s", self.name);
    }
}
