//! Compares what a kernel wrote with the reference.

use super::Problem;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Quantized;
use bitsmith_compiler::lower::{Role, loss};
use bitsmith_compiler::op::{Dequant, Expected, Matmul, MatmulInputs, Op, Quantize, QuantizeInputs};
use bitsmith_compiler::schedule::Family;
use serde::Serialize;

/// How much of an output is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// All of it.
    Everything,
    /// About this many rows and columns, spread evenly, the first and the last among them.
    Lines(usize),
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Numbers compared.
    pub compared: usize,
    /// Numbers out of bounds.
    pub wrong: usize,
    /// Largest absolute error among numbers whose bound is finite.
    pub max_error: f64,
    /// The bound at the largest ratio of error to bound.
    pub bound: f64,
    /// Largest ratio of error to bound; at most 1 where nothing is wrong.
    pub worst_ratio: f64,
    /// The first number that was wrong, in words.
    pub first_wrong: Option<String>,
}

impl Report {
    /// Whether every number that was compared is within its bound.
    pub fn passed(&self) -> bool {
        self.wrong == 0 && self.compared > 0
    }

    fn number(&mut self, got: f64, value: f64, bound: f64, place: impl FnOnce() -> String) {
        self.compared += 1;
        if bound.is_infinite() {
            return;
        }
        let error = (got - value).abs();
        let ratio = if error == 0.0 { 0.0 } else { error / bound };
        if ratio.is_nan() || ratio > 1.0 {
            self.wrong += 1;
            if self.first_wrong.is_none() {
                self.first_wrong = Some(format!("{}: got {got}, expected {value} ± {bound:.3e}", place()));
            }
        }
        self.max_error = self.max_error.max(error);
        if ratio > self.worst_ratio {
            self.worst_ratio = ratio;
            self.bound = bound;
        }
    }
}

impl Sample {
    fn of(self, count: usize) -> Vec<usize> {
        match self {
            Sample::Lines(lines) if count > lines && lines > 1 => {
                let mut list: Vec<usize> = (0..lines).map(|i| i * (count - 1) / (lines - 1)).collect();
                list.dedup();
                list
            }
            _ => (0..count).collect(),
        }
    }
}

impl Problem {
    /// Compares outputs (in the order of [`Problem::outputs`]) that a family's kernel made with the reference.
    pub fn check(&self, family: Family, outputs: &[&[u8]], sample: Sample) -> Report {
        let mut report = Report::default();
        for (buffer, got) in self.outputs().zip(outputs) {
            if got.len() != buffer.bytes.len() {
                report.wrong += 1;
                report.first_wrong.get_or_insert(format!("{}: {} bytes", buffer.signature.name, got.len()));
                return report;
            }
        }
        match &self.op {
            Op::Matmul(op) => self.check_matmul(op, family, outputs[0], sample, &mut report),
            Op::Dequant(op) => self.check_dequant(op, outputs[0], sample, &mut report),
            Op::Quantize(op) => self.check_quantize(op, outputs, sample, &mut report),
        }
        report
    }

    /// What the first output of a family's kernel should hold, for those who compare elsewhere: some of its numbers, each by its
    /// place.
    pub fn expected(&self, family: Family, sample: Sample) -> Vec<(usize, Expected)> {
        match (&self.op, &self.weights) {
            (Op::Matmul(op), Some(weights)) => {
                let (rows, columns) = (sample.of(self.m), sample.of(op.n));
                let places = rows.iter().flat_map(|m| columns.iter().map(move |n| m * op.n + n));
                places.zip(op.reference(&self.matmul_inputs(weights, family), &rows, &columns)).collect()
            }
            (Op::Dequant(op), Some(weights)) => {
                let (rows, columns) = (sample.of(op.n), sample.of(op.k));
                let places = rows.iter().flat_map(|&n| columns.iter().map(move |&k| (n, k)));
                places.map(|(n, k)| (n * op.k + k, op.reference(weights, n, k))).collect()
            }
            (Op::Quantize(op), _) => {
                let x = self.quantize_input();
                let inputs = self.quantize_inputs(&x);
                let rows = sample.of(self.m);
                let codes = rows.into_iter().flat_map(|m| {
                    let codes = op.reference(&inputs, m).codes;
                    sample.of(op.k).into_iter().map(move |k| (m * op.k + k, codes[k]))
                });
                codes.map(|(place, code)| (place, code_bound(op, op.code.decode(code as u32)))).collect()
            }
            (Op::Matmul(_) | Op::Dequant(_), None) => Vec::new(),
        }
    }

