//! Constants that a block reads often, held in registers that it leaves free.
//!
//! Reads and rewrites a [`Function`] before allocation. An operand behind the code costs a load each time, and a processor
//! of AVX2 starts two vector loads a cycle: decoding two-bit codes took as many for masks as for everything else. Always
//! holds: what is computed stays the same; where a register is free is counted from what is alive, block by block, and
//! [`super::compile`] goes back to operands in memory where allocation spills all the same.

use iced_x86::Mnemonic as M;
use std::collections::HashMap;

use super::machine::{Arg, Base, Class, Function, Inst, Mem, Reg, Size};

/// Reads of a constant that are worth a register.
const READS: usize = 3;
/// Registers left to what allocation needs beside the values that are alive.
const SPARE: usize = 1;

/// Puts constants into registers, of which there are so many. Returns whether anything changed.
pub(super) fn constants(f: &mut Function, registers: usize) -> bool {
    let found: Vec<HashMap<Mem, Vec<usize>>> = f.blocks.iter().map(|block| reads(&block.insts)).collect();
    if found.iter().all(HashMap::is_empty) {
        return false;
    }
    let alive = alive_after(f);
    let mut changed = false;
    for (number, reads) in found.into_iter().enumerate() {
        // Blocks outside of loops run once per workgroup.
        if reads.is_empty() || f.blocks[number].depth == 0 {
            continue;
        }
        let mut pressure = pressure(f, number, &alive[number]);
        let mut order: Vec<(Mem, Vec<usize>)> = reads.into_iter().collect();
        order.sort_by_key(|(mem, places)| (std::cmp::Reverse(places.len()), place_of(mem)));
        let mut loads: Vec<(usize, Inst)> = Vec::new();
        for (mem, places) in order {
            let (Some(&first), Some(&last)) = (places.first(), places.last()) else { continue };
            let range = first..last + 1;
            if pressure[range.clone()].iter().any(|&p| p + 1 + SPARE > registers) {
                continue;
            }
            pressure[range].iter_mut().for_each(|p| *p += 1);
            let (reg, size) = (f.reg(Class::Vector), Size::vector(mem.bytes));
            for place in places {
                if let Inst::Op { args, .. } = &mut f.blocks[number].insts[place] {
                    args.iter_mut().filter(|arg| **arg == Arg::Mem(mem)).for_each(|arg| *arg = Arg::Use(reg, size));
                }
            }
            let args = vec![Arg::Def(reg, size), Arg::Mem(mem)];
            loads.push((first, Inst::Op { mnemonic: M::Vmovups, args, mask: None }));
            changed = true;
        }
        // From the last place to the first, so that places stay what they are.
        loads.sort_by_key(|&(place, _)| std::cmp::Reverse(place));
        for (place, load) in loads {
            f.blocks[number].insts.insert(place, load);
        }
    }
    changed
}

fn place_of(mem: &Mem) -> u32 {
    if let Base::Constant(at) = mem.base { at } else { u32::MAX }
}

/// Where a block reads each constant that is worth a register.
fn reads(insts: &[Inst]) -> HashMap<Mem, Vec<usize>> {
    let mut found: HashMap<Mem, Vec<usize>> = HashMap::new();
    for (place, inst) in insts.iter().enumerate() {
        let Inst::Op { mnemonic, args, mask: None } = inst else { continue };
        if !takes_register(*mnemonic) {
            continue;
        }
        for arg in args {
            if let Arg::Mem(mem) = arg
                && matches!(mem.base, Base::Constant(_))
                && !mem.broadcast
                && mem.bytes >= 16
            {
                found.entry(*mem).or_default().push(place);
            }
        }
    }
    found.retain(|_, places| places.len() >= READS);
    found
}

/// Instructions whose last operand, but for a number, is a vector of the same width in a register or in memory.
fn takes_register(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Vpand
            | M::Vpandd
            | M::Vpor
            | M::Vpord
            | M::Vpxor
            | M::Vpxord
            | M::Vpmaddwd
            | M::Vpaddb
            | M::Vpaddw
            | M::Vpaddd
            | M::Vpsubd
            | M::Vpmulld
            | M::Vaddps
            | M::Vmulps
            | M::Vandps
            | M::Vpternlogd
            | M::Vpermi2b
            | M::Vpshufb
    )
}

/// A set of registers.
type Set = Vec<bool>;

