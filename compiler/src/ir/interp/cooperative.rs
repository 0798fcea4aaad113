//! Cooperative matrices of a subgroup. Elements are dealt out row by row here; no kernel can tell.
//!
//! Always holds: lanes that name different places or numbers trap, and so do accesses that race with those of any lane.

use super::code::{Place, Slot};
use super::matrix;
use super::memory::{Space, Use, Who};
use super::workgroup::address;
use crate::caps::MmaShape;
use crate::ir::cooperative::{Fragment, Order};

/// One instruction with its operands resolved.
#[derive(Debug)]
pub enum Together {
    Fill { fragment: Fragment, d: Slot, value: Slot },
    Load(Matrices),
    Store(Matrices),
    Multiply { shape: &'static MmaShape, d: Slot, a: Slot, b: Slot, c: Slot },
    Scale { shape: &'static MmaShape, d: Slot, a: Slot, b: Slot, c: Slot },
}

/// A matrix in memory and in registers.
#[derive(Debug)]
pub struct Matrices {
    pub fragment: Fragment,
    pub slot: Slot,
    pub place: Place,
    pub order: Order,
    pub stride: u32,
}

impl Together {
    /// Does it for the lanes of a subgroup, the first of which is `who`.
    pub fn run(&self, regs: &mut [&mut [u8]], space: &mut Space, who: Who) -> Result<(), String> {
        let lanes = self.shape().lanes as usize;
        if regs.len() != lanes {
            return Err(format!("the subgroup has {} threads; {} takes {lanes}", regs.len(), self.shape()));
        }
        match self {
            Together::Fill { fragment, d, value } => {
                let size = fragment.dtype().bits() as usize / 8;
                let number = regs[0][*value as usize..][..size].to_vec();
                if let Some(lane) = regs.iter().position(|regs| regs[*value as usize..][..size] != number) {
                    return Err(format!("lane {lane} has another number than lane 0"));
                }
                let (rows, columns) = fragment.size();
                scatter(regs, *d, &number.repeat((rows * columns) as usize));
            }
            Together::Load(matrices) => {
                let mut elements = vec![0; matrices.bytes()];
                matrices.lines(regs, |at, line, size, count, step| {
                    let bytes = matrices.touch(space, (at, size * count), Use::Load, who)?;
                    for (i, element) in bytes.chunks_exact(size).enumerate() {
                        elements[(line + i * step) * size..][..size].copy_from_slice(element);
                    }
                    Ok(())
                })?;
                scatter(regs, matrices.slot, &elements);
            }
            Together::Store(matrices) => {
                let elements = gather(regs, matrices.slot, matrices.bytes());
                matrices.lines(regs, |at, line, size, count, step| {
                    let bytes = matrices.touch(space, (at, size * count), Use::Store, who)?;
                    for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
                        element.copy_from_slice(&elements[(line + i * step) * size..][..size]);
                    }
                    Ok(())
                })?;
            }
            Together::Multiply { shape, d, a, b, c } => {
                let of = |slot: Slot| -> Vec<&[u8]> { regs.iter().map(|regs| &regs[slot as usize..]).collect() };
                let results = matrix::multiply(shape, &of(*a), &of(*b), &of(*c));
                for (regs, result) in regs.iter_mut().zip(&results) {
                    regs[*d as usize..][..result.len()].copy_from_slice(result);
                }
            }
            Together::Scale { shape, d, a, b, c } => {
                let elements = shape.acc_elements() as usize;
                for regs in regs.iter_mut() {
                    for i in 0..elements {
                        let of = |slot: Slot| number(&regs[slot as usize + 4 * i..]);
                        let result = of(*a) * of(*b) + of(*c);
                        regs[*d as usize + 4 * i..][..4].copy_from_slice(&result.to_le_bytes());
                    }
                }
            }
        }
        Ok(())
    }

    fn shape(&self) -> &'static MmaShape {
        match self {
            Together::Fill { fragment, .. } => fragment.shape,
            Together::Load(matrices) | Together::Store(matrices) => matrices.fragment.shape,
            Together::Multiply { shape, .. } | Together::Scale { shape, .. } => shape,
        }
    }
}

impl Matrices {
    /// Bytes of the matrix.
    fn bytes(&self) -> usize {
        let (rows, columns) = self.fragment.size();
        (rows * columns * self.fragment.dtype().bits() / 8) as usize
    }

    /// The bytes of a line, `access` being its address and length, for all lanes of the subgroup that begins with `who`.
    fn touch<'a>(
        &self,
        space: &'a mut Space,
        access: (i64, usize),
        what: Use,
        who: Who,
    ) -> Result<&'a mut [u8], String> {
        space.together(self.place.memory, access, self.place.align, what, (who, self.fragment.shape.lanes))
    }

    /// Calls `line` for each line with its address, the number of its first element in the matrix row by row, bytes of an
    /// element, elements, and how far apart they are in the matrix.
    fn lines(
        &self,
        regs: &[&mut [u8]],
        mut line: impl FnMut(i64, usize, usize, usize, usize) -> Result<(), String>,
    ) -> Result<(), String> {
        let start = address(&self.place, &*regs[0]);
        if let Some(lane) = regs.iter().position(|regs| address(&self.place, regs) != start) {
            return Err(format!("lane {lane} names another place than lane 0"));
        }
        let size = self.fragment.dtype().bits() as usize / 8;
        let columns = self.fragment.size().1 as usize;
        let (count, bytes) = self.fragment.lines(self.order);
        for number in 0..count as usize {
            let at = start.saturating_add(number as i64 * i64::from(self.stride));
            let (first, step) = match self.order {
                Order::Rows => (number * columns, 1),
                Order::Columns => (number, columns),
            };
            line(at, first, size, bytes as usize / size, step)?;
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Deals the elements of a matrix out to lanes.
fn scatter(regs: &mut [&mut [u8]], slot: Slot, elements: &[u8]) {
    let each = elements.len() / regs.len();
    for (regs, share) in regs.iter_mut().zip(elements.chunks_exact(each)) {
        regs[slot as usize..][..each].copy_from_slice(share);
    }
}

/// The elements of a matrix.
fn gather(regs: &[&mut [u8]], slot: Slot, bytes: usize) -> Vec<u8> {
    let each = bytes / regs.len();
    regs.iter().flat_map(|regs| regs[slot as usize..][..each].iter().copied()).collect()
}
