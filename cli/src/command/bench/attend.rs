//! `bench attend`: attention over a quantized KV cache, decoding and prefill apart, against roofs measured in the same run.
//!
//! A cache has as many layers as it takes to be larger than the caches of the machine; a run takes the next one. Decoding is
//! one new token per request; prefill is a chunk of new tokens at the end of the context, which attends to all of it. One
//! head's outputs are held against the reference in `f64`.

use crate::failure::Failure;
use crate::roofs::Roofs;
use crate::table::{Table, bytes, time};
use crate::{Io, Outcome, memory, roofs as device_roofs};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout, KvPer};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, AttendInputs, KvStatics, Pool, Sight};
use bitsmith_runtime::kv::{AttendOptions, KvCache, KvShape, RequestId, arithmetic};
use bitsmith_runtime::timing::{Measurement, Subject, interleave};
use bitsmith_runtime::{Buffer, Device, DeviceInfo, roofs};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// Arguments of `bench attend`.
#[derive(Debug, clap::Args)]
pub struct BenchAttend {
    /// Formats of the cache; `bitsmith list kv`
    #[arg(long, value_delimiter = ',', default_values_t = ["f16".to_string(), "int8-head".into(), "int4-head".into()])]
    kv: Vec<String>,
    /// Tokens in the cache: 1k is 1024
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 8192], value_parser = tokens)]
    context: Vec<usize>,
    /// Requests, each with a context of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// Query heads
    #[arg(long, default_value_t = 32)]
    heads: usize,
    /// KV heads
    #[arg(long, default_value_t = 8)]
    kv_heads: usize,
    /// Channels of a head
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// Tokens of a page
    #[arg(long, default_value_t = 64)]
    page: usize,
    /// Tokens of the prefill chunk
    #[arg(long, default_value_t = 64, value_parser = super::super::rows)]
    chunk: usize,
    /// Numbers of threads [default: those of the device]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Where it runs
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Megabytes of cache to cycle through; 0 keeps one layer
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    cycle_mb: u64,
    /// Milliseconds to sample each measurement for
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    budget_ms: u64,
    /// How products are summed up
    #[arg(long, value_enum, default_value_t = Sums::Best)]
    sums: Sums,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// How products are summed up.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Sums {
    /// As caches do by themselves on this device
    Best,
    /// All codes become floats
    Float,
    /// Codes of integers stay integers; queries and weights are rounded to steps
    Integer,
    /// Codes of FP8 become bf16 numbers, as do queries and weights, where the device multiplies those in pairs
    Bf16,
    /// Matrix instructions, where the device has them
    Matrix,
}

/// Tokens as clap takes them: `8192`, `8k`, up to 2^24.
fn tokens(text: &str) -> Result<usize, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, unit) = lower.strip_suffix('k').map_or((lower.as_str(), 1), |digits| (digits, 1024));
    match digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(n) if (1..=1 << 24).contains(&n) => Ok(n),
        _ => Err("accepted: 1 to 16384k".into()),
    }
}

#[derive(Serialize)]
struct Summary {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page: usize,
    batch: usize,
    device: DeviceInfo,
    roofs: Vec<Roofs>,
    measurements: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    kv: String,
    phase: &'static str,
    context: usize,
    queries: usize,
    threads: usize,
    bytes_per_token: f64,
    seconds: Measurement,
    /// Bytes of the context's codes and scales over time.
    gigabytes_per_second: f64,
    /// Products and sums over time.
    gigaflops: f64,
    /// Of the roof that the phase is bound by: reading, or products. `None` where the device's are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_roof: Option<f64>,
    /// Of the speed at which as many threads merely read as many bytes, sample by sample in turn with this: medians of both.
    /// `None` where the phase is not bound by reading, or the device is no CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_reading: Option<f64>,
    error_of_bound: f64,
}

