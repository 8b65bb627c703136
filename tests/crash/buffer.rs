//! Buffers: appended to, read, deleted from, closed, destroyed, and killed after every change.
//!
//! Whatever died, the bytes are those from before or from after the operation, more can be appended and they can
//! be deleted, and the allocated memory is that of the chunks and nothing else.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use shmkit::{AppendError, Buffer, Pool, Shared, testing};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, ensure};
use super::sync::killed_in;

pub struct World {
    pub pool: Pool,
    buffer: Option<Shared<Buffer>>,
    /// Bytes in use without the buffer's chunks.
    others: usize,
}

impl InPool for World {
    fn pool(&self) -> Pool {
        self.pool
    }
}

/// What a buffer holds: its start, and its bytes from there on.
pub type Content = (u64, Vec<u8>);

pub fn content(buffer: &Buffer) -> Result<Content, String> {
    let start = buffer.start();
    let view = buffer.view(start..buffer.end());
    let bytes = view.map_err(|error| error.to_string())?.to_vec();
    ensure(bytes.len() as u64 == buffer.len(), || {
        "bytes are missing".into()
    })?;
    Ok((start, bytes))
}

/// Some bytes, other ones for other numbers.
pub fn bytes(number: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ number)
        .collect()
}

pub fn append(buffer: &Buffer, number: u8, len: usize) -> u64 {
    buffer.append(&bytes(number, len)).expect("room")
}

impl World {
    pub fn new(setup: impl Fn(&Buffer)) -> World {
        World::of(Buffer::new(), setup)
    }

    fn of(buffer: Buffer, setup: impl Fn(&Buffer)) -> World {
        let pool = in_pool::pool();
        let buffer = pool.create(buffer).expect("room");
        let others = pool.stats().allocated;
        setup(&buffer);
        World {
            pool,
            buffer: Some(buffer),
            others,
        }
    }

    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        let other = self.pool.create(Buffer::new()).expect("room");
        for len in [10, 400, 1000] {
            append(&other, 0, len);
        }
    }

    pub fn buffer(&self) -> &Buffer {
        self.buffer.as_ref().expect("not dropped")
    }

    pub fn intact(&self, when: &str) -> Result<(), String> {
        let report = self.pool.check_quiescent();
        ensure(report.is_ok(), || format!("{when}: {report}"))?;
        let chunks: usize = self
            .buffer
            .as_ref()
            .map_or(0, |b| testing::buffer_memory(b));
        let now = self.pool.stats().allocated;
        ensure(now == self.others + chunks, || {
            format!("{when}: {now} bytes, not {} and {chunks}", self.others)
        })
    }

    /// It can be appended to and deleted from; unless it is closed.
    pub fn works(&self) -> Result<(), String> {
        let buffer = self.buffer();
        let closed = buffer.is_closed();
        let (start, mut model) = content(buffer)?;
        for (number, len) in [(101, 20), (102, 400), (103, 9000), (104, 1)] {
            let more = bytes(number, len);
            let end = start + model.len() as u64;
            match buffer.append(&more) {
                Ok(at) if !closed && at == end => model.extend(more),
                Err(AppendError::Closed) if closed => {}
                other => return Err(format!("{other:?}, closed: {closed}")),
            }
            ensure(content(buffer)? == (start, model.clone()), || {
                format!("other bytes after {len} more")
            })?;
        }
        self.intact("after appending")?;
        let end = start + model.len() as u64;
        let middle = start + model.len() as u64 / 2;
        buffer.truncate_front(middle).map_err(|e| e.to_string())?;
        let rest = &model[model.len() / 2..];
        ensure(content(buffer)? == (middle, rest.to_vec()), || {
            "other bytes after deleting".into()
        })?;
        buffer.clear().map_err(|e| e.to_string())?;
        ensure(content(buffer)? == (end, Vec::new()), || "not empty".into())?;
        self.intact("after deleting")?;
        let chunks = testing::buffer_memory(buffer);
        // The last chunk is there, which is not large.
        ensure(chunks <= 32 << 10, || format!("{chunks} bytes for nothing"))
    }
}

