//! An engine on candle whose linear layers run on bitsmith's kernels: a gated feed-forward block, checked against candle's own
//! matmuls over the same quantized weights.
//!
//!     bitsmith-candle BUNDLE FORMAT HIDDEN FFN          the bundle has FFN x HIDDEN and HIDDEN x FFN with f16 activations

mod library;
mod linear;

use candle_core::{DType, Device, Result, Tensor, bail};
use library::Handle;
use linear::Linear;
use std::sync::Arc;

/// `down(silu(gate(x)) · up(x))`, as Llama has it.
struct FeedForward {
    gate: Arc<Linear>,
    up: Arc<Linear>,
    down: Arc<Linear>,
}

impl FeedForward {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&(self.gate.forward(x)?.silu()? * self.up.forward(x)?)?)
    }

    /// The same by candle, in f32, rounded to f16 where the engine rounds.
    fn reference(&self, x: &Tensor) -> Result<Tensor> {
        let linear = |x: &Tensor, layer: &Linear| -> Result<Tensor> {
            x.to_dtype(DType::F32)?.matmul(&layer.dense()?.t()?)?.to_dtype(DType::F16)
        };
        linear(&(linear(x, &self.gate)?.silu()? * linear(x, &self.up)?)?, &self.down)
    }
}

/// Numbers around 0, the same in every run: a sum of four uniform ones.
fn drawn(seed: &mut u64, scale: f32, rows: usize, columns: usize) -> Result<Tensor> {
    let mut next = || {
        // Knuth's multiplicative congruential generator; its upper bits are used.
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let numbers: Vec<f32> = (0..rows * columns).map(|_| (next() + next() + next() + next()) * scale).collect();
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, format, hidden, ffn] = args.as_slice() else {
        bail!("usage: bitsmith-candle BUNDLE FORMAT HIDDEN FFN");
    };
    let number =
        |text: &str| text.parse::<usize>().map_err(|error| candle_core::Error::Msg(format!("{text}: {error}")));
    let (hidden, ffn) = (number(hidden)?, number(ffn)?);
    let device = Arc::new(Handle::device("cpu")?);
    let bundle = Arc::new(device.bundle(folder)?);
    let mut seed = 1;
    let mut layer = |n: usize, k: usize| {
        let weights = drawn(&mut seed, 1.0 / (k as f32).sqrt(), n, k)?;
        Linear::new(&device, &bundle, format, &weights)
    };
    let block = FeedForward { gate: layer(ffn, hidden)?, up: layer(ffn, hidden)?, down: layer(hidden, ffn)? };
    for m in [1, 7, 40] {
        let x = drawn(&mut seed, 1.0, m, hidden)?.to_dtype(DType::F16)?;
        let numbers = |y: Tensor| y.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (ours, theirs) = (numbers(block.forward(&x)?)?, numbers(block.reference(&x)?)?);
        let largest = theirs.iter().fold(0f32, |most, y| most.max(y.abs()));
        let worst = ours.iter().zip(&theirs).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        println!("{m} tokens: largest output {largest:.4}, largest difference {worst:.6}");
        // Two roundings to f16 of numbers that sums of the last layer then average.
        if ours.len() != m * hidden || worst.is_nan() || worst > largest * 4e-3 || largest < 1e-3 {
            bail!("{m} tokens: the outputs differ by {worst}");
        }
    }
    // A fault of the library is an error of candle.
    match block.down.forward(&Tensor::zeros((1, ffn + 1), DType::F16, &Device::Cpu)?) {
        Err(error) if error.to_string().contains("accepted") => {}
        other => bail!("rows that are too long gave {other:?}"),
    }
    println!("{format}, {hidden} x {ffn}: the block on bitsmith's kernels and on candle's agree");
    Ok(())
}
