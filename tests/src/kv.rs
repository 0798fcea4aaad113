//! Cases of the operations on a KV cache, drawn from a seed, and one function that plays a case on any engine.
//!
//! A case is a batch of requests with ragged lengths (some empty) in a format, a page size and a head shape: keys and values
//! are appended in chunks, pages requantized where the format has a window, then attended and merged under a sight, a cap, a
//! bias and sinks. Every byte that is stored and every number that comes out is held against the reference.

mod case;

pub use self::case::{KvCase, case};

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Access, Kernel, verify};
use bitsmith_compiler::lower::kv::{choose, signature, takes_bf16, takes_matrix};
use bitsmith_compiler::op::kv::{
    Arithmetic, Attend, AttendInputs, ITEM, KvAppend, KvDequant, KvOp, KvRequantize, KvStatics, Merge, PAIR, Pool, ROW,
    SPAN,
};
use bitsmith_compiler::schedule::KvSchedule;
use bitsmith_runtime::kv::{Queries, Segment, plan_attend, plan_spans};
use bitsmith_runtime::{self as runtime, Buffer, Device, LaunchArg};

/// Something that runs a launch: operation, schedule, work records, arguments to buffers afterwards.
pub type Engine<'e> = dyn FnMut(&KvOp, &KvSchedule, usize, Vec<ArgValue>) -> Result<Vec<ArgValue>, String> + 'e;

fn raw(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    dtype.to_bytes(numbers.iter().map(|&x| x as f64))
}

fn rounded(dtype: DType, x: f32) -> f32 {
    dtype.decode(dtype.encode(x as f64)) as f32
}

fn ints(fields: &[i32]) -> ArgValue {
    ArgValue::filled(fields.iter().flat_map(|field| field.to_le_bytes()).collect())
}

fn floats(numbers: &[f32]) -> ArgValue {
    ArgValue::filled(raw(DType::F32, numbers))
}

fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    dtype.from_bytes(bytes).collect()
}

/// Plays a case; returns the largest ratio of an error to its bound.
pub fn play(case: &KvCase, caps: &Caps, engine: &mut Engine<'_>) -> Result<f64, String> {
    Play::new(case, caps).all(engine)
}

struct Play<'c> {
    case: &'c KvCase,
    caps: &'c Caps,
    rng: fastrand::Rng,
    statics: Vec<KvStatics>,
    table: Vec<f32>,
    /// Pages of each request, in an order of their own.
    pages: Vec<Vec<Option<u32>>>,
    total: usize,
}