/// A buffer that `setup` brings into the state where the operation finds it.
fn case(
    name: &str,
    setup: impl Fn(&Buffer) + 'static,
    operation: impl Fn(&mut World) + 'static,
) -> Case<World> {
    in_pool::case(format!("buffer/{name}"), move || World::new(&setup))
        .attach(World::enter)
        .operation(move |world| {
            operation(world);
            progress(1);
        })
}

/// The content is one of two, and the second one when the operation had returned.
fn either(
    case: Case<World>,
    before: impl Fn() -> Content + 'static,
    after: impl Fn() -> Content + 'static,
) -> Case<World> {
    case.verify(move |world, crash: &Crash| {
        // What died in recovery is dead now too.
        world.pool.recover();
        world.intact("after recovery")?;
        let found = content(world.buffer())?;
        ensure(
            found == after() || found == before() && !crash.done(),
            || format!("{} bytes from {}", found.1.len(), found.0),
        )?;
        world.works()
    })
}

pub fn cases(suite: &mut Suite) {
    appends(suite);
    deletions(suite);
    for (name, len) in [("close", 100), ("close, behind a large chunk", 40_000)] {
        suite.run(
            case(
                name,
                move |buffer| {
                    append(buffer, 1, len);
                },
                |world| world.buffer().close().expect("in a pool"),
            )
            .verify(move |world, crash| {
                world.pool.recover();
                world.intact("after recovery")?;
                let same = content(world.buffer())? == (0, bytes(1, len));
                ensure(same, || "other bytes".into())?;
                let closed = world.buffer().is_closed();
                ensure(closed || crash.progress == 0, || "not closed".into())?;
                world.works()
            }),
        );
    }
    suite.run(either(
        case(
            "view",
            |buffer| {
                append(buffer, 1, 100);
                append(buffer, 2, 1000);
            },
            |world| {
                let view = world.buffer().view(50..1050).expect("bytes");
                world.buffer().truncate_front(1060).expect("bytes");
                assert_eq!(view.chunks().map(<[u8]>::len).sum::<usize>(), 1000);
            },
        ),
        || (0, [bytes(1, 100), bytes(2, 1000)].concat()),
        || (1060, bytes(2, 1000)[960..].to_vec()),
    ));
    suite.run(
        case(
            "destroy",
            |_| (),
            |world| {
                // Made here, so that the victim alone holds it.
                let made = world.pool.create(Buffer::new()).expect("room");
                for len in [300, 400, 1000] {
                    append(&made, 0, len);
                }
                drop(made);
            },
        )
        .verify(|world, _| {
            world.pool.recover();
            world.intact("after recovery")?;
            world.works()
        }),
    );
}

