//! One word for each thread, found with the fewest loads: this thread's slot of the private heap.
//!
//! In a shared library, `thread_local!` calls a function of the C library for each access (the
//! "general dynamic" model), which is a third of the cost of a small allocation. The word is
//! therefore declared in assembly, where the "initial exec" model can be chosen: a load of the
//! word's offset and a load of the word. Such a library takes its place in the threads' static
//! memory when the program starts, or eight bytes of the reserve there when it is loaded later.
//! Source: Drepper, *ELF Handling For Thread-Local Storage*, 2013, section 4.3.

#[cfg(target_arch = "x86_64")]
mod word {
    use std::arch::{asm, global_asm};

    global_asm!(
        ".pushsection .tbss.shmkit_private_slot,\"awT\",@nobits",
        ".balign 8",
        ".globl shmkit_private_slot",
        ".hidden shmkit_private_slot",
        ".type shmkit_private_slot, @object",
        ".size shmkit_private_slot, 8",
        "shmkit_private_slot:",
        ".zero 8",
        ".popsection",
    );

    #[inline]
    pub(crate) fn get() -> usize {
        let word;
        // SAFETY: loads the offset of this thread's word and the word; the thread pointer is in FS
        // by the platform's ABI.
        unsafe {
            asm!(
                "mov {word}, qword ptr [rip + shmkit_private_slot@GOTTPOFF]",
                "mov {word}, qword ptr fs:[{word}]",
                word = out(reg) word,
                options(nostack, preserves_flags, readonly),
            );
        }
        word
    }

    #[inline]
    pub(crate) fn set(value: usize) {
        // SAFETY: as for `get`; only these two functions know of the word.
        unsafe {
            asm!(
                "mov {offset}, qword ptr [rip + shmkit_private_slot@GOTTPOFF]",
                "mov qword ptr fs:[{offset}], {value}",
                offset = out(reg) _,
                value = in(reg) value,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod word {
    use std::cell::Cell;

    thread_local! {
        static WORD: Cell<usize> = const { Cell::new(0) };
    }

    #[inline]
    pub(crate) fn get() -> usize {
        WORD.get()
    }

    #[inline]
    pub(crate) fn set(value: usize) {
        WORD.set(value);
    }
}

pub(crate) use word::{get, set};
