//! What the next instruction may write, so that only writes into the arena cost a comparison.
//!
//! Comparing the whole arena after each instruction would find every change and cost tens of microseconds a step.
//! Instead, the instruction is decoded before it runs, and the addresses of its memory operands that are written are
//! computed from the registers. Three answers:
//!
//! | effect | when | what is compared after the step |
//! |---|---|---|
//! | `Nothing` | no operand in memory is written | nothing |
//! | `Ranges` | each written operand has a known address and size | those of them that are in the arena |
//! | `Anything` | system calls, scatters, xsave, whatever cannot be read or decoded | everything |
//!
//! Doubt means `Anything`. A string instruction under `rep` traps after each iteration, and writes between the address
//! in its destination register before the step and the one after it. That the answers are right is tested: the
//! cross-check compares everything after every step, and reports a change that was not predicted.

use std::collections::HashMap;

use iced_x86::{
    Code, Decoder as Iced, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, Register,
    UsedMemory,
};
use libc::user_regs_struct as Regs;

/// What one instruction does, whatever the registers.
#[derive(Clone)]
enum Shape {
    Nothing,
    Operands(Box<[UsedMemory]>),
    /// Writes elements of this size at rdi.
    String(u64),
    Anything,
}

/// What the coming step may write.
pub enum Effect {
    Nothing,
    /// The ranges are in the buffer given to [`Decoder::effect`], as (address, length).
    Ranges,
    /// As `Ranges`, from this rdi to the one after the step, by elements of `size`.
    String {
        from: u64,
        size: u64,
    },
    Anything,
}

/// Decodes instructions of a traced process, each once.
pub struct Decoder {
    known: HashMap<u64, Shape>,
    factory: InstructionInfoFactory,
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder {
            known: HashMap::new(),
            factory: InstructionInfoFactory::new(),
        }
    }

    /// What the instruction at `regs.rip` of the stopped process `pid` may write.
    pub fn effect(&mut self, pid: i32, regs: &Regs, ranges: &mut Vec<(u64, u64)>) -> Effect {
        ranges.clear();
        let Decoder { known, factory } = self;
        match known
            .entry(regs.rip)
            .or_insert_with(|| shape(pid, regs.rip, factory))
        {
            Shape::Nothing => Effect::Nothing,
            Shape::Anything => Effect::Anything,
            Shape::String(size) => Effect::String {
                from: regs.rdi,
                size: *size,
            },
            Shape::Operands(operands) => {
                for operand in operands {
                    let Some(address) =
                        operand.virtual_address(0, |register, _, _| value(regs, register))
                    else {
                        return Effect::Anything;
                    };
                    ranges.push((address, operand.memory_size().size() as u64));
                }
                Effect::Ranges
            }
        }
    }
}

fn shape(pid: i32, rip: u64, factory: &mut InstructionInfoFactory) -> Shape {
    let mut text = [0u8; 15];
    let Some(count) = read_text(pid, rip, &mut text) else {
        return Shape::Anything;
    };
    let instruction = Iced::with_ip(64, &text[..count], rip, DecoderOptions::NONE).decode();
    let quiet_flow = matches!(
        instruction.flow_control(),
        FlowControl::Next
            | FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
    );
    let near_call = matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    ) && !matches!(instruction.code(), Code::Syscall | Code::Sysenter);
    if instruction.is_invalid()
        || !(quiet_flow || near_call)
        || instruction.is_vsib()
        || instruction.is_save_restore_instruction()
    {
        return Shape::Anything;
    }
    let written: Box<[UsedMemory]> = factory
        .info(&instruction)
        .used_memory()
        .iter()
        .filter(|operand| {
            matches!(
                operand.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        })
        .copied()
        .collect();
    if written.is_empty() {
        return Shape::Nothing;
    }
    // Before the sizes are looked at: under `rep` an operand has none, as it depends on rcx.
    if instruction.is_string_instruction() {
        return Shape::String(instruction.memory_size().size() as u64);
    }
    if written
        .iter()
        .any(|operand| operand.memory_size().size() == 0)
    {
        return Shape::Anything;
    }
    Shape::Operands(written)
}

/// Reads as much of `text` as is readable at `address` of another process.
fn read_text(pid: i32, address: u64, text: &mut [u8; 15]) -> Option<usize> {
    let to_page_end = (4096 - address % 4096).min(15) as usize;
    for count in [15, to_page_end] {
        let local = libc::iovec {
            iov_base: text.as_mut_ptr().cast(),
            iov_len: count,
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: count,
        };
        // SAFETY: `local` is `text` or its beginning; the kernel checks `remote`.
        let got = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
        if got == count as isize {
            return Some(count);
        }
    }
    None
}

fn value(regs: &Regs, register: Register) -> Option<u64> {
    let full = match register.full_register() {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RBP => regs.rbp,
        Register::RSP => regs.rsp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        Register::FS => return Some(regs.fs_base),
        Register::GS => return Some(regs.gs_base),
        Register::ES | Register::CS | Register::SS | Register::DS => return Some(0),
        _ => return None,
    };
    match register.size() {
        8 => Some(full),
        4 => Some(full & 0xffff_ffff),
        _ => None,
    }
}