    fn quantize_input(&self) -> Vec<f32> {
        self.x.iter().map(|&x| x as f32).collect()
    }

    fn quantize_inputs<'a>(&'a self, x: &'a [f32]) -> QuantizeInputs<'a> {
        let scale = self.scales.first().copied().unwrap_or(1.0);
        QuantizeInputs { x, gain: &self.gain, smooth: &self.smooth, scale }
    }

    fn matmul_inputs<'a>(&'a self, weights: &'a Quantized, family: Family) -> MatmulInputs<'a> {
        MatmulInputs {
            m: self.m,
            x: &self.x,
            scales: &self.scales,
            weights,
            bias: &self.bias,
            mul: &self.mul,
            residual: &self.residual,
            loss: loss(&self.op, family),
        }
    }

    fn check_matmul(&self, op: &Matmul, family: Family, got: &[u8], sample: Sample, report: &mut Report) {
        let Some(weights) = &self.weights else { return };
        let inputs = self.matmul_inputs(weights, family);
        let (rows, columns) = (sample.of(self.m), sample.of(op.n));
        let expected = op.reference(&inputs, &rows, &columns);
        for (i, expected) in expected.iter().enumerate() {
            let (m, n) = (rows[i / columns.len()], columns[i % columns.len()]);
            let value = element(got, op.out, m * op.n + n);
            report.number(value, expected.value, expected.bound, || format!("y[{m}, {n}]"));
        }
    }

    fn check_dequant(&self, op: &Dequant, got: &[u8], sample: Sample, report: &mut Report) {
        let Some(weights) = &self.weights else { return };
        for &n in &sample.of(op.n) {
            for k in 0..op.k {
                let expected = op.reference(weights, n, k);
                let value = element(got, op.out, n * op.k + k);
                report.number(value, expected.value, expected.bound, || format!("w[{n}, {k}]"));
            }
        }
    }

    /// Without a norm codes, scales and sums are the same bit for bit. With one, the largest number of a group may be off
    /// by a relative `norm_error`, its quotient by two roundings more, and a code by what that moves it: less than one.
    fn check_quantize(&self, op: &Quantize, outputs: &[&[u8]], sample: Sample, report: &mut Report) {
        let x = self.quantize_input();
        let inputs = self.quantize_inputs(&x);
        let relative = if op.norm.is_some() { 2.0 * op.norm_error() } else { 0.0 };
        let of = |role: Role| self.outputs().position(|b| b.signature.role == role).map(|i| outputs[i]);
        for &m in &sample.of(self.m) {
            let expected = op.reference(&inputs, m);
            let codes = of(Role::Output).unwrap_or(&[]);
            for (k, &code) in expected.codes.iter().enumerate() {
                let got = op.code.decode(codes[m * op.k + k] as u32);
                let Expected { value, bound } = code_bound(op, op.code.decode(code as u32));
                report.number(got, value, bound, || format!("codes[{m}, {k}]"));
            }
            if let Some(got) = of(Role::ActivationScales) {
                for (i, &value) in expected.scales.iter().enumerate() {
                    let got = element(got, DType::F32, m * expected.scales.len() + i);
                    report.number(got, value as f64, relative * value as f64, || format!("scale[{m}, {i}]"));
                }
            }
            if let Some(got) = of(Role::ActivationSums) {
                let per_row = expected.sums.len();
                for i in 0..per_row {
                    // The sum of the codes that were really written, exactly.
                    let start = m * op.k + i * op.sum_group;
                    let end = (m * op.k + (i + 1) * op.sum_group).min((m + 1) * op.k);
                    let value: i32 = codes[start..end].iter().map(|&c| c as i8 as i32).sum();
                    let got = element(got, DType::I32, m * per_row + i);
                    report.number(got, value as f64, 0.0, || format!("sum[{m}, {i}]"));
                }
            }
        }
    }
}

/// A code as a number, and how far off it may be.
fn code_bound(op: &Quantize, value: f64) -> Expected {
    let bound = match (op.norm, op.code) {
        (None, _) => 0.0,
        (Some(_), DType::I8) => 1.0,
        // One step of the code: at most an eighth (e4m3) or a quarter (e5m2) of it, or a subnormal.
        (Some(_), _) => value.abs() / 4.0 + 2f64.powi(-9),
    };
    Expected { value, bound }
}

fn element(bytes: &[u8], dtype: DType, index: usize) -> f64 {
    let size = dtype.bits() as usize / 8;
    let mut word = [0; 4];
    word[..size].copy_from_slice(&bytes[index * size..][..size]);
    dtype.decode(u32::from_le_bytes(word))
}
