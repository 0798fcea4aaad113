//! Permutations that one instruction does.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Size};
use super::value::Repr;
use crate::ir::Type;

impl Lower<'_> {
    /// AVX-512: words or pairs of words from anywhere in one register or two, by one instruction, where that makes a vector of
    /// more than 16 bytes.
    pub fn permuted(&mut self, ty: Type, [a, b]: [&Repr; 2], lanes: &[u8]) -> Option<Repr> {
        let width = ty.scalar.bytes() as usize;
        let total = width * lanes.len();
        let (one, two) = match width {
            2 => (M::Vpermw, M::Vpermt2w),
            4 => (M::Vpermd, M::Vpermt2d),
            _ => return None,
        };
        if !self.facts.evex || !matches!(total, 32 | 64) || a.regs.len() > 1 || b.regs.len() > 1 {
            return None;
        }
        // Two halves as they are take one insertion.
        if total == 32 && a.size == Size::X && lanes.iter().enumerate().all(|(i, &lane)| lane as usize == i) {
            return None;
        }
        let bytes = a.size.bytes().max(b.size.bytes()).max(total as u32);
        let (size, per) = (Size::vector(bytes), bytes as usize / width);
        let own = ty.lanes as usize;
        let same = a.one() == b.one();
        let picks: Vec<(bool, usize)> = lanes
            .iter()
            .map(|&lane| match (lane as usize).checked_sub(own) {
                Some(lane) => (!same, lane),
                None => (false, lane as usize),
            })
            .collect();
        let source = picks[0].0;
        let alone = picks.iter().all(|pick| pick.0 == source);
        let mut index = vec![0; bytes as usize];
        for (i, &(second, lane)) in picks.iter().enumerate() {
            let number = lane + if second && !alone { per } else { 0 };
            index[i * width..][..2].copy_from_slice(&(number as u16).to_le_bytes());
        }
        let index = Arg::Use(self.constant(size, &index), size);
        let reg = if alone {
            self.vec(one, size, &[index, Arg::Use(if source { b.one() } else { a.one() }, size)])
        } else {
            self.accumulate(two, size, a.one(), &[index, Arg::Use(b.one(), size)])
        };
        Some(Repr::vector(Size::vector(total as u32), vec![reg]))
    }
}

/// The places that `vpshufb` takes bytes from, where lanes of a vector move in the same way within each 16 bytes.
pub(super) fn within_quarters(width: usize, ty: Type, lanes: &[u8]) -> Option<Vec<u8>> {
    let quarter = 16 / width;
    let moves = |(i, &lane): (usize, &u8)| {
        let lane = lane as usize;
        lane / quarter == i / quarter && lane % quarter == lanes[i % quarter] as usize
    };
    let fits = lanes.len() == ty.lanes as usize && lanes.len().is_multiple_of(quarter);
    (fits && lanes.iter().enumerate().all(moves)).then(|| {
        let bytes = |&lane: &u8| (0..width as u8).map(move |byte| lane * width as u8 + byte);
        lanes[..quarter].iter().flat_map(bytes).collect()
    })
}

/// `vpunpckl`, `vpunpckh`: within each 16 bytes, the lower or the upper lanes of two vectors in turn.
pub(super) fn interleaving(width: usize, ty: Type, lanes: &[u8]) -> Option<M> {
    let (quarter, own) = (16 / width, ty.lanes as usize);
    let is = |first: usize| {
        let place = |i: usize| i / quarter * quarter + first + i % quarter / 2 + i % 2 * own;
        lanes.iter().enumerate().all(|(i, &lane)| lane as usize == place(i))
    };
    if lanes.len() != own || !own.is_multiple_of(quarter) || width > 4 {
        return None;
    }
    let [low, high] = match width {
        1 => [M::Vpunpcklbw, M::Vpunpckhbw],
        2 => [M::Vpunpcklwd, M::Vpunpckhwd],
        _ => [M::Vpunpckldq, M::Vpunpckhdq],
    };
    if is(0) { Some(low) } else { is(quarter / 2).then_some(high) }
}
