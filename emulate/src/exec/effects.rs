//! Hands the asynchronous and matrix instructions to their parts.

use super::state::Warp;
use super::{Machine, Next, Result};
use crate::fault::{Fault, FaultKind};
use crate::op::Op;

impl Machine<'_> {
    pub(super) fn asynchronous(&mut self, warp: &mut Warp, pc: u32, active: u32, group: u32) -> Result<Next> {
        let program = self.program;
        let inst = &program.insts[pc as usize];
        // Matrix instructions are for whole warps: lanes that are on their way are waited for.
        let matrix = matches!(
            inst.op,
            Op::MatrixMove(_) | Op::Mma(_) | Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait(_)
        );
        if matrix && active == group && active != warp.live {
            return Ok(Next::Wait(super::state::Wait::Converge));
        }
        match &inst.op {
            Op::Mbarrier(op) => {
                if let Some(wait) = self.mbarrier(warp, active, op.0, &op.1, inst.source)? {
                    return Ok(Next::Wait(wait));
                }
            }
            Op::Copy(copy) => self.copy16(warp, active, copy, inst.source)?,
            Op::CopyCommit => self.copy_commit(warp, active),
            Op::CopyWait(left) => self.copy_wait(warp, active, *left)?,
            Op::Bulk(bulk) => self.bulk(warp, active, bulk, inst.source)?,
            Op::BulkCommit => self.bulk_commit(warp),
            Op::BulkWait(left) => self.bulk_wait(warp, *left)?,
            Op::MatrixMove(matrix) => self.matrix_move(warp, active, matrix, inst.source)?,
            Op::Mma(mma) => self.mma(warp, active, mma)?,
            Op::Wgmma(op) => self.wgmma(warp, pc, active, op, inst.source)?,
            Op::WgmmaFence => {
                self.whole_warp(active, "`wgmma.fence`")?;
                warp.fence_stamp = self.warp_instructions;
            }
            Op::WgmmaCommit => {
                self.whole_warp(active, "`wgmma.commit_group`")?;
                warp.wgmma_commits += 1;
            }
            Op::WgmmaWait(left) => {
                self.whole_warp(active, "`wgmma.wait_group`")?;
                if let Some(issued) = self.wgmma_wait(warp, *left)? {
                    return Ok(Next::Wait(super::state::Wait::Warpgroup { issued }));
                }
            }
            _ => return Err(Fault::new(FaultKind::Misuse, "an instruction without a meaning")),
        }
        Ok(Next::Advance)
    }
}
