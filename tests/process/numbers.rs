//! Programs that close descriptors which they have not opened, as those do that become daemons, and open files of
//! their own, which get the numbers: nothing is written to these files, nor are they closed.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use shmkit::process::{Entry, JoinError, Resource, ResourceError, StartError, scope};
use shmkit::{AllocError, CommitError, Event, GrowError};

use super::masters::{SQUARE, runs};
use super::quietly;
use crate::common::{
    TestPool, allocate, assert_sound, fill, free, layout, leave, open_descriptors, tasks, verify,
};

const CONTENT: &[u8] =
    b"a file of the program's own, longer than any number that the library writes";

/// A file without a name; whoever opens it by its number's path has it at position 0.
fn theirs() -> File {
    let file = rustix::fs::memfd_create(c"theirs", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.write_all_at(CONTENT, 0).unwrap();
    file
}

/// All numbers but the standard streams stand for this file from now on.
fn takes_all_numbers(theirs: &File) {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers = numbers.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap());
    let numbers: Vec<i32> = numbers.filter(|&number| number > 2).collect();
    for number in numbers {
        // SAFETY: that the number stands for something else is what the test is about. The directory that was read
        // is not open any more, and gets a number that nobody else has.
        assert_eq!(unsafe { libc::dup2(theirs.as_raw_fd(), number) }, number);
    }
}

fn is_untouched(theirs: &File) -> bool {
    let mut content = Vec::new();
    let read = File::open(format!("/proc/self/fd/{}", theirs.as_raw_fd()))
        .and_then(|mut file| file.read_to_end(&mut content));
    read.is_ok() && content == CONTENT
}

pub fn a_pool_does_not_grow_through_it() {
    const LONG: usize = 100_000;
    let pool = TestPool::with(|b| b.max_size(1 << 30));
    let theirs = theirs();
    let is_untouched = || is_untouched(&theirs);
    scope(|s| {
        let child = s.spawn::<_, ()>(|| {
            let mut taken = vec![allocate(*pool, LONG)];
            takes_all_numbers(&theirs);
            let error = loop {
                match pool.allocate(layout(LONG, 8)) {
                    Ok(block) => taken.push(block.cast()),
                    Err(error) => break error,
                }
            };
            let closed = CommitError::System(libc::EBADF);
            assert_eq!(error, AllocError::NoMemory(closed));
            match pool.grow_to(1 << 29) {
                Err(GrowError::NoMemory(error)) => assert_eq!(error, closed),
                other => panic!("{other:?}"),
            }
            // What there is can be used, and what it does not give back to the system is there for others.
            taken.iter().for_each(|&block| fill(block, LONG));
            for block in taken {
                verify(block);
                free(*pool, block);
            }
            assert_eq!(pool.purge().unwrap(), 0);
            assert!(is_untouched());
            // The number stays open: it is not the pool's.
            let before = open_descriptors();
            // SAFETY: this process uses nothing in it any more.
            unsafe { pool.unmap() };
            leave(open_descriptors() == before);
        });
        match child.unwrap().join() {
            Err(JoinError::Exited(0)) => {}
            other => panic!("{other:?}"),
        }
    });
    assert!(is_untouched());
    pool.grow_to(16 << 20).unwrap();
    assert_sound(*pool);
}

pub fn a_result_is_not_written_through_it() {
    let theirs = theirs();
    for panics in [false, true] {
        scope(|s| {
            let child = s.spawn(|| {
                takes_all_numbers(&theirs);
                quietly(|| assert!(!panics));
                "x".repeat(1000)
            });
            // Nor can be said why there is none.
            match child.unwrap().join() {
                Err(JoinError::Exited(74)) => {}
                other => panic!("{other:?}"),
            }
        });
        assert!(is_untouched(&theirs));
    }
}

static CLOSES: Entry<(), bool> = Entry::new("closes", |worker, ()| {
    let theirs = theirs();
    takes_all_numbers(&theirs);
    match worker.start(&SQUARE, &2) {
        Err(StartError::Unreachable) => {}
        other => panic!("{other:?}"),
    }
    match worker.resources().manage(Resource::File("/nowhere".into())) {
        Err(ResourceError::Unreachable) => {}
        other => panic!("{other:?}"),
    }
    is_untouched(&theirs)
});

/// Its result lies in the run's pool.
pub fn the_master_is_not_woken_through_it() {
    assert!(runs(&CLOSES));
}

/// The thread of a descriptor, which has lost its socket.
pub fn an_event_is_not_told_through_it() {
    let pool = TestPool::new();
    let event = pool.create(Event::new()).unwrap();
    let theirs = theirs();
    scope(|s| {
        let child = s.spawn::<_, ()>(|| {
            std::mem::forget(event.open_fd().unwrap());
            takes_all_numbers(&theirs);
            event.set();
            while tasks() > 1 {
                std::thread::yield_now();
            }
            leave(is_untouched(&theirs) && (&theirs).stream_position().unwrap() == 0);
        });
        match child.unwrap().join() {
            Err(JoinError::Exited(0)) => {}
            other => panic!("{other:?}"),
        }
    });
}