/// The registers that are alive behind each block.
fn alive_after(f: &Function) -> Vec<Set> {
    let count = f.classes.len();
    let mut before: Vec<Set> = vec![vec![false; count]; f.blocks.len()];
    let mut after = before.clone();
    loop {
        let mut grown = false;
        for label in f.order.iter().rev() {
            let number = label.0 as usize;
            let block = &f.blocks[number];
            let next: Vec<usize> = match block.insts.last() {
                Some(Inst::Jump(to, _)) => vec![to.0 as usize],
                Some(Inst::Branch(_, yes, no)) => vec![yes.0 as usize, no.0 as usize],
                _ => Vec::new(),
            };
            let mut alive = after[number].clone();
            for next in next {
                alive.iter_mut().zip(&before[next]).for_each(|(alive, &there)| *alive |= there);
            }
            after[number].clone_from(&alive);
            for inst in block.insts.iter().rev() {
                inst.each_definition(&mut |reg| alive[reg.0 as usize] = false);
                inst.each_use(&mut |reg| alive[reg.0 as usize] = true);
            }
            block.params.iter().for_each(|param| alive[param.0 as usize] = false);
            if alive != before[number] {
                before[number] = alive;
                grown = true;
            }
        }
        if !grown {
            return after;
        }
    }
}

/// Vector registers that each instruction of a block needs, with those that hold something for later.
fn pressure(f: &Function, number: usize, after: &Set) -> Vec<usize> {
    let vector = |reg: Reg| f.classes.get(reg.0 as usize) == Some(&Class::Vector);
    let mut alive = after.clone();
    // Registers that were made since count as none.
    alive.resize(f.classes.len(), false);
    let mut count = alive.iter().zip(&f.classes).filter(|&(&alive, &class)| alive && class == Class::Vector).count();
    let insts = &f.blocks[number].insts;
    let mut needed = vec![0; insts.len()];
    for (place, inst) in insts.iter().enumerate().rev() {
        let mut behind = count;
        inst.each_definition(&mut |reg| {
            if vector(reg) {
                match std::mem::replace(&mut alive[reg.0 as usize], false) {
                    true => count -= 1,
                    // Written for nobody, but written.
                    false => behind += 1,
                }
            }
        });
        inst.each_use(&mut |reg| {
            if vector(reg) && !std::mem::replace(&mut alive[reg.0 as usize], true) {
                count += 1;
            }
        });
        needed[place] = behind.max(count);
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::super::machine::Label;
    use super::*;

    /// A loop of one block that keeps `held` vectors and masks `reads` of its loads with one constant.
    fn example(held: usize, reads: usize) -> (Function, Label) {
        let mut f = Function::default();
        let (entry, body, exit) = (f.label(), f.label(), f.label());
        f.begin(entry, 0);
        let arguments = [(); 4].map(|()| f.reg(Class::General));
        f.push(Inst::Entry(arguments));
        let kept: Vec<Reg> = (0..held)
            .map(|_| {
                let reg = f.reg(Class::Vector);
                f.push(Inst::Zero(reg));
                reg
            })
            .collect();
        f.push(Inst::Jump(body, Vec::new()));
        f.begin(body, 1);
        let at = f.constant(&[3; 32]);
        let constant = |at| Mem { base: Base::Constant(at), index: None, offset: 0, bytes: 32, broadcast: false };
        for _ in 0..reads {
            let reg = f.reg(Class::Vector);
            let args = vec![Arg::Def(reg, Size::Y), Arg::Use(kept[0], Size::Y), Arg::Mem(constant(at))];
            f.push(Inst::Op { mnemonic: M::Vpand, args, mask: None });
        }
        f.push(Inst::Jump(exit, Vec::new()));
        f.begin(exit, 0);
        for pair in kept.chunks(2) {
            let reg = f.reg(Class::Vector);
            let args = [&[Arg::Def(reg, Size::Y)], &pair.iter().map(|&r| Arg::Use(r, Size::Y)).collect::<Vec<_>>()[..]];
            f.push(Inst::Op { mnemonic: M::Vpaddd, args: args.concat(), mask: None });
        }
        f.push(Inst::Return);
        (f, body)
    }

    fn in_memory(f: &Function, body: Label) -> usize {
        let masks = |inst: &&Inst| matches!(inst, Inst::Op { mnemonic: M::Vpand, args, .. } if matches!(args.last(), Some(Arg::Mem(_))));
        f.blocks[body.0 as usize].insts.iter().filter(masks).count()
    }

    #[test]
    fn what_is_read_often_takes_a_free_register() {
        for (held, reads, left) in [(4, 8, 0), (4, READS - 1, READS - 1), (13, 8, 0), (14, 8, 8), (16, 8, 8)] {
            let (mut f, body) = example(held, reads);
            assert_eq!(constants(&mut f, 16), left == 0, "{held} held, {reads} reads");
            assert_eq!(in_memory(&f, body), left, "{held} held, {reads} reads");
            let loads = |inst: &&Inst| matches!(inst, Inst::Op { mnemonic: M::Vmovups, .. });
            assert_eq!(f.blocks[body.0 as usize].insts.iter().filter(loads).count(), usize::from(left == 0));
        }
    }
}
