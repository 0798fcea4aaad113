//! Plots as inline SVG: horizontal bars, and intervals with two points.

/// Escapes text for SVG and HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Room for names, at the left.
const LABEL: f64 = 260.0;
/// Room for bars.
const WIDTH: f64 = 410.0;
/// Room for what stands behind a bar.
const VALUE: f64 = 100.0;
/// Letters of a name that fit the room for it.
const LETTERS: usize = 40;
const ROW: f64 = 20.0;

fn frame(rows: usize, title: &str, body: &str) -> String {
    let height = ROW * rows as f64 + 34.0;
    format!(
        "<svg class=\"plot\" viewBox=\"0 0 {:.0} {height:.0}\" role=\"img\" aria-label=\"{}\"><text x=\"0\" y=\"14\" class=\"title\">{}</text>{body}</svg>",
        LABEL + WIDTH + VALUE,
        escape(title),
        escape(title)
    )
}

/// A name that fits its room, at the right end of it; the whole of it shows where a pointer rests.
fn label(name: &str, y: f64) -> String {
    let short: String = match name.char_indices().nth(LETTERS) {
        Some(_) => name.chars().take(LETTERS - 1).chain(['…']).collect(),
        None => name.to_owned(),
    };
    format!(
        "<text x=\"{:.0}\" y=\"{y:.1}\" class=\"label\"><title>{}</title>{}</text>",
        LABEL - 8.0,
        escape(name),
        escape(&short)
    )
}

/// One bar per row, from 0 to its value; those that `marked` names stand out.
pub(super) fn bars(title: &str, rows: &[(String, f64, String)], marked: &[String]) -> String {
    let most = rows.iter().map(|(_, x, _)| *x).fold(1e-12, f64::max);
    let mut body = String::new();
    for (i, (name, x, text)) in rows.iter().enumerate() {
        let (y, width) = (ROW * i as f64 + 26.0, (x / most * WIDTH).max(1.0));
        body += &format!(
            "{}<rect x=\"{LABEL}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"14\" rx=\"2\" class=\"bar{}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"value\">{}</text>",
            label(name, y + 11.0),
            if marked.contains(name) { " marked" } else { "" },
            LABEL + width + 5.0,
            y + 11.0,
            escape(text)
        );
    }
    frame(rows.len(), title, &body)
}

/// One bar per row on a logarithmic scale, from a thousandth of the largest value.
pub(super) fn decades(title: &str, rows: &[(String, f64, String)]) -> String {
    let most = rows.iter().map(|(_, x, _)| *x).fold(1e-12, f64::max);
    let scaled: Vec<_> = rows
        .iter()
        .map(|(name, x, text)| (name.clone(), ((x / most).max(1e-9).log10() / 3.0 + 1.0).max(0.0), text.clone()))
        .collect();
    bars(title, &scaled, &[])
}

/// Per row a reference, a value and its interval, all shares of 1.
pub(super) fn intervals(title: &str, rows: &[(String, f64, f64, f64, f64)]) -> String {
    let at = |x: f64| LABEL + x * WIDTH;
    let mut body = String::new();
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        body += &format!(
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"22\" y2=\"{1:.1}\" class=\"grid\"/><text x=\"{0:.1}\" y=\"{2:.1}\" class=\"tick\">{tick}</text>",
            at(tick),
            ROW * rows.len() as f64 + 24.0,
            ROW * rows.len() as f64 + 36.0
        );
    }
    for (i, (name, reference, value, low, high)) in rows.iter().enumerate() {
        let y = ROW * i as f64 + 33.0;
        body += &format!(
            "{}<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"span\"/><circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" class=\"dot\"/><circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" class=\"ring\"/>",
            label(name, y + 4.0),
            at(*low),
            at(*high),
            at(*value),
            at(*reference)
        );
    }
    frame(rows.len() + 1, title, &body)
}
