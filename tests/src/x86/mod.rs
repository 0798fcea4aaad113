//! A small software machine for the x86-64 instructions that the wide emitter makes, up to AVX-512.
//!
//! It reads machine code through the decoder of `iced-x86` and runs it over registers and bounds-checked memory, so
//! that code for instructions that this host lacks is run all the same. Always holds: it shares no code with the
//! emitter; an instruction that it does not know, a form of it that it does not know, and an access outside of the mapped
//! ranges are errors. Sources: the instruction set references of Intel (volume 2) and AMD (volumes 3 and 4).

mod general;
mod vector;

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

/// A mapped range.
struct Range {
    start: u64,
    bytes: Vec<u8>,
    writable: bool,
}

/// Registers, flags and memory.
pub struct Machine {
    general: [u64; 16],
    vectors: [[u8; 64]; 32],
    masks: [u64; 8],
    zero: bool,
    sign: bool,
    carry: bool,
    overflow: bool,
    ip: u64,
    ranges: Vec<Range>,
}

/// Instructions that [`Machine::call`] runs at most.
const STEPS: u64 = 200_000_000;
/// Where the stack ends.
const STACK: u64 = 0x7fff_0000;
/// The address that the outermost return goes to.
const HOME: u64 = 0xdead_0000;

type Outcome<T = ()> = Result<T, String>;

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

impl Machine {
    /// A machine with a stack of 64 KiB and nothing else mapped. Registers hold a pattern that is no zero.
    pub fn new() -> Machine {
        let mut machine = Machine {
            general: [0xa5a5_a5a5_a5a5_a5a5; 16],
            vectors: [[0xa5; 64]; 32],
            masks: [0xa5a5_a5a5_a5a5_a5a5; 8],
            zero: false,
            sign: false,
            carry: false,
            overflow: false,
            ip: 0,
            ranges: Vec::new(),
        };
        machine.map(STACK - (64 << 10), vec![0xa5; 64 << 10], true);
        machine
    }

    /// Maps bytes at an address.
    ///
    /// # Panics
    /// If the range meets another one.
    pub fn map(&mut self, start: u64, bytes: Vec<u8>, writable: bool) {
        let end = start + bytes.len() as u64;
        assert!(self.ranges.iter().all(|r| end <= r.start || r.start + r.bytes.len() as u64 <= start), "ranges meet");
        self.ranges.push(Range { start, bytes, writable });
    }

    /// The bytes mapped at an address.
    ///
    /// # Panics
    /// If no range starts there.
    pub fn mapped(&self, start: u64) -> &[u8] {
        let range = self.ranges.iter().find(|range| range.start == start);
        &range.expect("a range starts there").bytes
    }

    /// Calls the function at an address with four arguments as System V passes them, and checks what it must keep.
    pub fn call(&mut self, function: u64, args: [u64; 4]) -> Outcome {
        const KEPT: [usize; 6] = [3, 5, 12, 13, 14, 15];
        for (register, value) in [7, 6, 2, 1].into_iter().zip(args) {
            self.general[register] = value;
        }
        self.general[4] = STACK - 64 - 8;
        self.store(STACK - 64 - 8, &HOME.to_le_bytes())?;
        let kept = KEPT.map(|register| self.general[register]);
        self.ip = function;
        for _ in 0..STEPS {
            if self.ip == HOME {
                let intact = kept == KEPT.map(|register| self.general[register]) && self.general[4] == STACK - 64;
                return if intact { Ok(()) } else { Err("a register that belongs to the caller has changed".into()) };
            }
            let code = self.code(self.ip)?;
            let instruction = Decoder::with_ip(64, code, self.ip, DecoderOptions::NONE).decode();
            if instruction.is_invalid() {
                return Err(format!("{:#x}: no instruction", self.ip));
            }
            self.ip = instruction.next_ip();
            self.step(&instruction).map_err(|why| format!("{:#x}: {instruction}: {why}", instruction.ip()))?;
        }
        Err(format!("still running after {STEPS} instructions"))
    }

    fn step(&mut self, instruction: &Instruction) -> Outcome {
        if self.general_step(instruction)? || self.vector_step(instruction)? {
            return Ok(());
        }
        Err("the machine does not know this instruction".into())
    }