impl BenchAttend {
    pub(in super::super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let formats = self.kv.iter().map(|name| name.parse()).collect::<Result<Vec<KvFormat>, _>>()?;
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Failure::invalid(format!(
                "{} query heads over {} KV heads; accepted: multiples of the latter",
                self.heads, self.kv_heads
            )));
        }
        for format in &formats {
            KvLayout::new(*format, self.page, self.kv_heads, self.head_dim, self.head_dim)?;
        }
        let places = super::devices(&self.device, &self.threads)?;
        let mut summary = Summary {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            page: self.page,
            batch: self.batch as usize,
            device: places[0].info(),
            roofs: Vec::new(),
            measurements: Vec::new(),
        };
        for device in &places {
            let footprint = 256 << 20;
            let before = device_roofs::measure(&**device, footprint)?;
            let first = summary.measurements.len();
            for format in &formats {
                for &context in &self.context {
                    summary.measurements.extend(self.measure(device, *format, context)?);
                }
            }
            let after = device_roofs::measure(&**device, footprint)?;
            let Some(roofs) = before.zip(after).map(|(before, after)| before.higher(&after)) else { continue };
            for row in &mut summary.measurements[first..] {
                row.share_of_roof = match row.phase {
                    "decode" => Some(row.gigabytes_per_second / roofs.read_gbs()),
                    _ => roofs.attention_gops().map(|gops| row.gigaflops / gops),
                };
            }
            summary.roofs.push(roofs);
        }
        if self.json {
            io.json(&summary)?
        } else {
            print(io, &summary)?
        }
        match summary.measurements.iter().find(|row| row.error_of_bound.is_nan() || row.error_of_bound > 1.0) {
            None => Ok(()),
            Some(row) => Err(Failure::Found(format!(
                "{} {} over {} tokens: the error is {} of its bound",
                row.kv, row.phase, row.context, row.error_of_bound
            ))),
        }
    }

    fn shape(&self) -> KvShape {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        KvShape { heads, kv_heads, k_dim: self.head_dim, v_dim: self.head_dim, page: self.page, dtype: DType::F16 }
    }

    fn measure(&self, device: &Arc<dyn Device>, format: KvFormat, context: usize) -> Result<Vec<Row>, Failure> {
        let shape = self.shape();
        let layout = KvLayout::new(format, self.page, self.kv_heads, self.head_dim, self.head_dim)?;
        let batch = self.batch as usize;
        let pages = batch * ((context + self.chunk).div_ceil(self.page) + 1);
        let layer = pages * layout.page_bytes();
        let cycle = (self.cycle_mb as usize) << 20;
        let layers = cycle.div_ceil(layer).clamp(1, 256);
        memory::check(
            &format!("{format} over {context} tokens"),
            (layers * layer * 2) as f64,
            "take a shorter context or --cycle-mb",
        )?;
        let mut cache = KvCache::new(Arc::clone(device), shape, &vec![format; layers], pages, batch)?;
        let statics = vec![
            KvStatics { k: (3.0 / layout.k.codes.top(), -1.5), v: (3.0 / layout.v.codes.top(), -1.5) };
            self.kv_heads
        ];
        if layout.k.codes.is_static() || layout.v.codes.is_static() {
            (0..layers).try_for_each(|layer| cache.set_scales(layer, &statics))?;
        }
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let mut fill = |count: usize| -> Result<Buffer, Failure> {
            let bytes = DType::F16.to_bytes((0..count).map(|_| (rng.f32() + rng.f32() - 1.0) as f64));
            let buffer = device.allocate(bytes.len())?;
            device.upload(&buffer, 0, &bytes)?;
            Ok(buffer)
        };
        let piece = 512.max(batch * self.chunk);
        let (k, v) = (fill(piece * self.kv_heads * self.head_dim)?, fill(piece * self.kv_heads * self.head_dim)?);
        let q = fill(batch * self.chunk * self.heads * self.head_dim)?;
        let y = device.allocate(batch * self.chunk * self.heads * self.head_dim * 2)?;
        let ids = (0..batch).map(|_| cache.open()).collect::<Result<Vec<_>, _>>()?;
        let append = |cache: &mut KvCache, step: &[(RequestId, usize)]| -> Result<(), Failure> {
            cache.grow(step)?;
            (0..layers).try_for_each(|layer| cache.append(layer, k.view(), v.view()))?;
            Ok(())
        };
        for &id in &ids {
            let mut left = context - 1;
            while left > 0 {
                let count = left.min(piece);
                append(&mut cache, &[(id, count)])?;
                left -= count;
            }
        }
        let arithmetic = match self.sums {
            Sums::Best => None,
            Sums::Float => Some(Arithmetic::Float),
            Sums::Integer => Some(Arithmetic::Integer),
            Sums::Bf16 => Some(Arithmetic::Bf16),
            Sums::Matrix => Some(Arithmetic::Matrix),
        };
        let options = AttendOptions { arithmetic, ..AttendOptions::causal(1.0 / (self.head_dim as f32).sqrt()) };
        let mut rows = Vec::new();
        for (phase, queries) in [("decode", 1), ("prefill", self.chunk)] {
            append(&mut cache, &ids.iter().map(|&id| (id, queries)).collect::<Vec<_>>())?;
            let tokens = cache.pages().tokens(ids[0])?;
            let mut turn = 0;
            let mut failed = None;
            let mut run = |times: usize| {
                for _ in 0..times {
                    turn = (turn + 1) % layers;
                    failed = failed.take().or(cache.attend(turn, q.view(), y.view(), &options).err());
                }
                failed = failed.take().or(device.synchronize().err());
            };
            let budget = Duration::from_millis(self.budget_ms);
            let used = (layout.used_bytes() * self.kv_heads) as f64 / self.page as f64;
            let read = used * (batch * tokens) as f64;
            let reads = queries == 1 && super::takes_threads(&self.device);
            let reader = reads.then(|| roofs::Reader::new(layers * layer, read as usize, device.info().threads));
            let mut reader = reader.transpose()?;
            let mut pass = |times: usize| (0..times).for_each(|_| reader.iter_mut().for_each(roofs::Reader::pass));
            let mut subjects: Vec<Subject<'_>> = vec![&mut run];
            if reads {
                subjects.push(&mut pass);
            }
            let budget = budget * subjects.len() as u32;
            let times = interleave(&mut subjects, Duration::from_millis(20), budget);
            let (seconds, reading) = (times[0], times.get(1).copied());
            if let Some(error) = failed {
                return Err(error.into());
            }
            let pairs = (batch * (0..queries).map(|i| tokens - i).sum::<usize>()) as f64;
            rows.push(Row {
                kv: format.to_string(),
                phase,
                context: tokens,
                queries,
                threads: device.info().threads,
                bytes_per_token: used,
                seconds,
                gigabytes_per_second: read / seconds.median / 1e9,
                gigaflops: 4.0 * pairs * (self.heads * self.head_dim) as f64 / seconds.median / 1e9,
                share_of_roof: None,
                share_of_reading: reading.map(|reading| reading.median / seconds.median),
                error_of_bound: self.check(&**device, &mut cache, (ids[0], queries), (&q, &y), &options, &statics)?,
            });
        }
        Ok(rows)
    }

    /// The largest error of the last query's first head over its bound; 0 for formats with a window, whose newest tokens lie
    /// elsewhere.
    fn check(
        &self,
        device: &dyn Device,
        cache: &mut KvCache,
        (id, queries): (RequestId, usize),
        (q, y): (&Buffer, &Buffer),
        options: &AttendOptions,
        statics: &[KvStatics],
    ) -> Result<f64, Failure> {
        let layout = *cache.layout(0)?;
        if layout.format.window > 0 || layout.k.codes.per == KvPer::Channel {
            return Ok(0.0);
        }
        cache.attend(0, q.view(), y.view(), options)?;
        let pool = cache.pool(0)?.clone();
        let mut bytes = vec![0; pool.bytes()];
        device.download(&pool, 0, &mut bytes)?;
        let line = (queries - 1) * self.heads * self.head_dim;
        let f16 = |buffer: &Buffer| -> Result<Vec<f32>, Failure> {
            let mut bytes = vec![0; 2 * self.head_dim];
            device.download(buffer, 2 * line, &mut bytes)?;
            Ok(bytes.chunks(2).map(|c| DType::F16.decode(u16::from_le_bytes([c[0], c[1]]) as u32) as f32).collect())
        };
        let (query, got) = (f16(q)?, f16(y)?);
        let tokens = cache.pages().tokens(id)?;
        let pages: Vec<usize> = cache.pages().table(id)?.iter().flatten().map(|&page| page as usize).collect();
        let op = Attend {
            layout,
            heads: self.heads,
            queries,
            input: DType::F16,
            scale: options.scale,
            softcap: None,
            alibi: false,
            sight: Sight::All,
            arithmetic: Arithmetic::Float,
        };
        let op = Attend { arithmetic: arithmetic(&op, options.arithmetic, device.caps()), ..op };
        let inputs = AttendInputs { q: &query, head: 0, position: tokens - 1, slope: 0.0, sink: None };
        let pool = Pool { layout, statics, bytes: &mut bytes };
        let reference = op.reference(&inputs, &[(&pool, &pages, 0, tokens)]);
        Ok(got.iter().enumerate().fold(0.0, |worst: f64, (channel, &got)| {
            let expected = reference.expected(channel, DType::F16);
            let ratio = (got as f64 - expected.value).abs() / expected.bound;
            if ratio.is_nan() { f64::NAN } else { worst.max(ratio) }
        }))
    }
}

