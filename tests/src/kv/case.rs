//! Cases drawn from a seed.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvCode, KvCodes, KvFormat, KvLayout, KvPer};
use bitsmith_compiler::op::kv::{Arithmetic, Rope, Sight};
use bitsmith_runtime::kv::Splits;

/// A batch in a format.
#[derive(Clone, Debug)]
pub struct KvCase {
    /// What it was drawn from.
    pub seed: u64,
    /// The cache, window and all.
    pub layout: KvLayout,
    /// Query heads.
    pub heads: usize,
    /// Tokens of each request.
    pub lengths: Vec<usize>,
    /// Query tokens of each request: its newest ones.
    pub queries: Vec<usize>,
    /// Query tokens per work item.
    pub tile: usize,
    /// Type of keys, values, queries, outputs.
    pub dtype: DType,
    /// Rotary embedding.
    pub rope: Option<Rope>,
    /// Soft cap.
    pub softcap: Option<f32>,
    /// Bias by distance.
    pub alibi: bool,
    /// Learned sinks.
    pub sinks: bool,
    /// What a query sees.
    pub sight: Sight,
    /// How tokens are split.
    pub splits: Splits,
    /// How products are summed up.
    pub arithmetic: Arithmetic,
}

fn codes(rng: &mut fastrand::Rng, dim: usize, key: bool) -> KvCodes {
    let code = KvCode::ALL[rng.usize(..KvCode::ALL.len())];
    if code.is_plain() {
        return KvCodes { code, ..KvCodes::F16 };
    }
    let groups: Vec<u16> = [16, 32, 64, 128].into_iter().filter(|&g| dim.is_multiple_of(g as usize)).collect();
    let group = KvPer::Group(groups[rng.usize(..groups.len())]);
    let mut list = vec![KvPer::Tensor, KvPer::Head, KvPer::Token, KvPer::Token, group, group];
    if key {
        list.push(KvPer::Channel);
    }
    let per = list[rng.usize(..list.len())];
    let asymmetric = code.float().is_none() && rng.bool();
    let two_level = code == KvCode::Int4 && !asymmetric && matches!(per, KvPer::Group(_)) && rng.bool();
    KvCodes { code, per, asymmetric, two_level }
}

/// The case of a seed, for devices that take up to `most_rows` query rows per item.
pub fn case(seed: u64, most_rows: usize) -> KvCase {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x6b76);
    let shapes = [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (16, 32), (64, 48)];
    let (k_dim, v_dim) = shapes[rng.usize(..shapes.len())];
    let page = [16, 16, 32, 64, 128, 256][rng.usize(..6)];
    let (k, v) = (codes(&mut rng, k_dim, true), codes(&mut rng, v_dim, false));
    let windowed = k.per == KvPer::Channel || rng.u8(..6) == 0;
    let window = if windowed { page as u32 * rng.u32(1..3) } else { 0 };
    let kv_heads = rng.usize(1..3);
    let group = [1, 1, 2, 4, 8, 3][rng.usize(..6)].min(most_rows);
    let layout = KvLayout::new(KvFormat { k, v, window }, page, kv_heads, k_dim, v_dim)
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let tile = rng.usize(1..=(most_rows / group).clamp(1, 4));
    let lengths: Vec<usize> = (0..rng.usize(1..4))
        .map(|_| match rng.u8(..5) {
            0 => 0,
            1 => page * rng.usize(1..3).min(128 / page).max(1),
            _ => rng.usize(1..140),
        })
        .collect();
    let queries = lengths.iter().map(|&length| rng.usize(1..=5).min(length)).collect();
    let rope = rng.bool().then(|| Rope { rotary: if rng.bool() { k_dim } else { k_dim / 2 }, interleaved: rng.bool() });
    let sight = match rng.u8(..4) {
        0 => Sight::Window { window: rng.u32(1..80), first: 0 },
        1 => Sight::Window { window: rng.u32(1..60), first: rng.u32(1..20) },
        _ => Sight::All,
    };
    KvCase {
        seed,
        layout,
        heads: kv_heads * group,
        lengths,
        queries,
        tile,
        dtype: [DType::F16, DType::Bf16, DType::F32][rng.usize(..3)],
        rope,
        softcap: (rng.u8(..4) == 0).then_some(20.0),
        alibi: rng.u8(..4) == 0,
        sinks: rng.u8(..4) == 0,
        sight,
        splits: if rng.bool() { Splits::Fixed(rng.usize(1..200)) } else { Splits::Balanced(rng.usize(1..6)) },
        arithmetic: [Arithmetic::Float, Arithmetic::Integer, Arithmetic::Bf16, Arithmetic::Matrix][rng.usize(..4)],
    }
}