fn appends(suite: &mut Suite) {
    let empty = || (0, Vec::new());
    suite.run(either(
        case(
            "append, the first",
            |_| (),
            |world| {
                append(world.buffer(), 1, 40);
            },
        ),
        empty,
        || (0, bytes(1, 40)),
    ));
    let one = |buffer: &Buffer| {
        append(buffer, 1, 40);
    };
    suite.run(either(
        case("append, in place", one, |world| {
            append(world.buffer(), 2, 60);
        }),
        || (0, bytes(1, 40)),
        || (0, [bytes(1, 40), bytes(2, 60)].concat()),
    ));
    suite.run(either(
        case("append, in a new chunk", one, |world| {
            append(world.buffer(), 2, 300);
        }),
        || (0, bytes(1, 40)),
        || (0, [bytes(1, 40), bytes(2, 300)].concat()),
    ));
    // A chunk of as many slices as one that the victim has freed.
    let large = case("append, in a run that was kept", one, |world| {
        append(world.buffer(), 2, 40_000);
    });
    let large = large.attach(|world| {
        let keeps = || {
            let other = world.pool.create(Buffer::new()).expect("room");
            // The same bytes: to copy them again changes nothing.
            append(&other, 2, 40_000);
            drop(other);
            testing::slices(world.pool).contains("ktt")
        };
        // But memory may age just then.
        assert!((0..10).any(|_| keeps()));
    });
    suite.run(either(
        large,
        || (0, bytes(1, 40)),
        || (0, [bytes(1, 40), bytes(2, 40_000)].concat()),
    ));
    suite.run(either(
        case(
            "append, refused",
            |buffer| {
                append(buffer, 1, 40);
                buffer.close().expect("in a pool");
            },
            |world| {
                let refused = world.buffer().append(&bytes(2, 60));
                assert_eq!(refused, Err(AppendError::Closed));
            },
        ),
        || (0, bytes(1, 40)),
        || (0, bytes(1, 40)),
    ));
    let in_vain = case("read in vain", one, |world| {
        let mut reader = world.buffer().reader(40);
        reader.set_timeout(Some(Duration::from_millis(500)));
        let nothing = reader.read(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(nothing, Err(ErrorKind::TimedOut));
    });
    const BOUND: usize = 20_000;
    let bounded = || {
        World::of(Buffer::with_capacity(BOUND as u64), |buffer| {
            append(buffer, 1, 40);
        })
    };
    let written_in_vain = in_pool::case("buffer/append in vain".to_owned(), bounded)
        .attach(World::enter)
        .operation(|world| {
            let mut writer = world.buffer().writer();
            writer.set_timeout(Some(Duration::from_millis(500)));
            let nothing = writer.append(&bytes(2, BOUND));
            assert_eq!(nothing, Err(AppendError::TimedOut));
            progress(1);
        });
    // How often it looks depends on the clock, so no two runs are alike.
    suite.run(
        either(written_in_vain, || (0, bytes(1, 40)), || (0, bytes(1, 40)))
            .without_second_order()
            .without_real_kills(),
    );
    suite.run(
        either(in_vain, || (0, bytes(1, 40)), || (0, bytes(1, 40)))
            .without_second_order()
            .without_real_kills(),
    );
}

fn deletions(suite: &mut Suite) {
    let three = |buffer: &Buffer| {
        for number in 1..=3 {
            append(buffer, number, 700);
        }
    };
    let whole = || {
        (1..=3)
            .flat_map(|number| bytes(number, 700))
            .collect::<Vec<_>>()
    };
    suite.run(either(
        case("delete some bytes", three, |world| {
            world.buffer().truncate_front(10).expect("bytes");
        }),
        move || (0, whole()),
        move || (10, whole()[10..].to_vec()),
    ));
    suite.run(either(
        case("delete chunks", three, |world| {
            world.buffer().truncate_front(1500).expect("bytes");
        }),
        move || (0, whole()),
        move || (1500, whole()[1500..].to_vec()),
    ));
    // The process that has made the world looks at all of it, and goes on looking: nothing is freed, by whomever.
    suite.run(
        case(
            "delete chunks that somebody looks at",
            move |buffer| {
                three(buffer);
                std::mem::forget(buffer.view(0..2100).expect("bytes"));
            },
            |world| world.buffer().truncate_front(1500).expect("bytes"),
        )
        .verify(|world, _| {
            in_pool::sound(world.pool)?;
            let memory = testing::buffer_memory(world.buffer());
            for end in [1500, 2100] {
                let deleted = world.buffer().truncate_front(end);
                deleted.map_err(|error| error.to_string())?;
            }
            in_pool::sound(world.pool)?;
            let now = testing::buffer_memory(world.buffer());
            ensure(now == memory, || format!("{now} bytes, {memory} looked at"))
        }),
    );
    suite.run(either(
        case(
            "delete all of a large one",
            |buffer| {
                append(buffer, 1, 40);
                append(buffer, 2, 40_000);
            },
            |world| world.buffer().clear().expect("bytes"),
        ),
        || (0, [bytes(1, 40), bytes(2, 40_000)].concat()),
        || (40_040, Vec::new()),
    ));
    // Killed with chunks to free and a view open: the next one frees them.
    suite.run(either(
        case(
            "append after a deleter died",
            |buffer| {
                append(buffer, 1, 300);
                append(buffer, 2, 700);
                killed_in(
                    buffer,
                    |buffer| {
                        let view = buffer.view(0..300).expect("bytes");
                        buffer.clear().expect("bytes");
                        std::mem::forget(view);
                    },
                    |_| false,
                );
            },
            |world| {
                append(world.buffer(), 3, 700);
            },
        ),
        || (1000, Vec::new()),
        || (1000, bytes(3, 700)),
    ));
}
