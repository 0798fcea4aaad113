//! A report as one HTML page without outside files: the frame is `templates/report.html`, plots are inline SVG.

use super::Report;
use super::plot::{bars, decades, escape, intervals};
use crate::evaluate::DIVERGENCE_SHARES;
use bitsmith_compiler::{Error, Result};

const FRAME: &str = include_str!("../../templates/report.html");
/// Shared with the page of a tuning run.
const STYLE: &str = include_str!("../../templates/page.css");

/// The whole page.
pub fn html(r: &Report) -> Result<String> {
    let c = &r.comparison;
    let fact = |name: &str, value: String, note: String| {
        format!(
            "<div class=\"fact\"><b>{}</b><span>{}</span><small>{}</small></div>",
            escape(&value),
            escape(name),
            escape(&note)
        )
    };
    let facts = [
        fact(
            "perplexity",
            format!("{:.3}", c.model.perplexity),
            format!(
                "{:.3} before, {:+.2} ± {:.2} %",
                c.reference.perplexity,
                100.0 * c.increase,
                100.0 * c.increase_error
            ),
        ),
        fact(
            "mean divergence, nats",
            format!("{:.2e}", c.mean_divergence),
            format!("99.9 % of tokens below {:.2e}", c.divergence_999),
        ),
        fact("same most likely token", format!("{:.1} %", 100.0 * c.top_1), format!("of {} tokens", c.model.tokens)),
        fact(
            "bytes",
            format!("{:.2} x smaller", r.bytes_before as f64 / r.bytes_after.max(1) as f64),
            format!("{} before, {} now", size(r.bytes_before), size(r.bytes_after)),
        ),
    ];
    let noise: Vec<(String, f64, String)> = r
        .layers
        .iter()
        .filter_map(|l| {
            let x = l.output_sqnr.or(l.weight_sqnr)?;
            Some((short(&l.name), x.max(0.0), format!("{x:.1} dB")))
        })
        .collect();
    let saturation: Vec<(String, f64, String)> = r
        .layers
        .iter()
        .filter_map(|l| l.saturation.map(|s| (short(&l.name), s, format!("{:.2} %", 100.0 * s))))
        .collect();
    let tasks: Vec<_> = r
        .probes
        .iter()
        .map(|p| (p.model.name.clone(), p.reference.accuracy, p.model.accuracy, p.model.low, p.model.high))
        .collect();
    let speed: Vec<(String, f64, String)> = r
        .performance
        .iter()
        .flat_map(|s| {
            [
                ("reference (f32)".to_owned(), s.reference, format!("{:.0}", s.reference)),
                ("quantized".to_owned(), s.model, format!("{:.0}", s.model)),
            ]
        })
        .collect();
    let mut plots = String::new();
    if !noise.is_empty() {
        let worst: Vec<String> = r.worst.iter().map(|name| short(name)).collect();
        plots +=
            &bars("Signal to quantization noise in decibels (longer is better; the worst stand out)", &noise, &worst);
    }
    let tokens: Vec<_> = DIVERGENCE_SHARES
        .iter()
        .zip(c.divergences)
        .map(|(share, x)| (format!("{} % of tokens below", 100.0 * share), x, format!("{x:.2e} nats")))
        .collect();
    plots += &decades("Divergence of the next token's distribution from the reference's (logarithmic)", &tokens);
    if !saturation.is_empty() {
        plots +=
            &bars("Share of codes at either end of their range (where many are, ranges are cut)", &saturation, &[]);
    }
    if !tasks.is_empty() {
        plots += &intervals(
            "Share of task pairs that are right: quantized (dot, with 95 % interval), reference (ring)",
            &tasks,
        );
    }
    // Prefill and decode differ by orders of magnitude, so each has its own scale.
    for (pair, phase) in speed.chunks(2).zip(&r.performance) {
        let at_once =
            if phase.tokens == 1 { "one token at a time".into() } else { format!("{} tokens at once", phase.tokens) };
        let title = format!("{}, {at_once}: tokens per second on this machine", capital(phase.phase));
        plots += &bars(&title, pair, &[]);
    }
    let decibels = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.1}"));
    let rows: String = r
        .layers
        .iter()
        .map(|l| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
                escape(&l.name),
                escape(&l.format),
                escape(l.activation.as_deref().unwrap_or("–")),
                decibels(l.weight_sqnr),
                decibels(l.output_sqnr),
                size(l.bytes)
            )
        })
        .collect();
    let mut context = tera::Context::new();
    context.insert("style", STYLE);
    context.insert("title", &r.model);
    context.insert("verdict", &r.verdict);
    context.insert(
        "about",
        &format!(
            "Quantized as {}; compared with {} on {}: {} windows of {} tokens. Matrices multiplied by {}; keys and values in {}.",
            r.scheme, r.reference, r.text, c.model.windows, c.model.window, r.path, r.kv
        ),
    );
    context.insert("facts", &facts.concat());
    context.insert("plots", &plots);
    context.insert("rows", &rows);
    context.insert("worst", &r.worst.join(", "));
    tera::Tera::one_off(FRAME, &context, true)
        .map_err(|error| Error::Bug { message: format!("report template: {error:?}"), text: FRAME.to_string() })
}

/// With a capital, as a title begins.
fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Bytes as people read them.
fn size(bytes: usize) -> String {
    let (mut x, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        if x < 1000.0 {
            break;
        }
        (x, unit) = (x / 1000.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{x:.1} {unit}") }
}

/// The name without what all layers share.
fn short(name: &str) -> String {
    name.strip_prefix("model.layers.").unwrap_or(name).to_owned()
}
