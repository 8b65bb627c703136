//! The end of a scope, and of the process it is in.

use std::io::{self, PipeWriter, Read, Write, pipe};

use shmkit::process::{JoinError, SpawnError, scope};
use shmkit::{Pool, testing};

use super::results::Bad;
use super::{
    listen, loop_for_ever, no_child_left, open_descriptors, panic_message, quietly, role_succeeds,
    tell,
};
use crate::common::TestPool;

pub fn an_unjoined_failure_panics_the_scope() {
    let message = panic_message(|| {
        scope(|s| {
            s.spawn(|| 1).unwrap();
            s.spawn(|| -> u8 { panic!("unheard") }).unwrap();
        });
    });
    assert!(message.contains("unheard"), "{message}");
    let message = panic_message(|| {
        scope(|s| std::mem::forget(s.spawn(|| -> u8 { std::process::exit(0) }).unwrap()));
    });
    assert!(message.contains("code 0"), "{message}");
    let message = panic_message(|| {
        scope(|s| {
            drop(
                s.spawn(|| Bad {
                    length: 1,
                    panics: false,
                })
                .unwrap(),
            )
        });
    });
    assert!(message.contains("did not arrive"), "{message}");
}

/// Its handle is dropped, and it is reaped when others are started.
pub fn a_failure_that_is_swept_panics_the_scope() {
    let message = panic_message(|| {
        scope(|s| {
            let fails = s.spawn(|| -> u8 { std::process::exit(3) }).unwrap();
            while !fails.is_finished() {
                std::thread::yield_now();
            }
            drop(fails);
            for _ in 0..40 {
                drop(s.spawn(|| ()).unwrap());
            }
        });
    });
    assert!(message.contains("code 3"), "{message}");
}

/// Nobody else looks for the dead.
pub fn what_a_dead_child_held_goes_with_its_join() {
    let pool = TestPool::new();
    drop(pool.create(1_u64).unwrap());
    let before = pool.stats().allocated;
    let of_child: Pool = *pool;
    scope(|s| {
        let dies = s.spawn(move || -> u8 {
            std::mem::forget(of_child.create(2_u64).unwrap());
            std::process::abort()
        });
        dies.unwrap().join().unwrap_err();
        assert_eq!(pool.stats().allocated, before);
    });
}

pub fn a_joined_failure_does_not() {
    let value = scope(|s| {
        s.spawn(|| 1).unwrap();
        assert!(
            s.spawn(|| -> u8 { std::process::exit(1) })
                .unwrap()
                .join()
                .is_err()
        );
        9
    });
    assert_eq!(value, 9);
}

pub fn a_panic_of_the_scope_waits_for_children() {
    let (reader, writer) = pipe().unwrap();
    let message = panic_message(|| {
        scope(|s| {
            let _joined_by_the_scope = s.spawn(|| tell(&writer)).unwrap();
            s.spawn(|| -> u8 { std::process::exit(1) }).unwrap();
            panic!("of the scope");
        });
    });
    assert_eq!(
        message, "of the scope",
        "goes before the failure of a child"
    );
    drop(writer);
    listen(&reader);
    assert!(no_child_left());
}

/// Writes a byte when it is dropped.
struct Tells<'a>(&'a PipeWriter);

impl Drop for Tells<'_> {
    fn drop(&mut self) {
        tell(self.0);
    }
}

pub fn nothing_is_dropped_twice() {
    let (mut reader, writer) = pipe().unwrap();
    {
        let owned = Tells(&writer);
        let boxed = Box::new(Tells(&writer));
        quietly(|| {
            scope(|s| {
                let in_scope = Tells(&writer);
                let address = s.spawn(|| std::ptr::from_ref(owned.0).addr()).unwrap();
                s.spawn(|| std::ptr::from_ref(boxed.0).addr())
                    .unwrap()
                    .join()
                    .unwrap();
                let _ = s.spawn(|| -> u8 { panic!() }).unwrap().join();
                let _ = s.spawn(|| -> u8 { std::process::exit(0) }).unwrap().join();
                address.join().unwrap();
                drop(in_scope);
            });
        });
    }
    // A value that the child itself made is dropped by the child.
    scope(|s| s.spawn(|| drop(Tells(&writer))).unwrap().join().unwrap());
    drop(writer);
    let mut drops = Vec::new();
    reader.read_to_end(&mut drops).unwrap();
    assert_eq!(drops.len(), 4);
}

pub fn role_flush() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    extern "C" fn at_exit() {
        print!("exit,");
        let _ = io::stdout().flush();
    }
    print!("rust,");
    // SAFETY: C's standard output is open, the text ends with a zero, and the handler may run at
    // any exit.
    unsafe {
        libc::fputs(c"c,".as_ptr(), stdout);
        libc::atexit(at_exit);
    }
    scope(|s| {
        let _held = io::stdout().lock(); // by the thread that forks: no obstacle in the child
        s.spawn(|| print!("child,")).unwrap().join().unwrap();
        s.spawn(|| {
            // SAFETY: as above.
            unsafe { libc::fputs(c"c child,".as_ptr(), stdout) };
        })
        .unwrap()
        .join()
        .unwrap();
        print!("after,");
        let _ = s
            .spawn(|| -> u8 { std::panic::resume_unwind(Box::new(())) })
            .unwrap()
            .join();
    });
}

