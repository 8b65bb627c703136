//! Programs that nobody here wrote, run on the library and without it: they must say the same.
//!
//! What is not installed is skipped with a word. The library is built as the README says, once.

#[path = "../../tests/common/skip.rs"]
mod skip;

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The library, built into the target directory that this test is in.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows where it is");
        let target = test
            .ancestors()
            .nth(3)
            .expect("it is in TARGET/PROFILE/deps");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "-p", "shmkit-malloc"])
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo starts");
        assert!(built.success());
        target.join("release/libshmkit_malloc.so")
    })
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let name = format!("shmkit-malloc-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        Scratch(path)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).expect("a file can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program with something on its standard input. `None`, with a word, if it is not there.
fn run(mut command: Command, input: &str) -> Option<Output> {
    let (stdin, stdout, stderr) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
    let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn();
    let mut child = match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = command.get_program().display();
            skip::skipped(&format!("malloc: {name} is not installed"));
            return None;
        }
        other => other.expect("the program starts"),
    };
    let mut pipe = child.stdin.take().expect("a pipe was asked for");
    pipe.write_all(input.as_bytes()).expect("it reads");
    drop(pipe);
    Some(child.wait_with_output().expect("it ends"))
}

/// Runs what `command` makes, twice: without the library and with it. The outputs must be equal
/// and end well; what was printed. `None` if the program is not installed.
#[track_caller]
fn same(command: impl Fn() -> Command, input: &str) -> Option<String> {
    let plain = run(command(), input)?;
    let mut preloaded = command();
    preloaded.env("LD_PRELOAD", library());
    let preloaded = run(preloaded, input)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    assert_eq!(text(&preloaded.stderr), text(&plain.stderr));
    assert_eq!(preloaded.status, plain.status);
    assert!(
        preloaded.stdout == plain.stdout,
        "{}",
        text(&preloaded.stdout)
    );
    Some(text(&plain.stdout))
}

fn program<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

/// A C program with many functions, for a compiler to work on.
fn c_program() -> String {
    let mut text = String::from("#include <stdio.h>\n#include <string.h>\n");
    for i in 0..400 {
        text.push_str(&format!(
            "static unsigned f{i}(unsigned x, unsigned *a) {{\n\
             for (unsigned i = 0; i < {i} + 3; i++) {{\n\
             x = x * {m}u + a[(x + i) % 16]; if (x & {mask}) a[i % 16] ^= x >> {shift};\n\
             switch (x % 7) {{ case 0: x += 3; break; case 1: x ^= {i}; break; case 5: x--; }}\n\
             }} return x; }}\n",
            m = i * 2 + 1_664_525,
            mask = 1 << (i % 20),
            shift = i % 13
        ));
    }
    text.push_str("int main(void) { unsigned a[16] = {1, 2, 3}, x = 1;\n");
    for i in 0..400 {
        text.push_str(&format!("x = f{i}(x, a);\n"));
    }
    text.push_str("printf(\"%u\\n\", x); return 0; }\n");
    text
}

