//! Running from one write to the arena to the next, instead of stepping through everything in between.
//!
//! Where only the changes matter and not the instructions between them, as in the recovery, the arena is shut: its
//! pages become read-only in the victim, which then runs. It stops by itself before anything that could change the
//! arena:
//!
//! | stops at | by | is then |
//! |---|---|---|
//! | a write to the arena | SIGSEGV, which the victim never sees | stepped, the arena open |
//! | a system call | `PTRACE_SYSEMU`, which skips the call | repeated, and stepped, the arena open |
//! | any other signal | the signal | delivered with a step, the arena open |
//!
//! So the same changes are reported as by stepping. The victim has to make the pages read-only itself: it is made to
//! call `mprotect` at the [`gate`], with its registers put back afterwards. As that takes as long as some steps, the
//! next few instructions after a write are stepped too.
//!
//! The writes of other threads of the victim cannot be caught this way: a victim that has more than one thread, or
//! starts one, is stepped all the way. Its children have their own pages, which are open when they are forked.

use std::io;
use std::ops::Range;
use std::ptr;

use libc::user_regs_struct as Regs;

use super::child::Ended;
use super::stepper::{SLOWER, Scene, Stepper, ended_early, failed, name_of, registers};

/// So many instructions after a write are stepped.
const NEAR: u32 = 8;
/// How long the instruction `syscall` is, and `int3` behind it.
const SYSCALL_LEN: u64 = 2;
const INT3_LEN: u64 = 1;
/// A stop at a system call, as `PTRACE_O_TRACESYSGOOD` has it told.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

core::arch::global_asm!(
    ".globl shmkit_crash_gate",
    "shmkit_crash_gate:",
    "syscall",
    "int3",
);

unsafe extern "C" {
    /// Where a victim, which is a fork of this process, is made to call the kernel.
    fn shmkit_crash_gate();
}

fn gate() -> u64 {
    shmkit_crash_gate as *const () as u64
}

/// The arena's pages in a victim: open, while it stands still.
pub struct Shutter {
    /// What is mapped for writing.
    pages: Vec<Range<u64>>,
    /// The kernel may have changed what is mapped.
    is_stale: bool,
    /// Instructions since the last write.
    since: u32,
}

impl Shutter {
    pub fn new() -> Self {
        Shutter {
            pages: Vec::new(),
            is_stale: true,
            since: NEAR,
        }
    }

    /// Tells what the last instruction did.
    pub fn note(&mut self, has_written: bool, may_be_stale: bool) {
        self.since = if has_written { 0 } else { self.since + 1 };
        self.is_stale |= may_be_stale;
    }
}