impl<'c> Play<'c> {
    fn new(case: &'c KvCase, caps: &'c Caps) -> Play<'c> {
        let mut rng = fastrand::Rng::with_seed(case.seed);
        let counts: Vec<usize> = case.lengths.iter().map(|length| length.div_ceil(case.layout.page)).collect();
        let total = counts.iter().sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..total as u32).collect();
        rng.shuffle(&mut free);
        let pages = counts.iter().map(|&count| (0..count).filter_map(|_| free.pop().map(Some)).collect()).collect();
        let statics = (0..case.layout.heads)
            .map(|_| KvStatics {
                k: (0.03 + rng.f32() * 0.1, -2.0 * rng.f32()),
                v: (0.02 + rng.f32() * 0.1, -rng.f32()),
            })
            .collect();
        let rotary = case.rope.map_or(0, |rope| rope.rotary);
        let positions = case.lengths.iter().max().map_or(0, |&most| most);
        let table = (0..positions * rotary).map(|_| rng.f32() * 2.0 - 1.0).collect();
        Play { case, caps, rng, statics, table, pages, total }
    }

    fn launch(
        &self,
        engine: &mut Engine<'_>,
        op: KvOp,
        work: usize,
        args: Vec<ArgValue>,
    ) -> Result<Vec<Vec<u8>>, String> {
        let schedule = choose(&op, self.caps);
        let args = engine(&op, &schedule, work, args).map_err(|why| format!("{}: {why}", op.name()))?;
        let written = signature(&op).into_iter().zip(args).filter(|(buffer, _)| buffer.access != Access::Read);
        Ok(written.map(|(_, arg)| arg.bytes().to_vec()).collect())
    }

    fn statics_arg(&self, layout: &KvLayout) -> Option<ArgValue> {
        (layout.k.codes.is_static() || layout.v.codes.is_static())
            .then(|| ArgValue::filled(KvStatics::bytes(&self.statics)))
    }

    /// Pages of garbage: what an earlier request left behind, NaN among it.
    fn garbage(&mut self, bytes: usize) -> Vec<u8> {
        if self.rng.bool() { vec![0xff; bytes] } else { (0..bytes).map(|_| self.rng.u8(..)).collect() }
    }

    fn all(&mut self, engine: &mut Engine<'_>) -> Result<f64, String> {
        let case = self.case;
        let layout = case.layout;
        let (dims, heads) = ((layout.k.head_dim, layout.v.head_dim), layout.heads);
        // Everything of all requests, [request][token][head][channel].
        let draw = |rng: &mut fastrand::Rng, dim: usize| -> Vec<Vec<f32>> {
            let spread: Vec<f32> = (0..heads * dim).map(|c| if c % 13 == 5 { 6.0 } else { 1.0 }).collect();
            case.lengths
                .iter()
                .map(|&length| {
                    (0..length * heads * dim)
                        .map(|i| rounded(case.dtype, spread[i % (heads * dim)] * (rng.f32() + rng.f32() - 1.0 + 0.3)))
                        .collect()
                })
                .collect()
        };
        let mut rng = self.rng.clone();
        let (keys, values) = (draw(&mut rng, dims.0), draw(&mut rng, dims.1));
        self.rng = rng;

        // What is stored directly: the format itself, or f16 before its pages are requantized.
        let windowed = layout.format.window > 0;
        let direct = if windowed {
            KvLayout::new(KvFormat::F16, layout.page, heads, dims.0, dims.1).map_err(|e| e.to_string())?
        } else {
            layout
        };
        let pool = self.garbage(self.total * direct.page_bytes());
        let pool = self.append(engine, &direct, pool, (&keys, &values))?;
        let mut worst = self.gather(engine, &direct, &pool)?;
        let (quantized, sealed) = if windowed {
            let old = self.garbage(self.total * layout.page_bytes());
            let (bytes, sealed) = self.requantize(engine, &direct, &pool, old)?;
            (Some(bytes), sealed)
        } else {
            (None, Vec::new())
        };
        worst = worst.max(self.attend(engine, (&direct, &pool), quantized.as_deref(), &sealed)?);
        Ok(worst)
    }

    /// Appends every request in chunks of any size; the bytes are the reference's.
    fn append(
        &mut self,
        engine: &mut Engine<'_>,
        layout: &KvLayout,
        mut pool: Vec<u8>,
        (keys, values): (&[Vec<f32>], &[Vec<f32>]),
    ) -> Result<Vec<u8>, String> {
        let case = self.case;
        let op = KvAppend { layout: *layout, input: case.dtype, rope: case.rope };
        let mut expected = pool.clone();
        let mut done = vec![0; case.lengths.len()];
        let (heads, dims) = (layout.heads, (layout.k.head_dim, layout.v.head_dim));
        while done != case.lengths {
            let (mut k, mut v, mut records, mut row) = (Vec::new(), Vec::new(), Vec::new(), 0);
            for (i, &length) in case.lengths.iter().enumerate() {
                let count = if self.rng.bool() { length - done[i] } else { self.rng.usize(0..=length - done[i]) };
                plan_spans(&self.pages[i], layout.page, row, done[i], count, &mut records)
                    .map_err(|e| e.to_string())?;
                k.extend(&keys[i][done[i] * heads * dims.0..(done[i] + count) * heads * dims.0]);
                v.extend(&values[i][done[i] * heads * dims.1..(done[i] + count) * heads * dims.1]);
                let mut pool = Pool { layout: *layout, statics: &self.statics, bytes: &mut expected };
                for token in done[i]..done[i] + count {
                    let page = self.pages[i][token / layout.page].unwrap_or(0) as usize;
                    for head in 0..heads {
                        let line = |list: &'_ [f32], dim: usize| list[(token * heads + head) * dim..][..dim].to_vec();
                        let (k, v) = (line(&keys[i], dims.0), line(&values[i], dims.1));
                        op.reference(&mut pool, (page, token % layout.page), head, (&k, &v), (&self.table, token));
                    }
                }
                done[i] += count;
                row += count;
            }
            let work = records.len() / SPAN;
            if work == 0 {
                continue;
            }
            let mut args =
                vec![ArgValue::filled(raw(case.dtype, &k)), ArgValue::filled(raw(case.dtype, &v)), ints(&records)];
            args.extend(case.rope.map(|_| floats(&self.table)));
            args.extend(self.statics_arg(layout));
            args.extend([ArgValue::filled(pool), ArgValue::I32(work as i32)]);
            pool = self.launch(engine, KvOp::Append(op), work, args)?.remove(0);
            if let Some(byte) = pool.iter().zip(&expected).position(|(a, b)| a != b) {
                return Err(format!(
                    "append: byte {byte} is {:#x}, not {:#x}; byte {} of its record ({layout:?})",
                    pool[byte],
                    expected[byte],
                    byte % layout.record
                ));
            }
        }
        Ok(pool)
    }

    /// Gathers the first request's tokens and compares.
    fn gather(&mut self, engine: &mut Engine<'_>, layout: &KvLayout, pool: &[u8]) -> Result<f64, String> {
        let case = self.case;
        let Some(i) = case.lengths.iter().position(|&length| length > 0) else { return Ok(0.0) };
        let start = self.rng.usize(..case.lengths[i]);
        let count = case.lengths[i] - start;
        let mut records = Vec::new();
        plan_spans(&self.pages[i], layout.page, 0, start, count, &mut records).map_err(|e| e.to_string())?;
        let size = case.dtype.bits() as usize / 8;
        let work = records.len() / SPAN;
        let mut args = vec![ArgValue::filled(pool.to_vec()), ints(&records)];
        args.extend(self.statics_arg(layout));
        for dim in [layout.k.head_dim, layout.v.head_dim] {
            args.push(ArgValue::unwritten(count * layout.heads * dim * size));
        }
        args.push(ArgValue::I32(work as i32));
        let op = KvOp::Dequant(KvDequant { layout: *layout, out: case.dtype });
        let out = self.launch(engine, op, work, args)?;
        let mut bytes = pool.to_vec();
        let pool = Pool { layout: *layout, statics: &self.statics, bytes: &mut bytes };
        use bitsmith_compiler::format::kv::Side;
        for (side, out) in [Side::K, Side::V].into_iter().zip(&out) {
            let dim = layout.part(side).head_dim;
            for (at, got) in numbers(case.dtype, out).into_iter().enumerate() {
                let (token, head, channel) = (start + at / dim / layout.heads, at / dim % layout.heads, at % dim);
                let page = self.pages[i][token / layout.page].unwrap_or(0) as usize;
                let exact = pool.stored(side, page, head, token % layout.page, channel);
                if got != rounded(case.dtype, exact) as f64 {
                    return Err(format!("dequant: {side:?} of token {token}, channel {channel} is {got}, not {exact}"));
                }
            }
        }
        Ok(0.0)
    }

    /// Quantizes the pages that the window has passed; the bytes are the reference's.
    fn requantize(
        &mut self,
        engine: &mut Engine<'_>,
        from: &KvLayout,
        source: &[u8],
        mut target: Vec<u8>,
    ) -> Result<(Vec<u8>, Vec<usize>), String> {
        let case = self.case;
        let layout = case.layout;
        let op = KvRequantize { from: *from, to: layout };
        let (mut pairs, mut sealed) = (Vec::new(), Vec::new());
        for (i, &length) in case.lengths.iter().enumerate() {
            let count = length.div_ceil(layout.page).saturating_sub(layout.format.window as usize / layout.page);
            sealed.push(count);
            for page in self.pages[i].iter().take(count).flatten() {
                pairs.extend([*page as i32, *page as i32, layout.page as i32, 0]);
            }
        }
        // Two pages that no request has: one of a few tokens.
        let few = self.rng.usize(1..=layout.page);
        let whole = self.pages.iter().flatten().flatten().copied().collect::<Vec<_>>();
        let spare = (0..self.total as u32).find(|page| !whole.contains(page)).unwrap_or(0);
        if let Some(&first) = whole.first() {
            pairs.extend([
                first as i32,
                spare as i32,
                few.min(case.lengths.iter().copied().find(|&l| l > 0).unwrap_or(0)) as i32,
                0,
            ]);
        }
        let mut expected = target.clone();
        let mut bytes = source.to_vec();
        let old = Pool { layout: *from, statics: &self.statics, bytes: &mut bytes };
        let mut new = Pool { layout, statics: &self.statics, bytes: &mut expected };
        for pair in pairs.chunks(PAIR) {
            op.reference(&old, &mut new, pair[0] as usize, pair[1] as usize, pair[2] as usize);
        }
        let work = pairs.len() / PAIR;
        if work > 0 {
            let mut args = vec![ArgValue::filled(source.to_vec()), ints(&pairs)];
            args.extend(self.statics_arg(&layout));
            args.extend([ArgValue::filled(target), ArgValue::I32(work as i32)]);
            target = self.launch(engine, KvOp::Requantize(op), work, args)?.remove(0);
        }
        if let Some(byte) = target.iter().zip(&expected).position(|(a, b)| a != b) {
            return Err(format!(
                "requantize: byte {byte} is {:#x}, not {:#x}; byte {} of its record",
                target[byte],
                expected[byte],
                byte % layout.record
            ));
        }
        Ok((target, sealed))
    }

    /// Attends and merges; every output is within its bound.
    fn attend(
        &mut self,
        engine: &mut Engine<'_>,
        (direct, plain): (&KvLayout, &[u8]),
        quantized: Option<&[u8]>,
        sealed: &[usize],
    ) -> Result<f64, String> {
        let case = self.case;
        let (page, layout) = (case.layout.page, case.layout);
        let rows: usize = case.queries.iter().sum();
        let q: Vec<f32> = (0..rows * case.heads * layout.k.head_dim)
            .map(|_| rounded(case.dtype, 2.0 * self.rng.f32() - 1.0))
            .collect();
        let slopes: Vec<f32> = (0..case.heads).map(|_| self.rng.f32() * 0.2).collect();
        let sinks: Vec<f32> = (0..case.heads).map(|_| self.rng.f32() * 4.0 - 1.0).collect();
        // Pools: the quantized pages, if any, then those stored directly.
        let mut pools = Vec::new();
        pools.extend(quantized.map(|bytes| (layout, bytes)));
        pools.push((*direct, plain));
        let mut segments = Vec::new();
        for (i, &length) in case.lengths.iter().enumerate() {
            let table: &[Option<u32>] = &self.pages[i];
            let middle = sealed.get(i).map_or(0, |&pages| (pages * page).min(length));
            let mut list = Vec::new();
            if quantized.is_some() {
                list.push(Segment { table, first_page: 0, start: 0, end: middle });
            }
            // The window's table starts with its first page.
            let first_page = middle / page;
            list.push(Segment { table: &table[first_page.min(table.len())..], first_page, start: middle, end: length });
            segments.push(list);
        }
        let (mut batch, mut row) = (Vec::new(), 0);
        for (i, &count) in case.queries.iter().enumerate() {
            batch.push(Queries { row, count, position: case.lengths[i] - count, segments: &segments[i] });
            row += count;
        }
        let plan =
            plan_attend(&batch, pools.len(), page, case.tile, case.sight, case.splits).map_err(|e| e.to_string())?;
        let op = Attend {
            layout: *direct,
            heads: case.heads,
            queries: case.tile,
            input: case.dtype,
            scale: 1.0 / (layout.k.head_dim as f32).sqrt(),
            softcap: case.softcap,
            alibi: case.alibi,
            sight: case.sight,
            arithmetic: case.arithmetic,
        };
        let lines = plan.slots * layout.heads * op.rows();
        let mut o = ArgValue::unwritten(lines.max(1) * layout.v.head_dim * 4);
        let mut ml = ArgValue::unwritten(lines.max(1) * 8);
        for (i, (pool_layout, bytes)) in pools.iter().enumerate() {
            let work = plan.items[i].len() / ITEM;
            if work == 0 {
                continue;
            }
            let op = Attend { layout: *pool_layout, ..op };
            // A pool that the instructions do not take, or a device that lacks them.
            let plain = match op.arithmetic {
                Arithmetic::Matrix => !takes_matrix(&op, self.caps),
                Arithmetic::Bf16 => !takes_bf16(&op, self.caps),
                Arithmetic::Float | Arithmetic::Integer => false,
            };
            let op = KvOp::Attend(if plain { Attend { arithmetic: Arithmetic::Float, ..op } } else { op });
            let mut args = vec![ArgValue::filled(raw(case.dtype, &q)), ArgValue::filled(bytes.to_vec())];
            args.extend([ints(&plan.tables[i]), ints(&plan.items[i])]);
            args.extend(self.statics_arg(pool_layout));
            args.extend(case.alibi.then(|| floats(&slopes)));
            args.extend([o, ml]);
            let schedule = choose(&op, self.caps);
            let mut out = engine(&op, &schedule, work, args).map_err(|why| format!("attend: {why}"))?;
            (ml, o) = match (out.pop(), out.pop()) {
                (Some(ml), Some(o)) => (ml, o),
                _ => return Err("attend: no outputs".into()),
            };
        }
        if rows == 0 {
            return Ok(0.0);
        }
        let merge = Merge {
            heads: case.heads,
            kv_heads: layout.heads,
            queries: case.tile,
            dim: layout.v.head_dim,
            out: case.dtype,
            sinks: case.sinks,
        };
        let mut args = vec![o, ml, ints(&plan.rows)];
        args.extend(case.sinks.then(|| floats(&sinks)));
        let size = case.dtype.bits() as usize / 8;
        args.push(ArgValue::unwritten(rows * case.heads * layout.v.head_dim * size));
        let y = self.launch(engine, KvOp::Merge(merge), plan.rows.len() / ROW, args)?.remove(0);
        let y = numbers(case.dtype, &y);
        let mut copies: Vec<Vec<u8>> = pools.iter().map(|pool| pool.1.to_vec()).collect();
        let held: Vec<Pool<'_>> = pools
            .iter()
            .zip(&mut copies)
            .map(|(pool, bytes)| Pool { layout: pool.0, statics: &self.statics, bytes })
            .collect();
        let mut worst: f64 = 0.0;
        for (i, queries) in batch.iter().enumerate() {
            let tables: Vec<Vec<usize>> = segments[i]
                .iter()
                .map(|segment| segment.table[..].iter().flatten().map(|&page| page as usize).collect())
                .collect();
            let list: Vec<_> = segments[i]
                .iter()
                .zip(&tables)
                .zip(&held)
                .map(|((segment, table), pool)| (pool, &table[..], segment.start, segment.end))
                .collect();
            for query in 0..queries.count {
                for head in 0..case.heads {
                    let line = (queries.row + query) * case.heads + head;
                    let inputs = AttendInputs {
                        q: &q[line * layout.k.head_dim..][..layout.k.head_dim],
                        head: head / op.group(),
                        position: queries.position + query,
                        slope: slopes.get(head).copied().filter(|_| case.alibi).unwrap_or(0.0),
                        sink: sinks.get(head).copied().filter(|_| case.sinks),
                    };
                    let reference = op.reference(&inputs, &list);
                    for channel in 0..layout.v.head_dim {
                        let expected = reference.expected(channel, case.dtype);
                        let got = y[line * layout.v.head_dim + channel];
                        if !expected.accepts(got) {
                            return Err(format!(
                                "attend: request {i}, query {query}, head {head}, channel {channel}: {got}, expected {expected:?}"
                            ));
                        }
                        if expected.bound > 0.0 {
                            worst = worst.max((got - expected.value).abs() / expected.bound);
                        }
                    }
                }
            }
        }
        Ok(worst)
    }
}

