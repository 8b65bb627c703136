//! Matrices and arrays: written to files and read back, and used in place by NumPy.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use shmkit::numbers::{self, StoreNumbersError};
use shmkit::{Array, Matrix, NamedError, Pool};

use crate::common::skip::skipped;
use crate::{Actor, Name, given, ready, refused, said, shmkit, told};

/// A file that goes with the case.
struct File(PathBuf);

impl File {
    fn new(what: &str) -> File {
        File(std::env::temp_dir().join(crate::name(what)))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn of(what: &str, bytes: &[u8]) -> File {
        let file = File::new(what);
        std::fs::write(&file.0, bytes).unwrap();
        file
    }

    /// A file as NumPy writes it, with any header.
    fn npy(descr: &str, fortran: bool, shape: &str, elements: &[u8]) -> File {
        let fortran = if fortran { "True" } else { "False" };
        let described = format!("'descr': '{descr}', 'fortran_order': {fortran}");
        File::described(&described, shape, elements)
    }

    fn described(described: &str, shape: &str, elements: &[u8]) -> File {
        let mut header = format!("{{{described}, 'shape': {shape}, }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(elements);
        File::of("made.npy", &bytes)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn pool(name: &str) -> Pool {
    Pool::builder()
        .max_size(16 << 20)
        .create_named(name)
        .unwrap()
}

pub fn matrices_and_arrays_travel() {
    let name = Name::new("travel");
    let pool = pool(&name.0);
    let name = &*name.0;
    macro_rules! travels {
        ($($t:ty)*) => {$({
            let of = stringify!($t);
            let matrix = Matrix::from_fn_in(pool, 7, 5, |r, c| (r * 5 + c) as $t).unwrap();
            pool.set_name(of, &matrix).unwrap();
            let file = File::new(of);
            said(&["export", name, of, file.path()]);
            let copy = format!("copy of {of}");
            let stored = told(&["import", name, &copy, file.path()]);
            assert_eq!((&stored["stored"], &stored["shape"]), (&"created".into(), &serde_json::json!([7, 5])));
            let copied = pool.named::<Matrix<$t>>(&copy).unwrap();
            assert_eq!(*copied.rows(..).unwrap(), *matrix.rows(..).unwrap());
            // Over what is there.
            matrix.rows_mut(..).unwrap().fill(1 as $t);
            let stored = told(&["import", name, of, file.path()]);
            assert_eq!(stored["stored"], "overwritten");
            assert_eq!(*matrix.rows(..).unwrap(), *copied.rows(..).unwrap());
        })*};
    }
    travels!(f64 f32 u8 u16 u32 u64 i8 i16 i32 i64);
    let array = Array::from_fn_in(pool, 1000, |i| i as u16).unwrap();
    pool.set_name("array", &array).unwrap();
    pool.set_name("empty", &pool.create(Array::<u8>::new()).unwrap())
        .unwrap();
    pool.set_name("number", &pool.create(3.5_f64).unwrap())
        .unwrap();
    let file = File::new("array.npy");
    said(&["export", name, "array", file.path()]);
    said(&["import", name, "again", file.path()]);
    let again = pool.named::<Array<u16>>("again").unwrap();
    assert_eq!(*again.claim(..).unwrap(), *array.claim(..).unwrap());
    said(&["export", name, "empty", file.path()]);
    // To standard output, the same bytes.
    said(&["export", name, "array", file.path()]);
    let output = shmkit(["export", name, "array", "-"]);
    assert_eq!(output.stdout, std::fs::read(&file.0).unwrap());
    said(&["export", name, "number", file.path()]);
    // A number travels, too. Who has the old one keeps it.
    let number = pool.named::<f64>("number").unwrap();
    pool.remove_name("number").unwrap();
    pool.set_name("number", &pool.create(-1.5_f64).unwrap())
        .unwrap();
    for (object, how) in [("other", "created"), ("number", "overwritten")] {
        let before = pool.named::<f64>(object).ok();
        let stored = told(&["import", name, object, file.path()]);
        assert_eq!(
            (&stored["stored"], &stored["shape"]),
            (&how.into(), &serde_json::json!([]))
        );
        assert_eq!(*pool.named::<f64>(object).unwrap(), *number);
        assert_eq!(
            before.map(|number| *number),
            (how == "overwritten").then_some(-1.5)
        );
    }
    let counter = pool.create(std::sync::atomic::AtomicU64::new(7)).unwrap();
    pool.set_name("counter", &counter).unwrap();
    for (object, code) in [("counter", 8), ("array", 8)] {
        said(&["export", name, "counter", file.path()]);
        refused(&["import", name, object, file.path()], code, "another type");
    }
    assert!(pool.check().is_ok());
}

pub fn an_export_is_whole_or_nothing() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;
    let name = Name::new("whole");
    let pool = pool(&name.0);
    let array = Array::from_fn_in(pool, 1 << 20, |i| i as u8).unwrap();
    pool.set_name("array", &array).unwrap();
    let directory = File::new("whole");
    std::fs::create_dir(&directory.0).unwrap();
    let path = |file: &str| format!("{}/{file}", directory.path());
    let files = || std::fs::read_dir(&directory.0).unwrap().count();
    let export = |to: &str| ["export", &name.0, "array", to].map(str::to_owned);
    let whole = shmkit(export("-")).stdout;
    assert!(whole.len() > 1 << 20);
    // Another name of standard output.
    assert!(shmkit(export("/dev/stdout")).stdout == whole);
    // One that is killed while it writes leaves nothing.
    for _ in 0..20 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
        let mut child = command.args(export(&path("killed"))).spawn().unwrap();
        let files_of_it = format!("/proc/{}/fd", child.id());
        let writes = || {
            let open = std::fs::read_dir(&files_of_it).ok()?;
            let of_ours = |link: std::path::PathBuf| link.starts_with(directory.path());
            let mut links = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            Some(links.any(of_ours))
        };
        // Until it does, or has done: what has ended shows no files.
        while writes() == Some(false) && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        if child.wait().unwrap().code().is_none() {
            assert_eq!(files(), 0);
            break;
        }
        let _ = std::fs::remove_file(path("killed"));
    }
    // What it was before stays if there is no room.
    let limited = |to: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
        let limit = libc::rlimit {
            rlim_cur: 1 << 16,
            rlim_max: 1 << 16,
        };
        // SAFETY: a system call, in the child that is about to become the command.
        unsafe {
            command.pre_exec(move || {
                libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
                Ok(())
            })
        };
        let status = command.args(export(to)).stderr(Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(9));
    };
    limited(&path("new"));
    assert_eq!(files(), 0);
    std::fs::write(path("old"), "old").unwrap();
    limited(&path("old"));
    assert_eq!(
        (files(), std::fs::read(path("old")).unwrap()),
        (1, b"old".to_vec())
    );
    // Through a link, which stays. So do the permissions.
    let permissions = std::fs::Permissions::from_mode(0o604);
    std::fs::set_permissions(path("old"), permissions).unwrap();
    std::os::unix::fs::symlink("old", path("link")).unwrap();
    said(&export(&path("link")).each_ref().map(|s| &**s));
    assert!(std::fs::read(path("old")).unwrap() == whole);
    let mode = std::fs::metadata(path("old")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o604);
    let link = std::fs::symlink_metadata(path("link")).unwrap();
    assert!(link.is_symlink());
    // Into a pipe, which stays, too, if its reader goes away.
    nix::unistd::mkfifo(path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for len in [whole.len(), 1] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
        command.args(export(&path("pipe")));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut read = vec![0; len];
        let mut pipe = std::fs::File::open(path("pipe")).unwrap();
        pipe.read_exact(&mut read).unwrap();
        drop(pipe);
        assert!(read == whole[..len]);
        let code = if len == 1 { 9 } else { 0 };
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    assert_eq!(files(), 3);
    std::fs::remove_dir_all(&directory.0).unwrap();
}

/// To see elements takes no memory of one's own, to copy them does.
pub fn without_memory_nothing_travels() {
    use std::os::unix::process::CommandExt as _;
    const LEN: usize = 64 << 20;
    let name = Name::new("scarce");
    let pool = Pool::builder().create_named(&name.0).unwrap();
    let array = Array::filled_in(pool, LEN, 7_u8).unwrap();
    pool.set_name("array", &array).unwrap();
    let zeros = File::npy("|u1", false, &format!("({LEN},)"), &[]);
    let file = std::fs::File::options().write(true).open(&zeros.0).unwrap();
    let length = file.metadata().unwrap().len() + LEN as u64;
    file.set_len(length).unwrap();
    // Nor is there any for a second copy.
    for (what, file, most) in [
        ("export", "-", LEN / 2),
        ("import", zeros.path(), LEN / 2),
        ("import", zeros.path(), LEN + LEN / 2),
    ] {
        let limit = libc::rlimit {
            rlim_cur: most as u64,
            rlim_max: most as u64,
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
        command.args([what, &name.0, "array", file]);
        // SAFETY: a system call, in the child that is about to become the command.
        unsafe {
            command.pre_exec(move || {
                libc::setrlimit(libc::RLIMIT_DATA, &raw const limit);
                Ok(())
            })
        };
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(9), "{what}: {errors}");
        let why = match most < LEN {
            true => "no memory for 67108864 bytes",
            false => "array: ",
        };
        assert!(errors.contains(why), "{errors}");
    }
    assert_eq!(array.get(LEN - 1).unwrap(), 7);
}

pub fn orders_and_bytes_are_turned() {
    let name = Name::new("orders");
    let pool = pool(&name.0);
    let elements = [1_i32, 2, 3, 4, 5, 6];
    let big: Vec<u8> = elements.iter().flat_map(|n| n.to_be_bytes()).collect();
    let little: Vec<u8> = elements.iter().flat_map(|n| n.to_le_bytes()).collect();
    let file = File::npy(">i4", false, "(2, 3)", &big);
    said(&["import", &name.0, "big", file.path()]);
    let matrix = pool.named::<Matrix<i32>>("big").unwrap();
    assert_eq!(*matrix.rows(..).unwrap(), elements);
    let file = File::npy("<i4", true, "(2, 3)", &little);
    said(&["import", &name.0, "columns", file.path()]);
    let matrix = pool.named::<Matrix<i32>>("columns").unwrap();
    assert_eq!(*matrix.rows(..).unwrap(), [1, 3, 5, 2, 4, 6]);
}

pub fn what_does_not_fit_is_refused() {
    let name = Name::new("refused");
    let pool = pool(&name.0);
    let name = &*name.0;
    let matrix = Matrix::filled_in(pool, 2, 2, 1_u8).unwrap();
    pool.set_name("matrix", &matrix).unwrap();
    pool.set_name("pair", &pool.create((1_u8, 2_u8)).unwrap())
        .unwrap();
    let file = File::new("out.npy");
    refused(
        &["export", name, "nothing", file.path()],
        3,
        "no object of that name",
    );
    refused(&["export", name, "pair", file.path()], 8, "a tuple");
    assert!(!file.0.exists());
    refused(
        &["export", name, "matrix", "/nonexistent/file"],
        9,
        "/nonexistent/file",
    );
    let import = |object: &str, file: &File, code: i32, text: &str| {
        refused(&["import", name, object, file.path()], code, text);
    };
    import(
        "matrix",
        &File::npy("|u1", false, "(2, 3)", &[0; 6]),
        8,
        "[2, 2]",
    );
    import(
        "matrix",
        &File::npy("<u2", false, "(2, 2)", &[0; 8]),
        8,
        "another type",
    );
    import(
        "pair",
        &File::npy("|u1", false, "(2, 2)", &[0; 4]),
        8,
        "another type",
    );
    import(
        "new",
        &File::npy("|u1", false, "(2, 2, 2)", &[0; 8]),
        8,
        "3 dimensions",
    );
    import("new", &File::npy("|u1", false, "(0, 2)", &[]), 8, "[0, 2]");
    import(
        "new",
        &File::npy("<c16", false, "(1,)", &[0; 16]),
        8,
        "<c16",
    );
    import("new", &File::npy("|b1", false, "(1,)", &[0]), 8, "|b1");
    import("new", &File::npy("|u1", false, "(2, 2)", &[0; 3]), 8, "");
    import(
        "new",
        &File::npy("<u8", false, "(99999999999, 99999999999)", &[0; 8]),
        8,
        "",
    );
    import(
        "new",
        &File::npy("<u8", false, "(99999999999,)", &[0; 8]),
        8,
        "",
    );
    import("new", &File::of("text", b"text\n"), 8, "no .npy file");
    import("new", &File::of("none", b""), 8, "no .npy file");
    import("new", &File::of("much", &[b'['; 10_000]), 8, "no .npy file");
    // They would take a reader longer than anybody lives.
    let fields = format!("'descr': {}'<f8'{}", "[('a',".repeat(60), ")]".repeat(60));
    let strings = format!(
        "'{}': {}1{}, 'descr': '<f8'",
        ")".repeat(60),
        "[".repeat(60),
        "]".repeat(60)
    );
    // Behind more than is looked at.
    let far = format!("{}{fields}", " ".repeat(4096));
    for nested in [fields, strings, far] {
        let file = File::described(
            &format!("{nested}, 'fortran_order': False"),
            "(1,)",
            &[0; 8],
        );
        import("new", &file, 8, "no plain numbers");
    }
    import("new", &File::npy("|V7", false, "(2,)", &[0; 14]), 8, "");
    import(
        "",
        &File::npy("|u1", false, "(2,)", &[0; 2]),
        2,
        "1 to 232 bytes",
    );
    refused(&["import", name, "new", "/nonexistent"], 9, "/nonexistent");
    refused(&["import", name, "new", "/dev"], 8, "/dev");
    // More than the pool can hold.
    let large = File::npy("|u1", false, "(33554432,)", &vec![0; 32 << 20]);
    import("new", &large, 9, "");
    // None of it has changed anything.
    assert!(matches!(
        pool.named::<Array<u8>>("new"),
        Err(NamedError::NotFound)
    ));
    assert_eq!(*matrix.rows(..).unwrap(), [1; 4]);
}

pub fn role_claims() {
    let pool = pool(&given());
    let matrix = Matrix::filled_in(pool, 2, 2, 1_u8).unwrap();
    pool.set_name("matrix", &matrix).unwrap();
    let _claim = matrix.rows_mut(1..).unwrap();
    ready();
}

pub fn claimed_numbers_are_not_overwritten() {
    let name = Name::new("claimed");
    let actor = Actor::start("role_claims", &name.0);
    let file = File::npy("|u1", false, "(2, 2)", &[7; 4]);
    refused(&["import", &name.0, "matrix", file.path()], 7, "in use");
    // The claim of the dead is over.
    actor.kill();
    said(&["import", &name.0, "matrix", file.path()]);
    let out = File::new("claimed.npy");
    said(&["export", &name.0, "matrix", out.path()]);
    assert!(std::fs::read(&out.0).unwrap().ends_with(&[7; 4]));
}

/// Two that store a number under one name, which is there or not: neither is told of the other. One that
/// overwrites an array may be, as long as the other has claimed it.
pub fn imports_at_once() {
    let name = Name::new("at-once");
    let pool = pool(&name.0);
    let both = |object: &str, shape: &[usize]| {
        let start = Barrier::new(2);
        let store = |value: u64| {
            start.wait();
            let bytes = vec![value.to_ne_bytes(); shape.iter().product()].concat();
            numbers::store(pool, object, "<u8", shape, &bytes)
        };
        std::thread::scope(|s| {
            let others = s.spawn(|| store(1));
            [store(2), others.join().unwrap()]
        })
    };
    for round in 0..300 {
        for object in ["number", "array"] {
            if round % 4 == 0 {
                let _ = pool.remove_name(object);
            }
        }
        let stored = both("number", &[]);
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
        let stored = both("array", &[50]);
        let done =
            |stored: &Result<_, _>| matches!(stored, Ok(_) | Err(StoreNumbersError::Claimed(_)));
        assert!(stored.iter().all(done), "{stored:?}");
    }
    let file = File::npy("<u8", false, "()", &7_u64.to_ne_bytes());
    for _ in 0..20 {
        let import = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
            command.args(["import", &name.0, "number", file.path()]);
            command.stdout(Stdio::null()).spawn().unwrap()
        };
        for mut import in [import(), import()] {
            assert!(import.wait().unwrap().success());
        }
    }
    assert_eq!(*pool.named::<u64>("number").unwrap(), 7);
    assert!(pool.check().is_ok());
    // They have left the pool.
    assert_eq!(told(&["ls", "--prefix", &name.0])[0]["ended"], 0);
}

/// A Python that has NumPy: the system's, or the one that `.ci/install` has made for it.
fn python_with_numpy() -> Option<PathBuf> {
    let has = |python: &PathBuf| {
        let output = Command::new(python)
            .args(["-I", "-c", "import numpy"])
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    let system = PathBuf::from("python3");
    if has(&system) {
        return Some(system);
    }
    let python = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("numpy/bin/python3");
    has(&python).then_some(python)
}

/// The program of `docs/numpy.md`.
fn documented() -> String {
    let text = include_str!("../../docs/numpy.md");
    let (_, program) = text.split_once("```python\n").unwrap();
    program.split_once("```").unwrap().0.to_owned()
}

pub fn numpy_reads_and_writes_in_place() {
    let Some(python) = python_with_numpy() else {
        skipped("numpy_reads_and_writes_in_place: there is no python3 with numpy");
        return;
    };
    let name = Name::new("numpy");
    let pool = pool(&name.0);
    let matrix = Matrix::from_fn_in(pool, 6, 4, |r, c| (10 * r + c) as f64).unwrap();
    pool.set_name("matrix", &matrix).unwrap();
    let array = Array::from_fn_in(pool, 1000, |i| i as i16 - 500).unwrap();
    pool.set_name("array", &array).unwrap();
    let counter = pool.create(std::sync::atomic::AtomicU64::new(41)).unwrap();
    pool.set_name("counter", &counter).unwrap();
    let program = documented()
        + r#"
import sys
pool = sys.argv[1]
matrix = numbers(pool, "matrix")
assert matrix.shape == (6, 4) and matrix.dtype == numpy.float64, matrix
assert (matrix == numpy.add.outer(10.0 * numpy.arange(6), numpy.arange(4))).all(), matrix
matrix[2] *= -1
matrix[5, 3] = 0.25
array = numbers(pool, "array")
assert array.sum() == -500 and array.dtype == numpy.int16
array[::2] = 7
counter = numbers(pool, "counter")
assert counter == 41
counter[...] += 1
"#;
    let file = File::of("program.py", program.as_bytes());
    // Isolated: what else lies beside the program is not imported in place of a module of Python's.
    let output = Command::new(python)
        .arg("-I")
        .arg(&file.0)
        .arg(&name.0)
        .env("SHMKIT", env!("CARGO_BIN_EXE_shmkit"))
        .output()
        .unwrap();
    crate::common::succeeded(&output);
    assert_eq!(matrix.get(2, 3).unwrap(), -23.0);
    assert_eq!(matrix.get(5, 3).unwrap(), 0.25);
    assert_eq!(matrix.get(5, 2).unwrap(), 52.0);
    assert_eq!((array.get(998).unwrap(), array.get(999).unwrap()), (7, 499));
    assert_eq!(counter.load(std::sync::atomic::Ordering::SeqCst), 42);
}

/// Runs the command as far as its `stop`-th step into or out of the kernel, and kills it there. False
/// if it has come to its end before.
fn killed_at(arguments: &[&str], stop: u32) -> bool {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmkit"));
    command.args(arguments).stdout(Stdio::null());
    // SAFETY: one system call, in the child that is about to become the command.
    unsafe {
        command.pre_exec(
            move || match libc::ptrace(libc::PTRACE_TRACEME, 0, 0_usize, 0_usize) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        )
    };
    let mut child = command.spawn().unwrap();
    let pid = child.id() as libc::pid_t;
    let (mut status, mut step) = (0, 0);
    let killed = loop {
        // SAFETY: a child of ours, which nobody else waits for.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0, "{arguments:?} at {step}");
            break false;
        }
        assert!(libc::WIFSTOPPED(status), "{arguments:?}: {status:#x}");
        if step == stop {
            child.kill().unwrap();
            break true;
        }
        step += 1;
        // SAFETY: it is stopped, and traced by this thread.
        let went_on = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0_usize, 0_usize) };
        assert_eq!(went_on, 0);
    };
    // Who has ended was waited for above.
    assert_eq!(child.wait().is_ok(), killed);
    killed
}

