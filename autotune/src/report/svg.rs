//! Pictures as SVG text: heat maps and scatter plots with a front.
//!
//! Reads numbers and words; makes complete SVG documents that also stand inside HTML.

use std::fmt::Write;

/// Escapes text for SVG and HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const INK: &str = "#1c2430";
const SOFT: &str = "#5b6675";
const LINE: &str = "#d5dbe3";

fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{0}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"20\" font-size=\"14\" font-weight=\"600\" fill=\"{INK}\">{0}</text>\n",
        escape(title)
    )
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, content: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
        escape(content)
    );
}

/// A cell of a heat map.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Where its colour stands, from 0 (pale) to 1 (deep).
    pub depth: f64,
    /// What stands in it.
    pub text: String,
    /// What a reader sees who points at it.
    pub hint: String,
    /// Whether it has a frame.
    pub framed: bool,
}

/// A heat map: names of rows and columns, and the cells row by row; `None` leaves a cell empty.
pub fn heat_map(title: &str, corner: &str, rows: &[String], columns: &[String], cells: &[Vec<Option<Cell>>]) -> String {
    let label = 24.0 + 7.0 * rows.iter().map(|r| r.chars().count()).max().unwrap_or(4) as f64;
    let (wide, high) = (64.0, 26.0);
    let titled = 24.0 + 8.0 * title.chars().count() as f64;
    let width = (label + wide * columns.len() as f64 + 16.0).max(titled);
    let mut out = open(width, 62.0 + high * rows.len() as f64, title);
    text(&mut out, (label - 8.0, 44.0), "end", SOFT, corner);
    for (i, column) in columns.iter().enumerate() {
        text(&mut out, (label + wide * (i as f64 + 0.5), 44.0), "middle", SOFT, column);
    }
    for (r, (row, cells)) in rows.iter().zip(cells).enumerate() {
        let y = 52.0 + high * r as f64;
        text(&mut out, (label - 8.0, y + 17.0), "end", INK, row);
        for (c, cell) in cells.iter().enumerate() {
            let x = label + wide * c as f64;
            let Some(cell) = cell else {
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f4f6f8\"/>",
                    wide - 2.0,
                    high - 2.0
                );
                continue;
            };
            let ink = if cell.depth > 0.55 { "#fff" } else { INK };
            let frame = if cell.framed { " stroke=\"#c2571a\" stroke-width=\"2.5\"" } else { "" };
            let _ = writeln!(
                out,
                "<g><title>{}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"{frame}/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{ink}\">{}</text></g>",
                escape(&cell.hint),
                wide - 2.0,
                high - 2.0,
                shade(cell.depth),
                x + wide / 2.0 - 1.0,
                y + 17.0,
                escape(&cell.text)
            );
        }
    }
    out + "</svg>\n"
}

/// From pale to deep blue.
fn shade(depth: f64) -> String {
    let depth = depth.clamp(0.0, 1.0);
    let mix = |pale: f64, deep: f64| (pale + (deep - pale) * depth).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(232.0, 20.0), mix(240.0, 75.0), mix(249.0, 140.0))
}

/// A point of a scatter plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// What stands beside it.
    pub label: String,
    /// Points of a series share a colour.
    pub series: usize,
    /// Whether nothing is better in both.
    pub front: bool,
    /// Whether it is the one to take.
    pub chosen: bool,
}

const COLOURS: [&str; 6] = ["#1b6ca8", "#d1495b", "#2e933c", "#8f5fbf", "#e08e1d", "#139a9a"];

