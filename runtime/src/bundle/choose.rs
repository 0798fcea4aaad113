//! Which target of a bundle serves a device, and which of its kernels serves a request; each with its reason.

use super::manifest::{KernelEntry, Manifest, TargetEntry};
use crate::device::Device;
use bitsmith_compiler::{Error, Result};

/// What an engine asks for. What is `None` does not matter to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Want<'a> {
    /// `matmul`, `dequant` or `quantize`.
    pub op: &'a str,
    /// Name of a layer: `q_proj`.
    pub layer: Option<&'a str>,
    /// Output features.
    pub n: Option<usize>,
    /// Input features.
    pub k: Option<usize>,
    /// Format of the weights.
    pub format: Option<&'a str>,
    /// How activations come.
    pub activation: Option<&'a str>,
}

/// A kernel and why it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index in the target's list of kernels.
    pub index: usize,
    /// A sentence.
    pub reason: String,
}

/// The best target for a device: its index and why. Fails with what the bundle holds and what the device takes.
pub(super) fn target(manifest: &Manifest, device: &dyn Device) -> Result<(usize, String)> {
    let info = device.info();
    let best = (manifest.targets.iter().enumerate())
        .filter_map(|(index, entry)| Some((device.accepts(&entry.made_for)?, index)))
        // The first of equals.
        .max_by_key(|&(rank, index)| (rank, std::cmp::Reverse(index)));
    let names = manifest.targets.iter().map(|entry| entry.target.as_str()).collect::<Vec<_>>().join(", ");
    match best {
        Some((_, index)) => {
            let entry = &manifest.targets[index];
            Ok((
                index,
                format!("target {} of {names}: the best that {} ({}) runs", entry.target, info.name, info.target),
            ))
        }
        None => Err(Error::Unsupported(format!(
            "a bundle for {names} on {}, which is {}; generate for that device too",
            info.name, info.target
        ))),
    }
}

impl Want<'_> {
    fn fits(&self, kernel: &KernelEntry) -> bool {
        let same = |want: Option<&str>, has: &Option<String>| want.is_none_or(|want| has.as_deref() == Some(want));
        kernel.op == self.op
            && self.layer.is_none_or(|want| kernel.layers.split('+').any(|layer| layer.trim() == want))
            && self.n.is_none_or(|want| kernel.n == Some(want))
            && self.k.is_none_or(|want| kernel.k == want)
            && same(self.format, &kernel.format)
            && same(self.activation, &kernel.activation)
    }
}

impl std::fmt::Display for Want<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.op)?;
        if let Some(layer) = self.layer {
            write!(f, " of layer {layer}")?;
        }
        if let Some(n) = self.n {
            write!(f, " n={n}")?;
        }
        if let Some(k) = self.k {
            write!(f, " k={k}")?;
        }
        for (what, value) in [("weights", self.format), ("activations", self.activation)] {
            if let Some(value) = value {
                write!(f, " {what}={value}")?;
            }
        }
        Ok(())
    }
}

/// The kernel for `m` rows: of those that fit, the one that was chosen for the nearest number of rows, by ratio. Fails where
/// none fits, or where those that fit compute different things.
pub(super) fn kernel(target: &TargetEntry, want: &Want<'_>, m: usize) -> Result<Choice> {
    if m == 0 {
        return Err(Error::invalid("m is 0; accepted: at least 1"));
    }
    let fitting: Vec<(usize, &KernelEntry)> =
        target.kernels.iter().enumerate().filter(|(_, kernel)| want.fits(kernel)).collect();
    let Some((_, first)) = fitting.first() else {
        let ops: Vec<String> = (target.kernels.iter())
            .map(|kernel| {
                let sizes = kernel.n.map_or(format!("k={}", kernel.k), |n| format!("{n}x{}", kernel.k));
                format!("{} {sizes} ({})", kernel.op, kernel.layers)
            })
            .collect();
        return Err(Error::Unsupported(format!("{want}: the bundle has {}", ops.join("; "))));
    };
    let what = |kernel: &KernelEntry| kernel.operation();
    let op = what(first)?;
    if let Some((_, other)) = fitting.iter().find(|(_, kernel)| what(kernel).ok() != Some(op)) {
        return Err(Error::invalid(format!(
            "{want} is said of {} and of {}, which differ; say more (layer, n, k, format, activation)",
            first.entry, other.entry
        )));
    }
    // Distance by ratio, in sixteenths of a factor of two; a larger bucket wins a tie.
    let distance = |rows: usize| (((rows as f64).log2() - (m as f64).log2()).abs() * 16.0).round() as u64;
    let (index, rows, _) = (fitting.iter())
        .flat_map(|(index, kernel)| {
            let rows = if kernel.chosen_for_rows.is_empty() { &[1][..] } else { &kernel.chosen_for_rows };
            rows.iter().map(|&rows| (*index, rows, distance(rows.max(1))))
        })
        .min_by_key(|&(_, rows, distance)| (distance, std::cmp::Reverse(rows)))
        .ok_or_else(|| Error::invalid(format!("{want}: no kernel")))?;
    let mut buckets: Vec<usize> = fitting.iter().flat_map(|(_, kernel)| kernel.chosen_for_rows.clone()).collect();
    buckets.sort_unstable();
    buckets.dedup();
    let entry = &target.kernels[index].entry;
    let buckets = buckets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let reason = if buckets.is_empty() {
        format!("{entry}: the one kernel for {want}")
    } else {
        format!("{entry}: made for {rows} rows, nearest to m = {m} of {buckets}")
    };
    Ok(Choice { index, reason })
}
