//! Values that arrive, and values that do not.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use shmkit::process::{Config, JoinError, Master, ResultError, RunError, scope};
use shmkit::sync::BarrierError;
use shmkit::{
    AllocError, Array, Barrier, ClaimError, ElementError, ObjectError, PushRefusal, Queue,
};

use super::{quietly, role_succeeds};
use crate::common::TestPool;

#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Circle { radius: f64, label: Option<String> },
    Path(Vec<(i32, i32)>),
}

pub fn results_are_typed() {
    let path = Shape::Path(vec![(1, -1), (i32::MAX, i32::MIN)]);
    scope(|s| {
        let circle = s
            .spawn(|| Shape::Circle {
                radius: 0.5,
                label: Some("ö".into()),
            })
            .unwrap();
        let same = s.spawn(|| path.clone()).unwrap();
        let nothing = s.spawn(|| Shape::Nothing).unwrap();
        let unit = s.spawn(|| ()).unwrap();
        let inner: Result<u8, String> = Err("inner".into());
        let inner_child = s.spawn(|| Err::<u8, _>("inner".to_string())).unwrap();
        let map = s
            .spawn(|| std::collections::BTreeMap::from([(1, 'a'), (2, 'b')]))
            .unwrap();
        // Joined in another order than they were started in.
        assert_eq!(map.join().unwrap()[&2], 'b');
        assert_eq!(inner_child.join().unwrap(), inner);
        unit.join().unwrap();
        assert_eq!(nothing.join().unwrap(), Shape::Nothing);
        assert_eq!(same.join().unwrap(), path);
        let expected = Shape::Circle {
            radius: 0.5,
            label: Some("ö".into()),
        };
        assert_eq!(circle.join().unwrap(), expected);
    });
}

/// What containers and locks refuse, a child can return as it is.
pub fn errors_are_results() {
    let pool = TestPool::with(|builder| builder.max_size(1 << 20));
    let world = pool
        .create((Barrier::new(0), Queue::bounded(1), Array::<u8>::new()))
        .unwrap();
    let (barrier, queue, array) = &*world;
    queue.push(7_u8).unwrap();
    scope(|s| {
        let meets = s.spawn(|| barrier.wait().map(|result| result.is_leader()));
        assert_eq!(meets.unwrap().join().unwrap(), Err(BarrierError::Parties));
        let pushes = s.spawn(|| queue.try_push(8)).unwrap();
        let refused = pushes.join().unwrap().unwrap_err();
        assert_eq!((refused.value, refused.cause), (8, PushRefusal::Full));
        let reads = s.spawn(|| array.get(3)).unwrap();
        assert_eq!(
            reads.join().unwrap(),
            Err(ElementError::OutOfBounds { index: 3, len: 0 })
        );
        let allocates = s.spawn(|| pool.create([0_u8; 2 << 20]).map(drop).map_err(|e| e.cause));
        assert_eq!(
            allocates.unwrap().join().unwrap(),
            Err(ObjectError::Alloc(AllocError::PoolFull))
        );
        let claims = s.spawn(|| array.claim(1..3).map(drop)).unwrap();
        assert!(matches!(
            claims.join().unwrap(),
            Err(ClaimError::OutOfBounds {
                start: 1,
                end: 3,
                ..
            })
        ));
    });
}

pub fn results_of_every_length() {
    // The frame changes from one write to several at 4096 bytes, header and length included.
    for length in (4060..4110).chain([0, 1, 8191, 8192, 65536, 1 << 20]) {
        let text = "x".repeat(length);
        let bytes = scope(|s| {
            s.spawn(|| text.as_str().to_owned())
                .unwrap()
                .join()
                .unwrap()
        });
        assert_eq!(bytes.len(), length);
        let many = vec![7_u8; length];
        let one_by_one = scope(|s| s.spawn(|| many.to_vec()).unwrap().join().unwrap());
        assert_eq!(one_by_one, many);
    }
}

pub fn a_result_of_100_mb() {
    let length = 100_000_000;
    let text = scope(|s| {
        let child = s.spawn(move || {
            let mut text = "0123456789".repeat(length / 10);
            text.push('!');
            text
        });
        child.unwrap().join().unwrap()
    });
    assert_eq!(text.len(), length + 1);
    assert!(text.ends_with("789!") && text.as_bytes()[length / 2] == b'0');
}