/// Between any two system calls. Every instruction of what it does to the pool: `tests/crash`.
pub fn a_killed_import_leaves_the_target_whole() {
    let name = Name::new("killed");
    let pool = pool(&name.0);
    let (before, after) = ([1.5_f64; 6], [-2.5_f64; 6]);
    let bytes: Vec<u8> = after.iter().flat_map(|n| n.to_le_bytes()).collect();
    let file = File::npy("<f8", false, "(2, 3)", &bytes);
    let matrix = Matrix::from_fn_in(pool, 2, 3, |_, _| before[0]).unwrap();
    pool.set_name("old", &matrix).unwrap();
    // Types are described once.
    said(&["import", &name.0, "new", file.path()]);
    pool.remove_name("new").unwrap();
    pool.recover();
    let allocated = pool.stats().allocated;
    let elements = |object: &str| {
        let named = pool.named::<Matrix<f64>>(object).ok()?;
        Some(named.rows(..).unwrap().to_vec())
    };
    let sound = || {
        pool.recover();
        let report = pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
    };
    let (mut stop, mut kills) = (1, 0);
    loop {
        let new = killed_at(&["import", &name.0, "new", file.path()], stop);
        sound();
        match elements("new") {
            Some(all) => {
                assert_eq!(all, after, "step {stop}");
                pool.remove_name("new").unwrap();
                sound();
            }
            None => assert!(new, "an import that has ended"),
        }
        assert_eq!(pool.stats().allocated, allocated, "step {stop}");

        let over = killed_at(&["import", &name.0, "old", file.path()], stop);
        sound();
        let all = elements("old").unwrap();
        assert!(all == before || all == after, "step {stop}: {all:?}");
        assert_eq!(pool.stats().allocated, allocated, "step {stop}");
        // What it was to do can be done.
        said(&["import", &name.0, "old", file.path()]);
        assert_eq!(elements("old").unwrap(), after);
        matrix.rows_mut(..).unwrap().fill(before[0]);
        if !new && !over {
            break;
        }
        kills += u32::from(new) + u32::from(over);
        stop += 9;
    }
    assert!(kills > 20, "{kills} kills");
}
