//! A report as Markdown.

use super::Report;

/// The whole report.
pub fn markdown(r: &Report) -> String {
    let c = &r.comparison;
    let mut out = format!(
        "# {}\n\n**{}**\n\nQuantized as {}; compared with {} on {} ({} windows of {} tokens, {} in all); matrices multiplied by {}, keys and values in {}.\n\n",
        r.model,
        r.verdict,
        r.scheme,
        r.reference,
        r.text,
        c.model.windows,
        c.model.window,
        c.model.tokens,
        r.path,
        r.kv
    );
    out += "| | reference | model |\n|---|---|---|\n";
    out += &format!(
        "| perplexity | {:.4} | {:.4} ({:+.3} ± {:.3} %) |\n| bytes of matrices and embedding | {} | {} ({:.2} x smaller) |\n",
        c.reference.perplexity,
        c.model.perplexity,
        100.0 * c.increase,
        100.0 * c.increase_error,
        r.bytes_before,
        r.bytes_after,
        r.bytes_before as f64 / r.bytes_after.max(1) as f64
    );
    out += &format!(
        "\nMean divergence {:.3e} nats, 99.9 % of tokens below {:.3e}; same most likely token {:.2} %; largest difference of a \
         logit {:.3e}.\n",
        c.mean_divergence,
        c.divergence_999,
        100.0 * c.top_1,
        c.max_logit_error
    );
    if !r.probes.is_empty() {
        out += "\n## Tasks\n\n| task | pairs | reference | model | 95 % interval | lost, won | p |\n|---|---|---|---|---|---|---|\n";
        for p in &r.probes {
            out += &format!(
                "| {} | {} | {:.3} | {:.3} | {:.3} to {:.3} | {}, {} | {:.2} |\n",
                p.model.name,
                p.model.pairs,
                p.reference.accuracy,
                p.model.accuracy,
                p.model.low,
                p.model.high,
                p.lost_and_won.0,
                p.lost_and_won.1,
                p.p_value
            );
        }
    }
    out += "\n## Speed\n\nTokens per second on this machine; the reference runs in `f32`.\n\n| phase | tokens at once | reference | model |\n|---|---|---|---|\n";
    for s in &r.performance {
        out += &format!("| {} | {} | {:.1} | {:.1} |\n", s.phase, s.tokens, s.reference, s.model);
    }
    out += "\n## Layers\n\n";
    if !r.worst.is_empty() {
        out += &format!("Most noise: {}.\n\n", r.worst.join(", "));
    }
    out += "| layer | format | activations | weights dB | outputs dB | saturated | bytes |\n|---|---|---|---|---|---|---|\n";
    let decibels = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.1}"));
    for l in &r.layers {
        out += &format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            l.name,
            l.format,
            l.activation.as_deref().unwrap_or("–"),
            decibels(l.weight_sqnr),
            decibels(l.output_sqnr),
            l.saturation.map_or("–".into(), |s| format!("{:.2} %", 100.0 * s)),
            l.bytes
        );
    }
    out
}
