//! The manifest's entry of a compiled kernel.

use super::{KvPiece, Piece};
use crate::failure::Failure;
use bitsmith_compiler::Error;
use bitsmith_compiler::artifact::ArgKind;
use bitsmith_compiler::ir::Access;
use bitsmith_compiler::lower::{self, Role};
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_runtime::bundle::{
    ArgEntry, Details, FileEntry, Grid, KernelEntry, KvEntry, KvSpec, PackingEntry, activation_of,
};

/// The entry of a kernel whose file has this name and hash.
pub fn entry(piece: &Piece<'_>, file: &str, sha256: String) -> Result<KernelEntry, Failure> {
    let packing = piece.packing;
    let mut signatures = lower::signature_packed(piece.op, packing)?;
    signatures.extend(lower::workspace(piece.op, piece.schedule));
    let (n, k, format, activation, output) = match piece.op {
        Op::Matmul(op) => (Some(op.n), op.k, Some(op.weight.to_string()), Some(op.activation.to_string()), op.out),
        Op::Dequant(op) => (Some(op.n), op.k, Some(op.weight.to_string()), None, op.out),
        Op::Quantize(op) => (None, op.k, None, Some(activation_of(op).to_string()), op.code),
    };
    let weights = signatures.iter().find(|s| s.role == Role::Weights);
    let args = piece.artifact.args.iter().enumerate().map(|(i, arg)| match (signatures.get(i), arg.kind) {
        (Some(s), ArgKind::Read { align } | ArgKind::Write { align } | ArgKind::ReadWrite { align }) => ArgEntry {
            name: arg.name.clone(),
            kind: "buffer".into(),
            holds: holds(s.role).into(),
            dtype: s.dtype.name().into(),
            bytes: s.fixed * s.dtype.bits() as usize / 8,
            bytes_per_row: s.per_row * s.dtype.bits() as usize / 8,
            align,
            written: s.access() != Access::Read,
            zeroed: s.role == Role::Workspace,
        },
        _ => ArgEntry {
            name: arg.name.clone(),
            kind: "i32".into(),
            holds: "number of rows".into(),
            dtype: "i32".into(),
            bytes: 4,
            bytes_per_row: 0,
            align: 4,
            written: false,
            zeroed: false,
        },
    });
    Ok(KernelEntry {
        entry: piece.artifact.entry.clone(),
        op: piece.op.name().to_string(),
        details: Details::of(piece.op),
        layers: piece.layers.to_string(),
        n,
        k,
        format,
        activation,
        output: output.name().to_string(),
        packing: weights.map(|_| packing.name().to_string()),
        packed_bytes: weights.map(|s| s.fixed),
        schedule: *piece.schedule,
        chosen_for_rows: if n.is_some() && piece.op.name() == "dequant" { Vec::new() } else { piece.rows.to_vec() },
        chosen_by: piece.chosen_by.to_string(),
        grid: grid(piece.op, piece.schedule)?,
        workgroup: piece.artifact.workgroup,
        scratch_bytes: piece.artifact.shared_bytes,
        args: args.collect(),
        preparation: piece.artifact.preparation.clone(),
        object: FileEntry { file: file.to_string(), sha256 },
    })
}

/// What an argument holds, in words.
fn holds(role: Role) -> &'static str {
    match role {
        Role::Activations => "activations [m, k]",
        Role::ActivationScales => "activation scales",
        Role::ActivationSums => "sums of activation codes per segment of k",
        Role::Weights => "packed weights",
        Role::Bias => "bias [n]",
        Role::Mul => "multiplier of the gate [m, n]",
        Role::Residual => "residual [m, n]",
        Role::Gain => "gain of the norm [k]",
        Role::Smooth => "reciprocal smoothing [k]",
        Role::Output => "result",
        Role::Decoded => "decoded weights: any content before a launch; for one launch at a time",
        Role::Workspace => "workspace: zero before the first launch, left ready for the next; for one launch at a time",
    }
}

/// The rule behind `lower::grid`: its values for many numbers of rows decide, so that the two cannot drift apart.
fn grid(op: &Op, schedule: &Schedule) -> Result<Grid, Failure> {
    let at = |m: usize| lower::grid(op, schedule, m);
    let [_, y, z] = at(1);
    let most = 1024;
    let fits =
        |step: Option<u32>| (1..=most).all(|m| at(m) == [step.map_or(1, |step| (m as u32).div_ceil(step)), y, z]);
    // The rows of one workgroup: the most that a single one serves.
    let tile_m = (1..most).find(|&m| at(m + 1)[0] > 1).map(|m| m as u32);
    if !fits(tile_m) {
        let text = format!("{op:?} {schedule:?}");
        return Err(Error::Bug { message: "the grid follows no known rule".into(), text }.into());
    }
    let x = tile_m.map_or("1".to_string(), |step| if step == 1 { "m".into() } else { format!("ceil(m / {step})") });
    let tile_n = (y > 1 && schedule.workgroups == 1).then_some(schedule.tile_n * schedule.strips);
    Ok(Grid { rule: format!("{x} * {y} * {z}"), tile_m, tile_n, y, z })
}

/// The entry of a kernel of a KV cache whose file has this name and hash.
pub fn kv_entry(piece: &KvPiece, file: &str, sha256: String) -> KvEntry {
    KvEntry {
        entry: piece.artifact.entry.clone(),
        op: piece.op.name().to_string(),
        spec: KvSpec::of(&piece.op),
        schedule: piece.schedule,
        workgroup: piece.artifact.workgroup,
        scratch_bytes: piece.artifact.shared_bytes,
        args: piece.artifact.args.clone(),
        object: FileEntry { file: file.to_string(), sha256 },
    }
}

/// How the weights of a kernel lie; nothing for operations without weights.
pub fn packing(piece: &Piece<'_>) -> Result<Option<PackingEntry>, Failure> {
    let (format, k) = match piece.op {
        Op::Matmul(op) => (op.weight, op.k),
        Op::Dequant(op) => (op.weight, op.k),
        Op::Quantize(_) => return Ok(None),
    };
    let packing = piece.packing;
    let planes = packing.planes(&format, k)?.iter().map(ToString::to_string).collect();
    Ok(Some(PackingEntry {
        packing: packing.name().to_string(),
        format: format.to_string(),
        planes,
        description: packing.describe().to_string(),
    }))
}
