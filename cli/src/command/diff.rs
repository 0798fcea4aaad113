//! `diff`: in what two bundles differ; exit code 1 where they do.

use crate::failure::Failure;
use crate::{Io, Outcome};
use bitsmith_runtime::bundle::{Bundle, KernelEntry, KvEntry, TargetEntry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// A bundle
    first: PathBuf,
    /// Another
    second: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What differs.
#[derive(Debug, Default, Serialize)]
struct Differences {
    /// Whether every file is the same, byte for byte.
    identical: bool,
    /// Fields of the manifest beside the kernels.
    fields: Vec<String>,
    /// Kernels, as `target/entry`.
    only_in_first: Vec<String>,
    only_in_second: Vec<String>,
    /// Kernels that both have, with what changed.
    changed: Vec<String>,
}

impl Diff {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let (first, second) = (Bundle::open(&self.first)?, Bundle::open(&self.second)?);
        // A difference in files that nobody wrote into the manifest is a fault of the bundle, not a difference.
        let faults: Vec<String> = first.faults().into_iter().chain(second.faults()).collect();
        if !faults.is_empty() {
            return Err(Failure::Found(faults.join("\nerror: ")));
        }
        let found = compare(&first, &second);
        if self.json {
            io.json(&found)?;
        } else if found.identical {
            let files = first.manifest().files().count() + 1;
            writeln!(io.out, "identical: {files} files, digest {}", first.manifest().digest)?;
        } else {
            for line in &found.fields {
                writeln!(io.out, "{line}")?;
            }
            for (mark, list) in [("-", &found.only_in_first), ("+", &found.only_in_second), ("~", &found.changed)] {
                for line in list {
                    writeln!(io.out, "{mark} {line}")?;
                }
            }
        }
        if found.identical { Ok(()) } else { Err(Failure::Found("the bundles differ".into())) }
    }
}

fn compare(first: &Bundle, second: &Bundle) -> Differences {
    let (a, b) = (first.manifest(), second.manifest());
    let mut found = Differences { identical: a == b, ..Differences::default() };
    let pairs = [
        ("bitsmith", &a.tool.bitsmith, &b.tool.bitsmith),
        ("cranelift", &a.tool.cranelift, &b.tool.cranelift),
        ("licence", &a.licence, &b.licence),
        ("recipe", &a.recipe, &b.recipe),
        ("model", &a.model, &b.model),
    ];
    found.fields = pairs.iter().filter(|(_, a, b)| a != b).map(|(name, a, b)| format!("{name}: {a} -> {b}")).collect();
    let (ours, theirs) = (kernels(first), kernels(second));
    for (name, (target, kernel)) in &ours {
        match theirs.get(name) {
            None => found.only_in_first.push(name.clone()),
            Some((other_target, other)) => {
                let mut parts = changes(kernel, other);
                if target.needs != other_target.needs {
                    parts.push("needs".into());
                }
                if !parts.is_empty() {
                    found.changed.push(format!("{name}: {}", parts.join(", ")));
                }
            }
        }
    }
    let (our_kv, their_kv) = (kv(first), kv(second));
    for (name, kernel) in &our_kv {
        match their_kv.get(name) {
            None => found.only_in_first.push(name.clone()),
            Some(other) if other.object.sha256 != kernel.object.sha256 => found.changed.push(format!("{name}: code")),
            Some(other) if other != kernel => found.changed.push(format!("{name}: description")),
            Some(_) => {}
        }
    }
    found.only_in_second = theirs.keys().filter(|name| !ours.contains_key(*name)).cloned().collect();
    found.only_in_second.extend(their_kv.keys().filter(|name| !our_kv.contains_key(*name)).cloned());
    found
}

/// Kernels of KV caches.
fn kv(bundle: &Bundle) -> BTreeMap<String, &KvEntry> {
    let targets = bundle.manifest().targets.iter();
    targets
        .flat_map(|target| target.kv.iter().map(move |entry| (format!("{}/{}", target.target, entry.entry), entry)))
        .collect()
}

fn kernels(bundle: &Bundle) -> BTreeMap<String, (&TargetEntry, &KernelEntry)> {
    bundle
        .manifest()
        .kernels()
        .map(|(target, kernel)| (format!("{}/{}", target.target, kernel.entry), (target, kernel)))
        .collect()
}

/// The fields of a kernel that differ.
fn changes(a: &KernelEntry, b: &KernelEntry) -> Vec<String> {
    let mut parts = Vec::new();
    let mut note = |differs: bool, what: String| {
        if differs {
            parts.push(what);
        }
    };
    note(a.object.sha256 != b.object.sha256, "code".into());
    note(a.schedule != b.schedule, "schedule".into());
    note(a.packing != b.packing, format!("packing {:?} -> {:?}", a.packing, b.packing));
    note(a.chosen_for_rows != b.chosen_for_rows, format!("rows {:?} -> {:?}", a.chosen_for_rows, b.chosen_for_rows));
    note(a.args != b.args, "arguments".into());
    note(a.layers != b.layers, format!("layers {} -> {}", a.layers, b.layers));
    note(
        (a.grid.clone(), a.workgroup, a.scratch_bytes) != (b.grid.clone(), b.workgroup, b.scratch_bytes),
        "launch".into(),
    );
    parts
}
