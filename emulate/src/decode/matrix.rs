//! Matrix instructions: shapes and types are checked here, so that the machine need not.

use super::memory::space;
use super::{Builder, Result, want};
use crate::alu::Modifiers;
use crate::ast::{Kind, Operand, Space, Statement, Type};
use crate::matrix::{Element, MatrixMove, Mma, Move, Sum};
use crate::op::Op;
use crate::wgmma::Wgmma;

const B32: Type = Type { kind: Kind::Bits, bits: 32, pair: false };
const B64: Type = Type { kind: Kind::Bits, bits: 64, pair: false };

/// `m16n8k32` into its three numbers.
fn shape(word: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

/// Shapes of `mma.sync` by A's type: rows and depths.
fn known(a: Element, rows: usize, depth: usize) -> bool {
    match a {
        Element::F16 | Element::Bf16 => rows == 16 && matches!(depth, 8 | 16),
        Element::Tf32 => rows == 16 && matches!(depth, 4 | 8),
        Element::E4m3 | Element::E5m2 => rows == 16 && matches!(depth, 16 | 32),
        Element::F64 => rows == 8 && depth == 4 || rows == 16 && matches!(depth, 4 | 8 | 16),
        Element::Signed(8) | Element::Unsigned(8) => (rows, depth) == (8, 16) || rows == 16 && matches!(depth, 16 | 32),
        Element::Signed(_) | Element::Unsigned(_) => (rows, depth) == (8, 32) || rows == 16 && matches!(depth, 32 | 64),
    }
}

/// Which types multiply into which sums.
fn compatible(a: Element, b: Element, sum: Sum) -> bool {
    let integer = |e| matches!(e, Element::Signed(_) | Element::Unsigned(_));
    let bytes = |e| matches!(e, Element::E4m3 | Element::E5m2);
    match sum {
        Sum::F16 => a == Element::F16 && b == a || bytes(a) && bytes(b),
        Sum::F32 => a == b && matches!(a, Element::F16 | Element::Bf16 | Element::Tf32) || bytes(a) && bytes(b),
        Sum::F64 => a == Element::F64 && b == a,
        Sum::S32 => integer(a) && integer(b) && a.bits() == b.bits(),
    }
}

impl Builder<'_> {
    pub(super) fn matrix(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        match s.name.as_str() {
            "ldmatrix" | "stmatrix" | "movmatrix" => self.matrix_move(s, m)?,
            "mma" => self.mma(s, m)?,
            "wgmma" => self.wgmma(s, m)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn matrix_move(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        if !m.take("sync") || !m.take("aligned") || !m.take("m8n8") {
            return Err("this matrix move is not known to this machine; accepted: `.sync.aligned.m8n8`".into());
        }
        let count = match m.any(&["x1", "x2", "x4"]) {
            Some("x2") => 2,
            Some("x4") => 4,
            _ => 1,
        };
        let transposed = m.take("trans");
        want(s, 2..=2)?;
        space(m);
        if m.ty()?.bits != 16 {
            return Err("matrix moves of anything but `.b16` are not known to this machine".into());
        }
        let op = match s.name.as_str() {
            "ldmatrix" => {
                let place = self.place(&s.operands[1], Space::Shared)?;
                let registers = self.fragment(&s.operands[0])?;
                MatrixMove { how: Move::Load(place), transposed, registers }
            }
            "stmatrix" => {
                let place = self.place(&s.operands[0], Space::Shared)?;
                MatrixMove { how: Move::Store(place), transposed, registers: self.sources(&s.operands[1], B32)? }
            }
            _ if !transposed => return Err("`movmatrix` wants `.trans`".into()),
            _ => {
                let from = self.source(&s.operands[1], B32)?;
                MatrixMove { how: Move::Transpose(from), transposed, registers: self.fragment(&s.operands[0])? }
            }
        };
        if op.registers.len() != count {
            return Err(format!("{} registers; accepted: {count}", op.registers.len()));
        }
        self.push(Op::MatrixMove(Box::new(op)));
        Ok(())
    }

    /// Registers that are written, all of them named.
    fn fragment(&mut self, operand: &Operand) -> Result<Vec<crate::op::Reg>> {
        let parts = self.parts(operand)?;
        parts.iter().map(|p| self.dest(p)).collect()
    }

    fn mma(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let unknown = "this `mma` is not known to this machine";
        if !m.take("sync") || !m.take("aligned") {
            return Err(unknown.into());
        }
        let (rows, columns, depth) = m.first().and_then(shape).ok_or(unknown)?;
        if m.first() != Some("row") || m.first() != Some("col") {
            return Err(format!("{unknown}; accepted: `.row.col`"));
        }
        let saturate = m.take("satfinite");
        let sum = m.first().and_then(Sum::parse).ok_or(unknown)?;
        let a = m.first().and_then(Element::parse).ok_or(unknown)?;
        let b = m.first().and_then(Element::parse).ok_or(unknown)?;
        let c = m.first().and_then(Sum::parse).ok_or(unknown)?;
        if columns != 8 || !known(a, rows, depth) || !compatible(a, b, sum) || sum != c || saturate && sum != Sum::S32 {
            return Err(unknown.into());
        }
        want(s, 4..=4)?;
        let ty = if a == Element::F64 { B64 } else { B32 };
        let mma = Mma {
            rows,
            depth,
            a,
            b,
            sum,
            saturate,
            d_registers: self.fragment(&s.operands[0])?,
            a_registers: self.sources(&s.operands[1], ty)?,
            b_registers: self.sources(&s.operands[2], ty)?,
            c_registers: self
                .sources(&s.operands[3], if sum == Sum::F32 { Type { kind: Kind::Float, ..B32 } } else { ty })?,
        };
        let per = (32 / a.bits()).max(1) as usize;
        let counts = [mma.d_registers.len(), mma.a_registers.len(), mma.b_registers.len(), mma.c_registers.len()];
        let sums = rows / 4 / if sum == Sum::F16 { 2 } else { 1 };
        let wanted = [sums, rows * depth / 32 / per, 8 * depth / 32 / per, sums];
        if counts != wanted {
            return Err(format!("fragments of {counts:?} registers; accepted: {wanted:?}"));
        }
        self.push(Op::Mma(Box::new(mma)));
        Ok(())
    }

    fn wgmma(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let name = m.first().unwrap_or_default();
        if !m.take("sync") || !m.take("aligned") {
            return Err("`wgmma` wants `.sync.aligned`".into());
        }
        match name {
            "fence" => self.push(Op::WgmmaFence),
            "commit_group" => self.push(Op::WgmmaCommit),
            "wait_group" => match s.operands[..] {
                [Operand::Integer(n)] if n < 8 => self.push(Op::WgmmaWait(n as u32)),
                _ => return Err("`wgmma.wait_group` takes a number from 0 to 7".into()),
            },
            "mma_async" => self.mma_async(s, m)?,
            other => return Err(format!("`wgmma.{other}` is not known to this machine")),
        }
        Ok(())
    }

    fn mma_async(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let unknown = "this `wgmma.mma_async` is not known to this machine";
        let (rows, columns, depth) = m.first().and_then(shape).ok_or(unknown)?;
        let sum = m.first().and_then(Sum::parse).ok_or(unknown)?;
        let a = m.first().and_then(Element::parse).ok_or(unknown)?;
        let b = m.first().and_then(Element::parse).ok_or(unknown)?;
        let saturate = m.take("satfinite");
        let whole = a.bits() <= 32 && a.bits() >= 8 && depth as u32 == 256 / a.bits();
        let integer = sum == Sum::S32;
        let step = if integer { columns % 16 == 0 || columns == 8 || columns == 24 } else { columns % 8 == 0 };
        if rows != 64 || !(8..=256).contains(&columns) || !step || !whole || !compatible(a, b, sum) || sum == Sum::F64 {
            return Err(unknown.into());
        }
        let half = a.bits() == 16;
        let registers = !matches!(s.operands.get(1), Some(Operand::Name(_)));
        let count = if integer { 4 } else { 6 } + if half { 1 + usize::from(!registers) } else { 0 };
        want(s, count..=count)?;
        let mut numbers = Vec::new();
        for operand in &s.operands[4..] {
            let Operand::Integer(n) = operand else { return Err(format!("{operand:?} where a number is due")) };
            numbers.push(*n as i64);
        }
        let (scales, transposes) = if integer { (&[][..], &[][..]) } else { numbers.split_at(2) };
        if scales.iter().any(|s| s.abs() != 1) || transposes.iter().any(|t| !(0..=1).contains(t)) {
            return Err("scales are 1 or -1, transpositions 0 or 1".into());
        }
        let wgmma = Wgmma {
            columns,
            depth,
            a,
            b,
            sum,
            saturate,
            d_registers: self.fragment(&s.operands[0])?,
            a_registers: if registers {
                self.sources(&s.operands[1], B32)?
            } else {
                vec![self.source(&s.operands[1], B64)?]
            },
            b_descriptor: self.source(&s.operands[2], B64)?,
            accumulate: self.test(&s.operands[3])?,
            negate: scales.iter().product::<i64>() < 0,
            a_transposed: !registers && transposes.first() == Some(&1),
            b_transposed: transposes.last() == Some(&1),
        };
        let sums = columns / 2 / if sum == Sum::F16 { 2 } else { 1 };
        if wgmma.d_registers.len() != sums || registers && wgmma.a_registers.len() != 4 {
            return Err(format!("{} result registers; accepted: {sums}", wgmma.d_registers.len()));
        }
        self.push(Op::Wgmma(Box::new(wgmma)));
        Ok(())
    }
}