#[test]
fn bash() {
    let script = r#"
        declare -A count
        for word in $(for i in {1..2000}; do echo word$((i * i % 97)); done); do
            count[$word]=$((${count[$word]:-0} + 1))
        done
        for word in "${!count[@]}"; do echo "$word ${count[$word]}"; done | sort
        for i in {1..30}; do (text=$(printf '%*s' $((i * 500)) x); echo ${#text}) & done | sort -n
        wait
        text=; for i in {1..3000}; do text+="line $i "; done; echo "${text//line/row}" | cksum
        while read -r a b; do echo "$b $a"; done < <(seq 1 500 | paste - -) | cksum
    "#;
    same(|| program("bash", &["-c", script]), "");
}

#[test]
fn python() {
    let script = r#"
import collections, hashlib, json, multiprocessing, os, re, subprocess, sys, threading

def work(n):
    d = {}
    for i in range(n):
        d[i % 997] = "x" * (i % 3000)
    return sum(len(v) for v in d.values())

def churn(stop):
    while not stop.is_set():
        work(500)

multiprocessing.set_start_method("fork")
stop = threading.Event()
threads = [threading.Thread(target=churn, args=(stop,)) for _ in range(3)]
for t in threads: t.start()
for _ in range(3):
    with multiprocessing.Pool(3) as pool:
        print(sum(pool.map(work, [500 * i for i in range(1, 8)])))
for i in range(5):
    print(subprocess.run(["echo", str(i)], capture_output=True).stdout)
queue = multiprocessing.Queue()
def child(): queue.put([work(1000), "y" * 100000])
workers = [multiprocessing.Process(target=child) for _ in range(4)]
for w in workers: w.start()
print(sum(queue.get()[0] for _ in workers))
for w in workers: w.join(); print(w.exitcode)
stop.set()
for t in threads: t.join()
results = []
for _ in range(50):
    batch = [threading.Thread(target=lambda: results.append(work(100))) for _ in range(10)]
    for t in batch: t.start()
    for t in batch: t.join()
print(len(results), sum(results))
text = json.dumps([{"n": i, "s": str(i) * (i % 50)} for i in range(20000)])
print(hashlib.sha256(text.encode()).hexdigest(), len(json.loads(text)))
print(collections.Counter(re.findall(r"[0-9]{3}", text)).most_common(5))
pid = os.fork()
if pid == 0:
    work(5000)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;
    same(|| program("python3", &["-c", script]), "");
}

#[test]
fn git() {
    let scratch = Scratch::new("git");
    let script = r#"
        set -e
        rm -rf "$1/repo"; mkdir "$1/repo"; cd "$1/repo"
        export HOME="$1" GIT_CONFIG_NOSYSTEM=1
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
        git init -q -b main .
        for i in $(seq 1 12); do
            for j in $(seq 1 20); do seq $i $((i * j * 7 + 100)) > file$j; done
            git add -A; git commit -q -m "change $i"
        done
        git log --stat | cksum
        git checkout -q -b other HEAD~4; seq 1 9 > extra; git add extra; git commit -q -m extra
        git merge -q --no-edit main; git rev-parse HEAD
        git -c pack.threads=4 repack -q -a -d -f --depth=20; git fsck --strict
        git grep -c 77 -- . ; git blame file3 | cksum; git diff HEAD~3 | cksum
        git clone -q . ../copy 2>/dev/null; git -C ../copy rev-parse HEAD; rm -rf ../copy
    "#;
    let directory = scratch.0.to_str().unwrap();
    let installed = run(program("git", &["--version"]), "").is_some();
    if installed {
        same(|| program("bash", &["-c", script, "git", directory]), "");
    }
}

#[test]
fn c_compiler() {
    let scratch = Scratch::new("cc");
    let source = scratch.file("program.c", &c_program());
    let assembly = |name: &str| scratch.0.join(name);
    let compile = |library: Option<&Path>, out: &Path| {
        let mut command = Command::new("gcc");
        command.args(["-O2", "-S", "-o"]).arg(out).arg(&source);
        command.envs(library.map(|library| ("LD_PRELOAD", library)));
        run(command, "")
    };
    let Some(plain) = compile(None, &assembly("plain.s")) else {
        return;
    };
    let preloaded = compile(Some(library()), &assembly("preloaded.s")).unwrap();
    assert!(plain.status.success() && preloaded.status.success());
    assert_eq!(preloaded.stderr, plain.stderr);
    let read = |name: &str| fs::read_to_string(assembly(name)).unwrap();
    assert!(read("plain.s").len() > 100_000 && read("plain.s") == read("preloaded.s"));
    // The assembler and the linker too, and the result runs.
    let out = scratch.0.join("program");
    let link = || {
        let mut command = Command::new("gcc");
        command.args(["-O0", "-o"]).args([&out, &source]);
        command
    };
    same(link, "");
    same(|| Command::new(&out), "").expect("it was made");
}

#[test]
fn sqlite() {
    let sql = "
        create table t (a integer primary key, b text, c real);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 40000)
            insert into t select i, printf('%d-%s', i * 7919 % 10007, hex(i)), i * 0.5 from n;
        create index x on t (b);
        select count(*), sum(c), min(b), max(b) from t;
        select substr(b, 1, 2) k, count(*), avg(c) from t group by k order by 2 desc, k limit 20;
        select a.a, b.a from t a join t b on a.b = b.b and a.a < b.a order by 1, 2 limit 5;
        delete from t where a % 3 = 0; vacuum;
        select group_concat(b) from (select b from t order by b limit 300);
        pragma integrity_check;
    ";
    let output = same(|| program("sqlite3", &[":memory:"]), sql);
    assert!(output.is_none_or(|output| output.ends_with("ok\n")));
}

#[test]
fn perl() {
    let script = r#"
        use strict; my %h; my @words;
        for my $i (1..60000) { my $w = sprintf("%x", $i * 2654435761 % 65537); $h{$w} .= "$i,"; }
        for my $k (sort keys %h) { push @words, "$k=" . length($h{$k}) if $k =~ /^a.*[0-9]$/; }
        print scalar(@words), " @words[0..20]\n";
        my $text = join(" ", map { "w$_" x ($_ % 5) } 1..20000);
        (my $copy = $text) =~ s/w(\d+)/<$1>/g; print length($copy), " ", unpack("%32C*", $copy), "\n";
        for my $i (1..20) {
            my $pid = fork(); die unless defined $pid;
            if (!$pid) { my @big = map { "x" x $_ } 1..500; exit(scalar(@big) % 256 == 244 ? $i : 255); }
            waitpid($pid, 0); print $? >> 8, "\n";
        }
        my @nested = map { { n => $_, list => [1..$_ % 30] } } 1..5000;
        my $sum = 0; $sum += scalar(@{$_->{list}}) for @nested; print "$sum\n";
        print `echo from a child`;
    "#;
    same(|| program("perl", &["-e", script]), "");
}

#[test]
fn rust_build() {
    let scratch = Scratch::new("rust");
    scratch.file(
        "Cargo.toml",
        "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    );
    scratch.file(
        "build.rs",
        "fn main() { println!(\"cargo:rustc-env=BUILT=yes\"); }\n",
    );
    scratch.file(
        "src/main.rs",
        "use std::collections::BTreeMap;\n\
         fn main() {\n\
             let handles: Vec<_> = (0..8).map(|t| std::thread::spawn(move || {\n\
                 (0..5000_u64).map(|i| (i * i % 101, format!(\"{t}:{i}\"))).collect::<BTreeMap<_, _>>()\n\
             })).collect();\n\
             let maps: Vec<_> = handles.into_iter().map(|h| h.join().unwrap()).collect();\n\
             println!(\"{} {:?} {}\", maps.len(), maps[3].iter().next(), env!(\"BUILT\"));\n\
         }\n",
    );
    let build = |target: &str, library: Option<&Path>| {
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["build", "--offline", "--quiet", "--release", "--target-dir"])
            .arg(scratch.0.join(target))
            .current_dir(&scratch.0)
            .env_remove("CARGO_TARGET_DIR")
            .envs(library.map(|library| ("LD_PRELOAD", library)));
        let output = run(command, "").expect("cargo is there");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && text.is_empty(), "{text}");
    };
    build("preloaded", Some(library()));
    let small = scratch.0.join("preloaded/release/small");
    let printed = same(|| Command::new(&small), "").expect("it was built");
    assert_eq!(printed, "8 Some((0, \"3:4949\")) yes\n");
}