pub fn output_is_flushed_once() {
    let output = role_succeeds("role_flush");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "rust,c,child,c child,after,exit,");
}

pub fn two_hundred_leave_nothing() {
    let before = open_descriptors();
    scope(|s| {
        for n in 0..200_usize {
            match n % 4 {
                0 => assert_eq!(s.spawn(move || n).unwrap().join().unwrap(), n),
                1 => assert!(
                    s.spawn(|| -> u8 { std::process::exit(1) })
                        .unwrap()
                        .join()
                        .is_err()
                ),
                2 => {
                    let child = s.spawn(loop_for_ever).unwrap();
                    child.kill().unwrap();
                    assert!(child.join().is_err());
                }
                _ => drop(s.spawn(|| ()).unwrap()),
            }
        }
    });
    assert_eq!(open_descriptors(), before);
    assert!(no_child_left());
}

pub fn abandoned_children_are_swept() {
    let before = open_descriptors();
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let kept = s.spawn(|| listen(&reader)).unwrap();
        for _ in 0..300 {
            let child = s.spawn(|| ()).unwrap();
            while !child.is_finished() {
                std::thread::yield_now();
            }
        }
        let held = open_descriptors() - before;
        tell(&writer);
        kept.join().unwrap();
        assert!(held < 40, "{held} descriptors");
    });
    // The failure of one that was swept is not forgotten.
    let message = panic_message(|| {
        scope(|s| {
            s.spawn(|| -> u8 { std::process::exit(33) }).unwrap();
            for _ in 0..100 {
                s.spawn(|| ()).unwrap();
            }
        });
    });
    assert!(message.contains("code 33"), "{message}");
}

pub fn nested_scopes() {
    fn tree(depth: u32) -> u64 {
        if depth == 0 {
            return 1;
        }
        scope(|s| {
            let children = [0, 1].map(|_| s.spawn(move || tree(depth - 1)).unwrap());
            children
                .into_iter()
                .map(|child| child.join().unwrap())
                .sum::<u64>()
                + 1
        })
    }
    assert_eq!(tree(4), 31);
    quietly(|| {
        scope(|s| {
            // A child whose own scope panics has panicked.
            let child = s.spawn(|| scope(|s| drop(s.spawn(|| -> u8 { panic!("deep") }).unwrap())));
            match child.unwrap().join() {
                Err(JoinError::Panicked(message)) => assert!(message.contains("deep"), "{message}"),
                other => panic!("{other:?}"),
            }
        });
    });
    // Two scopes at once in one process.
    scope(|outer| {
        let first = outer.spawn(|| 1).unwrap();
        scope(|inner| {
            let second = inner.spawn(|| 2).unwrap();
            assert_eq!(first.join().unwrap() + second.join().unwrap(), 3);
        });
    });
}

pub fn a_full_pool_refuses_a_child() {
    let pool = Pool::builder().max_participants(2).create().unwrap();
    let shared = pool.create(5_u32).unwrap();
    let (told, writer) = pipe().unwrap();
    scope(|s| {
        let mut children = Vec::new();
        let refused = loop {
            let told = &told;
            match s.spawn(move || listen(told)) {
                Ok(child) => children.push(child),
                Err(error) => break error,
            }
            assert!(children.len() < 10, "the pool has room for two");
        };
        assert!(matches!(refused, SpawnError::NoProcessRecord));
        // Handles are dropped and made as before.
        assert_eq!(*shared.handle().open().unwrap(), 5);
        for child in children {
            tell(&writer);
            child.join().unwrap();
        }
        assert_eq!(s.spawn(|| 1).unwrap().join().unwrap(), 1);
    });
    drop(shared);
    // SAFETY: nothing refers to the pool any more, and no child has it.
    unsafe { pool.unmap() };
}

/// No pool keeps a record for a child that another has no room for.
pub fn a_refused_child_has_no_record() {
    let pool = TestPool::new();
    // Above it, as records are made in that order.
    let above = |granules: usize| {
        let base = pool.base() + (granules << 40);
        let small = Pool::builder().max_participants(1).base(base).create();
        small.ok().map(TestPool::of)
    };
    let full = (1..48).find_map(above).unwrap();
    let shared = [pool.create(5_u32).unwrap(), full.create(6).unwrap()];
    let refused = scope(|s| s.spawn(|| ()).map(drop));
    assert!(matches!(refused, Err(SpawnError::NoProcessRecord)));
    assert_eq!(testing::forking::records(*pool), 1);
    drop(shared);
}