pub fn borrows_are_shared_and_copied() {
    let mut numbers = vec![1, 2, 3];
    let factor = 10;
    let products: Vec<i32> = scope(|s| {
        let children: Vec<_> = numbers
            .iter()
            .map(|number| s.spawn(move || number * factor).unwrap())
            .collect();
        children
            .into_iter()
            .map(|child| child.join().unwrap())
            .collect()
    });
    numbers.extend(products); // the borrow ended with the scope
    assert_eq!(numbers, [1, 2, 3, 10, 20, 30]);
}

/// Fails to serialise, or panics while it is, after `length` bytes.
#[derive(Debug)]
pub struct Bad {
    pub length: usize,
    pub panics: bool,
}

impl Serialize for Bad {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error, SerializeTuple};
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&"x".repeat(self.length))?;
        assert!(!self.panics, "in the middle");
        Err(S::Error::custom("never"))
    }
}

impl<'de> Deserialize<'de> for Bad {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        unreachable!("no value is ever written")
    }
}

/// Writes a number, and reads a string.
#[derive(Debug)]
struct Crooked(usize);

impl Serialize for Crooked {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (200_u8, "y".repeat(self.0)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Crooked {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer).map(|n| Crooked(n.into()))
    }
}

pub fn results_that_do_not_serialise() {
    quietly(|| {
        scope(|s| {
            for length in [0, 10_000] {
                let fails = s
                    .spawn(move || Bad {
                        length,
                        panics: false,
                    })
                    .unwrap()
                    .join();
                let Err(JoinError::NoResult(ResultError::Encode(message))) = fails else {
                    panic!("{fails:?}")
                };
                assert!(!message.is_empty());
                match s
                    .spawn(move || Bad {
                        length,
                        panics: true,
                    })
                    .unwrap()
                    .join()
                {
                    Err(JoinError::Panicked(message)) => assert_eq!(message, "in the middle"),
                    other => panic!("{other:?}"),
                }
                match s.spawn(move || Crooked(length)).unwrap().join() {
                    Err(JoinError::NoResult(ResultError::Decode(_))) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    });
}

pub fn role_no_room() {
    // Whoever tries to write more is sent SIGXFSZ, which is not ignored.
    // SAFETY: a plain system call.
    unsafe {
        let limit = libc::rlimit {
            rlim_cur: 100_000,
            rlim_max: 100_000,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    scope(|s| {
        assert_eq!(
            s.spawn(|| "x".repeat(90_000))
                .unwrap()
                .join()
                .unwrap()
                .len(),
            90_000
        );
        match s.spawn(|| "x".repeat(100_000)).unwrap().join() {
            Err(JoinError::NoResult(ResultError::Write(error))) => {
                assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            }
            other => panic!("{other:?}"),
        }
    });
    // SAFETY: as above.
    unsafe {
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    scope(|s| match s.spawn(|| 1).unwrap().join() {
        Err(JoinError::Exited(74)) => {}
        other => panic!("{other:?}"),
    });
}

pub fn results_that_do_not_fit() {
    role_succeeds("role_no_room");
}

/// Lets this process make files of so many bytes. Whoever tries to write more is sent SIGXFSZ.
fn limit_files(bytes: Option<u64>) {
    let before = getrlimit(Resource::Fsize);
    let current = bytes;
    setrlimit(Resource::Fsize, Rlimit { current, ..before }).unwrap();
}

pub fn role_short_files() {
    let directory = std::env::temp_dir().join(format!("shmkit-short-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let pid_file = directory.join("pid");
    let refused = |config: &Config, limit: u64| {
        limit_files(Some(limit));
        match Master::new(config).map(drop) {
            Err(RunError::File { error, .. }) => {
                assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            }
            other => panic!("{other:?}"),
        }
        limit_files(None);
    };
    refused(&Config::new().pid_file(&pid_file), 1);
    // The header would have room.
    refused(&Config::new().run_directory(&directory), 10_000);
    // What is there is taken by the next run, which may write it.
    let config = Config::new().run_directory(&directory).pid_file(&pid_file);
    Master::new(&config).unwrap().finish().unwrap();
    std::fs::remove_dir(&directory).unwrap();
}

pub fn files_that_may_not_be_so_long() {
    role_succeeds("role_short_files");
}