fn print(io: &mut Io<'_>, summary: &Summary) -> Outcome {
    writeln!(
        io.out,
        "attention of {} requests, {} query heads over {} KV heads of {} channels, pages of {} tokens\n{} ({})",
        summary.batch,
        summary.heads,
        summary.kv_heads,
        summary.head_dim,
        summary.page,
        summary.device.model,
        summary.device.target
    )?;
    for roofs in &summary.roofs {
        writeln!(io.out, "{}", roofs.describe())?;
    }
    for (phase, title) in [("decode", "Decode"), ("prefill", "Prefill")] {
        let share = |share: Option<f64>| share.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share));
        let mut table = Table::new(&[
            "kv",
            "context",
            "queries",
            "threads",
            "per token",
            "time",
            "GB/s",
            "GFLOP/s",
            "of roof",
            "of reading",
            "error",
        ]);
        for row in summary.measurements.iter().filter(|row| row.phase == phase) {
            table.row(vec![
                row.kv.clone(),
                row.context.to_string(),
                row.queries.to_string(),
                row.threads.to_string(),
                bytes(row.bytes_per_token),
                time(row.seconds.median),
                format!("{:.1}", row.gigabytes_per_second),
                format!("{:.1}", row.gigaflops),
                share(row.share_of_roof),
                share(row.share_of_reading),
                crate::table::ratio(row.error_of_bound),
            ]);
        }
        writeln!(io.out, "\n{title}\n{}", table.to_string().trim_end())?;
    }
    Ok(())
}