/// A launch on the interpreter.
pub fn interpret(
    kernel: &Kernel,
    caps: &Caps,
    grid: [u32; 3],
    mut args: Vec<ArgValue>,
) -> Result<Vec<ArgValue>, String> {
    let verified =
        verify(kernel, caps).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    run(&verified, caps.subgroup, Launch { grid, args: &mut args }).map_err(|trap| trap.to_string())?;
    Ok(args)
}

/// The buffers after a device ran an artifact.
pub fn on_device(
    device: &dyn Device,
    program: &runtime::Program,
    grid: [u32; 3],
    args: &[ArgValue],
) -> bitsmith_compiler::Result<Vec<Vec<u8>>> {
    let mut buffers: Vec<Option<Buffer>> = Vec::new();
    for arg in args {
        buffers.push(match arg {
            ArgValue::Buffer(memory) => {
                let buffer = device.allocate(memory.bytes.len())?;
                device.upload(&buffer, 0, &memory.bytes)?;
                Some(buffer)
            }
            ArgValue::I32(_) | ArgValue::I64(_) | ArgValue::F32(_) => None,
        });
    }
    let list = args.iter().zip(&buffers).map(|(arg, buffer)| match (arg, buffer) {
        (_, Some(buffer)) => LaunchArg::Buffer(buffer.view()),
        (ArgValue::I32(x), _) => LaunchArg::I32(*x),
        (ArgValue::I64(x), _) => LaunchArg::I64(*x),
        (ArgValue::F32(x), _) => LaunchArg::F32(*x),
        (ArgValue::Buffer(_), None) => unreachable!("every buffer was uploaded"),
    });
    device.launch(&runtime::Launch { program, grid, args: list.collect() })?;
    let mut outputs = Vec::new();
    for buffer in &buffers {
        let mut bytes = vec![0; buffer.as_ref().map_or(0, Buffer::bytes)];
        if let Some(buffer) = buffer {
            device.download(buffer, 0, &mut bytes)?;
        }
        outputs.push(bytes);
    }
    Ok(outputs)
}