/// The C program that knows the details of the interface; see `abi.c`.
fn compiled_abi(scratch: &Scratch) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/abi.c");
    let out = scratch.0.join("abi");
    let mut command = Command::new("cc");
    command
        .args(["-O1", "-w", "-o"])
        .args([&out, &source])
        .arg("-pthread");
    let compiled = run(command, "")?;
    let text = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{text}");
    Some(out)
}

fn preloaded(path: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(path);
    command.args(arguments).env("LD_PRELOAD", library());
    run(command, "").expect("it was made")
}

#[test]
fn c_interface() {
    let scratch = Scratch::new("abi");
    let Some(abi) = compiled_abi(&scratch) else {
        return;
    };
    let output = preloaded(&abi, &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.is_empty(),
        "{:?} {text}",
        output.status
    );
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn misuse_ends_the_process_with_a_message() {
    use std::os::unix::process::ExitStatusExt as _;
    let scratch = Scratch::new("misuse");
    let Some(abi) = compiled_abi(&scratch) else {
        return;
    };
    let kinds = [
        ("twice", "the block has been freed already"),
        ("big-twice", "the block has been freed already"),
        ("realloc", "the block has been freed already"),
        ("interior", "the address is not the start of a block"),
        ("big-interior", "the address is not the start of a block"),
        ("misaligned", "the address is not the start of a block"),
        ("stack", "the address is not a block"),
    ];
    for (kind, message) in kinds {
        let output = preloaded(&abi, &[kind]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "{kind}: {text}");
        assert!(
            text.starts_with("shmkit: free of 0x") && text.contains(message),
            "{kind}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn a_limited_address_space_is_enough() {
    let script = "ulimit -v 2000000; exec python3 -c 'print(len(bytearray(300 << 20)))'";
    if run(program("python3", &["--version"]), "").is_some() {
        same(|| program("bash", &["-c", script]), "");
    }
}