    fn code(&self, at: u64) -> Outcome<&[u8]> {
        let range = self.ranges.iter().find(|r| !r.writable && r.start <= at && at < r.start + r.bytes.len() as u64);
        let range = range.ok_or_else(|| format!("{at:#x} is no code"))?;
        let from = (at - range.start) as usize;
        Ok(&range.bytes[from..range.bytes.len().min(from + 15)])
    }

    fn load(&self, at: u64, bytes: usize) -> Outcome<Vec<u8>> {
        let end = at.wrapping_add(bytes as u64);
        let range = self.ranges.iter().find(|r| r.start <= at && at <= end && end <= r.start + r.bytes.len() as u64);
        let range = range.ok_or_else(|| format!("reads {bytes} bytes at {at:#x}, which are not mapped"))?;
        Ok(range.bytes[(at - range.start) as usize..][..bytes].to_vec())
    }

    fn store(&mut self, at: u64, value: &[u8]) -> Outcome {
        let end = at.wrapping_add(value.len() as u64);
        let inside = |r: &&mut Range| r.writable && r.start <= at && at <= end && end <= r.start + r.bytes.len() as u64;
        let range = self.ranges.iter_mut().find(inside);
        let range = range.ok_or_else(|| format!("writes {} bytes at {at:#x}, which are not mapped", value.len()))?;
        range.bytes[(at - range.start) as usize..][..value.len()].copy_from_slice(value);
        Ok(())
    }

    /// The address of the memory operand.
    fn address(&self, instruction: &Instruction) -> Outcome<u64> {
        let read = |register: Register| -> Outcome<u64> {
            match register {
                Register::None => Ok(0),
                other if other.size() == 8 => Ok(self.general[other.number()]),
                other => Err(format!("an address over {other:?}")),
            }
        };
        let base = match instruction.memory_base() {
            // The decoder has added the address of the next instruction already.
            Register::RIP => 0,
            base => read(base)?,
        };
        let index = read(instruction.memory_index())?.wrapping_mul(u64::from(instruction.memory_index_scale()));
        Ok(base.wrapping_add(index).wrapping_add(instruction.memory_displacement64()))
    }

    fn is_memory(&self, instruction: &Instruction, operand: u32) -> bool {
        instruction.op_kind(operand) == OpKind::Memory
    }
}

/// What the decoder's registers are.
trait Named: Copy {
    /// Its number in its class.
    fn number(self) -> usize;
    /// Its bytes.
    fn size(self) -> usize;
    /// A general register.
    fn is_general(self) -> bool;
    /// An AVX-512 mask.
    fn is_mask(self) -> bool;
    /// A vector.
    fn is_vector(self) -> bool;
}

impl Named for Register {
    fn number(self) -> usize {
        let first = match self.size() {
            1 if (self as usize) < Register::SPL as usize => Register::AL,
            1 => return self as usize - Register::SPL as usize + 4,
            2 => Register::AX,
            4 => Register::EAX,
            8 if self.is_mask() => Register::K0,
            8 => Register::RAX,
            16 => Register::XMM0,
            32 => Register::YMM0,
            _ => Register::ZMM0,
        };
        self as usize - first as usize
    }

    fn size(self) -> usize {
        let within = |first: Register, last: Register| (first as usize..=last as usize).contains(&(self as usize));
        match () {
            _ if within(Register::AL, Register::R15L) => 1,
            _ if within(Register::AX, Register::R15W) => 2,
            _ if within(Register::EAX, Register::R15D) => 4,
            _ if within(Register::RAX, Register::R15) || within(Register::K0, Register::K7) => 8,
            _ if within(Register::XMM0, Register::XMM31) => 16,
            _ if within(Register::YMM0, Register::YMM31) => 32,
            _ if within(Register::ZMM0, Register::ZMM31) => 64,
            _ => 0,
        }
    }

    fn is_general(self) -> bool {
        (1..=8).contains(&self.size()) && !self.is_mask()
    }

    fn is_mask(self) -> bool {
        (Register::K0 as usize..=Register::K7 as usize).contains(&(self as usize))
    }

    fn is_vector(self) -> bool {
        self.size() >= 16
    }
}