impl Stepper {
    /// Lets the victim run until it is about to do something that may change the arena, if it has one thread.
    pub(super) fn run_to_write(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        let Some(shutter) = &mut self.shutter else {
            return Ok(());
        };
        if shutter.since < NEAR {
            return Ok(());
        }
        shutter.since = 0;
        let reading = |error: io::Error| format!("reading what the victim is: {error}");
        if shutter.is_stale {
            let pid = self.child.pid();
            if threads(pid).map_err(reading)? != 1 {
                self.shutter = None;
                return Ok(());
            }
            shutter.pages = writable(pid, &scene.arena).map_err(reading)?;
            shutter.is_stale = false;
        }
        self.protect(scene, libc::PROT_READ)?;
        self.run_shut(scene)?;
        self.protect(scene, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn run_shut(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        let signal = std::mem::take(&mut self.signal);
        self.go(libc::PTRACE_SYSEMU, signal)?;
        let ended = self.child.wait(scene.limit * SLOWER);
        if !matches!(ended, Ended::Stop(_) | Ended::Never) {
            return Err(ended_early(&self.child, ended));
        }
        if matches!(ended, Ended::Never) {
            // SAFETY: the pid is that of our own child, unreaped and therefore not anyone else's.
            unsafe { libc::kill(self.child.pid(), libc::SIGSTOP) };
            self.child.wait(scene.limit);
        }
        self.regs = registers(self.child.pid())?;
        match ended {
            Ended::Stop(SYSCALL_STOP) => {
                self.regs.rip -= SYSCALL_LEN;
                self.regs.rax = self.regs.orig_rax;
                // Nothing is to be begun again.
                self.regs.orig_rax = u64::MAX;
            }
            Ended::Stop(libc::SIGSEGV) if self.is_shut_out(&scene.arena)? => {}
            Ended::Stop(signal) => self.signal = signal,
            _ => {
                return Err(format!(
                    "the victim loops without changing anything, at {}",
                    name_of(self.regs.rip)
                ));
            }
        }
        Ok(())
    }

    /// Whether the signal that the victim is stopped at is about a write to the arena, where that is mapped.
    fn is_shut_out(&self, arena: &Range<u64>) -> Result<bool, String> {
        /// The mapping is there, and does not allow it.
        const SEGV_ACCERR: i32 = 2;
        // SAFETY: all-zero is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let pid = self.child.pid();
        // SAFETY: the child is our stopped tracee, and `info` is a valid place of the type the request fills.
        let got = unsafe {
            libc::ptrace(
                libc::PTRACE_GETSIGINFO,
                pid,
                ptr::null_mut::<u8>(),
                &mut info,
            )
        };
        if got == -1 {
            return Err(failed("PTRACE_GETSIGINFO"));
        }
        // SAFETY: that of a SIGSEGV has an address.
        let address = unsafe { info.si_addr() } as u64;
        Ok(info.si_code == SEGV_ACCERR && arena.contains(&address))
    }

    /// Has the victim change what it may do with the arena's pages.
    fn protect(&mut self, scene: &Scene<'_>, protection: i32) -> Result<(), String> {
        let pages = self.shutter.as_ref().map(|shutter| shutter.pages.clone());
        for Range { start, end } in pages.into_iter().flatten() {
            let did = self.call(
                scene,
                libc::SYS_mprotect,
                [start, end - start, protection as u64],
            )?;
            if did != 0 {
                return Err(format!("the victim's mprotect: {did}"));
            }
        }
        Ok(())
    }

    /// Has the victim call the kernel; it is afterwards as it was before.
    fn call(&mut self, scene: &Scene<'_>, number: i64, given: [u64; 3]) -> Result<i64, String> {
        let pid = self.child.pid();
        let at_gate = Regs {
            rip: gate(),
            rax: number as u64,
            orig_rax: u64::MAX,
            rdi: given[0],
            rsi: given[1],
            rdx: given[2],
            ..self.regs
        };
        set_registers(pid, &at_gate)?;
        loop {
            self.go(libc::PTRACE_CONT, 0)?;
            match self.child.wait(scene.limit) {
                Ended::Stop(libc::SIGTRAP) => break,
                // It gets that with its next step.
                Ended::Stop(signal) => self.signal = signal,
                other => return Err(ended_early(&self.child, other)),
            }
        }
        let after = registers(pid)?;
        set_registers(pid, &self.regs)?;
        if after.rip != gate() + SYSCALL_LEN + INT3_LEN {
            return Err(format!(
                "the victim is not behind the gate: {:#x}",
                after.rip
            ));
        }
        Ok(after.rax as i64)
    }
}

fn set_registers(pid: i32, regs: &Regs) -> Result<(), String> {
    // SAFETY: the process is our stopped tracee, and `regs` is what the request reads.
    let set = unsafe { libc::ptrace(libc::PTRACE_SETREGS, pid, ptr::null_mut::<u8>(), regs) };
    if set == -1 {
        return Err(failed("PTRACE_SETREGS"));
    }
    Ok(())
}

fn threads(pid: i32) -> io::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// What of a range of addresses a process has mapped, with others, for writing.
fn writable(pid: i32, within: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let ranges = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?.max(within.start);
        let end = u64::from_str_radix(end, 16).ok()?.min(within.end);
        let is_shared = fields.next()?.starts_with("rw-s");
        (is_shared && start < end).then_some(start..end)
    });
    Ok(ranges.collect())
}
