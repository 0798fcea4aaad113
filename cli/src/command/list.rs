//! `list`: what other commands accept, from the tables that they use themselves.

use crate::table::Table;
use crate::{Io, Outcome};
use bitsmith_calibrate::recipe::{RECIPES, Recipe};
use bitsmith_calibrate::shapes::MODELS;
use bitsmith_compiler::caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower::{FAMILIES, MATRIX_FAMILIES};
use bitsmith_compiler::op::Activation;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// What to list
    what: What,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// Weight formats
    Formats,
    /// Recipes
    Recipes,
    /// Models whose linear layers are known
    Shapes,
    /// Devices of this machine
    Devices,
    /// Targets that code can be made for
    Targets,
    /// GPUs whose limits and peaks are known
    Gpus,
    /// Kernel families
    Families,
    /// How activations may come
    Activations,
}

const ACTIVATIONS: [(&str, &str); 8] = [
    ("f32, f16, bf16", "as they are"),
    ("int8-token", "signed bytes, one f32 scale per row"),
    ("int8-g<N>", "signed bytes, one f32 scale per N columns of a row, N at least 16"),
    ("fp8-token", "FP8 E4M3 (OCP), one f32 scale per row"),
    ("fp8-tensor", "FP8 E4M3 (OCP), one f32 scale for all rows"),
    ("fp8e4m3fnuz-token, -tensor", "FP8 E4M3 with bias 8 and no negative zero"),
    ("fp8e5m2-token, -tensor", "FP8 E5M2 (OCP)"),
    ("fp8e5m2fnuz-token, -tensor", "FP8 E5M2 with bias 16 and no negative zero"),
];

/// Names with parameters, beside the named formats.
const GRAMMAR: [(&str, &str); 4] = [
    ("<code>-<per>[-<modifier>...]", "any other format, such as int4-g64-asym"),
    (
        "<code>",
        "int2 to int8, uint1 to uint8, ternary, binary, log2 to log4, nf4, iq4nl, fp4, fp8e4m3, fp8e5m2, fp8e4m3fnuz, \
         fp8e5m2fnuz",
    ),
    ("<per>", "what shares a scale: tensor, channel, g<N>, block<N>, block<N>x<K>"),
    ("<modifier>", "asym, fzero, bias, offset; scales as f32, f16, bf16, fp8, e8m0; dq"),
];

/// What keeps a recipe from being served; `yes` where nothing does.
fn served(recipe: &Recipe) -> String {
    let weight = recipe.weight.parse::<Format>().map(|_| ());
    match weight.and(recipe.activation.parse::<Activation>().map(|_| ())) {
        Ok(()) => "yes".into(),
        Err(_) if recipe.weight.parse::<Format>().is_err() => "not yet: weights".into(),
        Err(_) => "not yet: activations".into(),
    }
}

impl List {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let (head, rows) = self.rows()?;
        if self.json {
            let list: Vec<serde_json::Map<String, serde_json::Value>> = rows
                .into_iter()
                .map(|row| head.iter().map(|h| h.replace(' ', "_")).zip(row.into_iter().map(Into::into)).collect())
                .collect();
            return io.json(&list);
        }
        let mut table = Table::new(&head);
        rows.into_iter().for_each(|row| table.row(row));
        write!(io.out, "{table}")?;
        Ok(())
    }

    fn rows(&self) -> Result<(Vec<&'static str>, Vec<Vec<String>>), crate::Failure> {
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| vec![a.to_string(), b.to_string()]).collect();
        Ok(match self.what {
            What::Formats => {
                let mut rows: Vec<Vec<String>> =
                    Format::ALL.iter().map(|named| vec![named.name.to_string(), named.summary.to_string()]).collect();
                rows.extend::<Vec<Vec<String>>>(pairs(&GRAMMAR));
                (vec!["format", "what it is"], rows)
            }
            What::Recipes => {
                let rows = RECIPES.iter().map(|r| vec![r.name.into(), r.weight.into(), r.activation.into(), served(r)]);
                (vec!["recipe", "weights", "activations", "served"], rows.collect())
            }
            What::Shapes => {
                let row = |m: &bitsmith_calibrate::shapes::ModelShape| {
                    let sizes = [m.hidden, m.layers, m.heads, m.kv_heads, m.ffn, m.vocab, m.experts];
                    std::iter::once(m.name.to_string())
                        .chain(sizes.map(|size| size.to_string()))
                        .chain([format!("{:.2}", m.parameters() as f64 / 1e9)])
                        .collect()
                };
                let head =
                    vec!["model", "hidden", "layers", "heads", "kv heads", "ffn", "vocab", "experts", "billions"];
                (head, MODELS.iter().map(row).collect())
            }
            What::Devices => {
                let row = |info: bitsmith_runtime::DeviceInfo| {
                    vec![info.name, info.model, info.target, info.threads.to_string(), info.features.join(" ")]
                };
                let rows = bitsmith_runtime::found().0.into_iter().map(row).collect();
                (vec!["device", "model", "target", "threads", "features"], rows)
            }
            What::Targets => {
                let row = |name: &'static str| -> Result<Vec<String>, crate::Failure> {
                    let target = CpuTarget::named(name)?;
                    let features: Vec<&str> = target.caps().features.iter().map(|f| f.name()).collect();
                    let here = if target.runs_here() { "yes" } else { "no" };
                    Ok(vec![name.into(), target.triple().to_string(), here.into(), features.join(" ")])
                };
                let rows = CpuTarget::names().map(row).collect::<Result<_, _>>()?;
                (vec!["target", "platform", "runs here", "features"], rows)
            }
            What::Gpus => {
                let head = vec![
                    "gpu",
                    "model",
                    "instruction set",
                    "units",
                    "shared KiB",
                    "memory GB/s",
                    "f16 matrix TFLOP/s",
                    "features",
                ];
                let rows = caps::GPUS.iter().flat_map(|list| list.iter()).filter_map(|caps| {
                    let gpu = caps.gpu?;
                    let features: Vec<&str> = caps.features.iter().map(|f| f.name()).collect();
                    Some(vec![
                        caps.name.to_string(),
                        gpu.model.to_string(),
                        gpu.arch.to_string(),
                        gpu.units.to_string(),
                        (caps.max_shared_bytes / 1024).to_string(),
                        gpu.peaks.memory_gb.to_string(),
                        gpu.peaks.matrix(DType::F16).map_or(String::new(), |tera| tera.to_string()),
                        features.join(" "),
                    ])
                });
                (head, rows.collect())
            }
            What::Families => {
                let rows = FAMILIES
                    .iter()
                    .chain(MATRIX_FAMILIES)
                    .map(|f| vec![f.family.name().to_string(), f.summary.to_string()]);
                (vec!["family", "what it is good for"], rows.collect())
            }
            What::Activations => (vec!["activation", "what it is"], pairs(&ACTIVATIONS)),
        })
    }
}