/// A scatter plot in which less is better on both axes, with its Pareto front as a line, and a limit on y where there is one.
pub fn pareto(
    title: &str,
    (x_name, y_name): (&str, &str),
    series: &[String],
    dots: &[Dot],
    limit: Option<f64>,
) -> String {
    let (width, height) = (760.0, 430.0);
    let (left, top, right, bottom) = (74.0, 40.0, 600.0, 380.0);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let pad = ((high - low) * 0.12).max(high.abs() * 0.02).max(1e-12);
        // No time or error is below zero.
        (if low < 0.0 { low - pad } else { (low - pad).max(0.0) }, high + pad)
    };
    let x_range = range(&mut dots.iter().map(|d| d.x));
    let y_range = range(&mut dots.iter().map(|d| d.y).chain(limit));
    let x_at = |v: f64| left + (v - x_range.0) / (x_range.1 - x_range.0) * (right - left);
    let y_at = |v: f64| bottom - (v - y_range.0) / (y_range.1 - y_range.0) * (bottom - top);
    let mut out = open(width, height, title);
    for i in 0..=4 {
        let share = i as f64 / 4.0;
        let (x, y) = (x_range.0 + share * (x_range.1 - x_range.0), y_range.0 + share * (y_range.1 - y_range.0));
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"{LINE}\"/>\
             <line x1=\"{left}\" x2=\"{right}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"{LINE}\"/>",
            x_at(x),
            y_at(y)
        );
        text(&mut out, (x_at(x), bottom + 16.0), "middle", SOFT, &short(x));
        text(&mut out, (left - 6.0, y_at(y) + 4.0), "end", SOFT, &short(y));
    }
    text(&mut out, ((left + right) / 2.0, bottom + 36.0), "middle", INK, x_name);
    let _ = writeln!(
        out,
        "<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"{INK}\">{}</text>",
        (top + bottom) / 2.0,
        escape(y_name)
    );
    if let Some(limit) = limit {
        let y = y_at(limit);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#c2571a\" stroke-dasharray=\"6 4\"/>"
        );
        text(&mut out, (right - 4.0, y - 5.0), "end", "#c2571a", "error budget");
    }
    let mut front: Vec<&Dot> = dots.iter().filter(|d| d.front).collect();
    front.sort_by(|a, b| a.x.total_cmp(&b.x).then(b.y.total_cmp(&a.y)));
    let path: Vec<String> = front.iter().map(|d| format!("{:.1},{:.1}", x_at(d.x), y_at(d.y))).collect();
    let _ =
        writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{SOFT}\" stroke-width=\"1.5\"/>", path.join(" "));
    let mut placed: Vec<(f64, f64)> = Vec::new();
    for dot in dots {
        let (x, y) = (x_at(dot.x), y_at(dot.y));
        let colour = COLOURS[dot.series % COLOURS.len()];
        if dot.chosen {
            let _ = writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"10\" fill=\"none\" stroke=\"#c2571a\" stroke-width=\"2.5\"/>"
            );
        }
        let fill = if dot.front { colour } else { "#fff" };
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
        // Labels that would lie on others move up.
        let (lx, mut ly) = (x + 12.0, y + 4.0);
        while placed.iter().any(|&(px, py)| (px - lx).abs() < 60.0 && (py - ly).abs() < 12.0) {
            ly -= 12.0;
        }
        placed.push((lx, ly));
        text(&mut out, (lx, ly), "start", INK, &dot.label);
    }
    for (i, name) in series.iter().enumerate() {
        let y = top + 14.0 + 20.0 * i as f64;
        let _ = writeln!(
            out,
            "<circle cx=\"{}\" cy=\"{}\" r=\"5\" fill=\"{}\"/>",
            right + 22.0,
            y - 4.0,
            COLOURS[i % COLOURS.len()]
        );
        text(&mut out, (right + 34.0, y), "start", INK, name);
    }
    let y = top + 22.0 + 20.0 * series.len() as f64;
    text(&mut out, (right + 16.0, y), "start", SOFT, "filled: on the front");
    text(&mut out, (right + 16.0, y + 16.0), "start", SOFT, "ring: recommended");
    out + "</svg>\n"
}

fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 1.0 => format!("{x:.2}"),
        a if a >= 0.01 => format!("{x:.3}"),
        _ => format!("{x:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_hold_every_number_and_escape_words() {
        let cell = |text: &str| Some(Cell { depth: 0.5, text: text.into(), hint: "a < b".into(), framed: text == "2" });
        let map = heat_map("t <&>", "c", &["r".into()], &["x".into(), "y".into()], &[vec![cell("1"), cell("2")]]);
        assert!(
            map.contains("t &lt;&amp;&gt;")
                && map.contains("a &lt; b")
                && map.matches("stroke=\"#c2571a\"").count() == 1
        );
        let dot = |x: f64, y: f64, front: bool| Dot { x, y, label: format!("{x}"), series: 0, front, chosen: front };
        let plot = pareto("p", ("x", "y"), &["s".into()], &[dot(1.0, 2.0, true), dot(2.0, 3.0, false)], Some(2.5));
        assert_eq!(plot.matches("<circle").count(), 4);
        assert!(plot.contains("error budget") && plot.ends_with("</svg>\n"));
        assert!(!pareto("p", ("x", "y"), &[], &[dot(1.0, 1.0, true)], None).contains("NaN"));
    }
}
