//! A roofline as an SVG picture: what a machine can do at most, and where kernels stand.
//!
//! Reads roofs and points; makes SVG text. Both axes are logarithmic: operations per byte read to the right, GOP/s
//! upwards. Memory is a slope per number of threads, a peak of arithmetic a level line that starts at the slope.

use super::Roofs;
use std::fmt::Write;

/// A kernel in the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Points of a series share a colour.
    pub series: String,
    /// What a reader sees who points at it.
    pub label: String,
    /// Operations per byte that an ideal kernel reads.
    pub intensity: f64,
    /// What it reached.
    pub gops: f64,
}

/// A picture under construction.
#[derive(Clone, Debug, Default)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// Roofs, one entry per number of threads.
    pub roofs: Vec<Roofs>,
    /// Kernels.
    pub points: Vec<Point>,
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 640.0;
/// Edges of the drawing area: left, top, right, bottom.
const AREA: [f64; 4] = [70.0, 50.0, 700.0, 590.0];
const COLOURS: [&str; 9] =
    ["#1b6ca8", "#d1495b", "#2e933c", "#8f5fbf", "#e08e1d", "#139a9a", "#8a5a44", "#c73e9c", "#5c6670"];
/// A level line may take this share of the height away from its neighbours' labels.
const LABEL: f64 = 13.0;

/// A logarithmic axis from `low` to `high`, drawn from `start` to `end`.
struct Axis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE) / self.low).log10() / (self.high / self.low).log10();
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// Powers of ten within.
    fn decades(&self) -> impl Iterator<Item = f64> {
        let high = self.high;
        (self.low.log10().ceil() as i32..).map(|power| 10f64.powi(power)).take_while(move |&x| x <= high * 1.000_001)
    }
}

impl Plot {
    /// The picture.
    pub fn svg(&self) -> String {
        let (x, y) = self.axes();
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut out, AREA[0], 28.0, "start", "16", "#222", &self.title);
        grid(&mut out, &x, &y);
        self.draw_roofs(&mut out, &x, &y);
        self.draw_points(&mut out, &x, &y);
        out.push_str("</svg>\n");
        out
    }

    /// Axes wide enough for everything, to the next power of ten.
    fn axes(&self) -> (Axis, Axis) {
        let peaks = self.roofs.iter().flat_map(|roofs| roofs.arithmetic()).map(|(_, gops)| gops);
        let reads = self.roofs.iter().map(|roofs| roofs.read_gbs);
        let points = self.points.iter();
        let least = |values: &mut dyn Iterator<Item = f64>, default: f64| {
            let least = values.filter(|v| v.is_finite() && *v > 0.0).fold(f64::INFINITY, f64::min);
            10f64.powf(if least.is_finite() { least } else { default }.log10().floor())
        };
        let most = |values: &mut dyn Iterator<Item = f64>, default: f64| {
            let most = values.filter(|v| v.is_finite() && *v > 0.0).fold(0.0, f64::max);
            10f64.powf(if most > 0.0 { most } else { default }.log10().ceil())
        };
        let x = Axis {
            low: least(&mut points.clone().map(|p| p.intensity).chain([0.2]), 0.1),
            high: most(&mut points.clone().map(|p| p.intensity).chain([500.0]), 1000.0),
            start: AREA[0],
            end: AREA[2],
        };
        let low = least(&mut points.clone().map(|p| p.gops).chain(reads.clone().map(|r| r * 0.5)), 1.0);
        let high = most(&mut points.map(|p| p.gops).chain(peaks).chain(reads.map(|r| r * 20.0)), 1000.0);
        (x, Axis { low, high, start: AREA[3], end: AREA[1] })
    }

    fn draw_roofs(&self, out: &mut String, x: &Axis, y: &Axis) {
        let mut labels = Vec::new();
        for (i, roofs) in self.roofs.iter().enumerate() {
            if roofs.read_gbs <= 0.0 {
                continue;
            }
            let dash = if i % 2 == 1 { " stroke-dasharray=\"6 3\"" } else { "" };
            let threads = format!("{} thread{}", roofs.threads, if roofs.threads == 1 { "" } else { "s" });
            let top = roofs.arithmetic().map(|(_, gops)| gops).fold(0.0, f64::max);
            // The slope ends where the highest peak, or the edge of the picture, is met.
            let (from, to) = (x.low.max(y.low / roofs.read_gbs), x.high.min(top.max(y.low) / roofs.read_gbs));
            if from < to {
                let line = [x.at(from), y.at(from * roofs.read_gbs), x.at(to), y.at(to * roofs.read_gbs)];
                segment(out, line, &format!("#333\" stroke-width=\"2\"{dash} class=\"read"));
                let angle = (line[3] - line[1]).atan2(line[2] - line[0]).to_degrees();
                let share = 0.25 + 0.3 * (i % 2) as f64;
                let (mx, my) = (line[0] + share * (line[2] - line[0]), line[1] + share * (line[3] - line[1]) - 5.0);
                let _ = writeln!(
                    out,
                    "<text x=\"{mx:.1}\" y=\"{my:.1}\" transform=\"rotate({angle:.1} {mx:.1} {my:.1})\" fill=\"#333\">read {:.1} GB/s, {threads}</text>",
                    roofs.read_gbs
                );
            }
            for (name, gops) in roofs.arithmetic() {
                let line = [x.at(gops / roofs.read_gbs), y.at(gops), AREA[2], y.at(gops)];
                segment(out, line, &format!("#999\" stroke-width=\"1\"{dash} class=\"peak"));
                labels.push((y.at(gops), format!("{name} {gops:.0} GOP/s, {threads}")));
            }
        }
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut above = f64::NEG_INFINITY;
        for (at, label) in labels {
            above = (above + LABEL).max(at + 4.0);
            text(out, AREA[2] + 6.0, above, "start", "11", "#666", &label);
        }
    }

    fn draw_points(&self, out: &mut String, x: &Axis, y: &Axis) {
        let mut series: Vec<&str> = Vec::new();
        for point in &self.points {
            if !series.contains(&point.series.as_str()) {
                series.push(&point.series);
            }
        }
        for (i, name) in series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            for point in self.points.iter().filter(|p| p.series == *name && p.intensity > 0.0 && p.gops > 0.0) {
                let (cx, cy) = (x.at(point.intensity), y.at(point.gops));
                let _ = writeln!(
                    out,
                    "<g fill=\"{colour}\" fill-opacity=\"0.75\" stroke=\"white\" stroke-width=\"0.7\">{}<title>{}: {}, {:.1} GOP/s, {:.2} op/byte</title></g>",
                    marker(i, cx, cy),
                    escape(&point.series),
                    escape(&point.label),
                    point.gops,
                    point.intensity
                );
            }
            let at = AREA[3] - 16.0 * (series.len() - 1 - i) as f64 - 8.0;
            let _ = writeln!(out, "<g fill=\"{colour}\">{}</g>", marker(i, AREA[2] - 150.0, at - 4.0));
            text(out, AREA[2] - 140.0, at, "start", "12", "#222", name);
        }
    }
}

fn grid(out: &mut String, x: &Axis, y: &Axis) {
    for value in x.decades() {
        let at = x.at(value);
        segment(out, [at, AREA[1], at, AREA[3]], "#e6e6e6");
        text(out, at, AREA[3] + 18.0, "middle", "12", "#222", &value.to_string());
    }
    for value in y.decades() {
        let at = y.at(value);
        segment(out, [AREA[0], at, AREA[2], at], "#e6e6e6");
        text(out, AREA[0] - 8.0, at + 4.0, "end", "12", "#222", &value.to_string());
    }
    let middle = (AREA[0] + AREA[2]) / 2.0;
    text(out, middle, HEIGHT - 12.0, "middle", "12", "#222", "operations per byte read");
    text(out, AREA[0] - 8.0, AREA[1] - 10.0, "end", "12", "#222", "GOP/s");
}

/// A mark whose form, like its colour, tells a series from others.
fn marker(series: usize, x: f64, y: f64) -> String {
    match series % 3 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\"/>", x - 4.5, y - 4.5),
        _ => format!(
            "<path d=\"M{x:.1} {:.1} L{:.1} {:.1} L{:.1} {:.1} Z\"/>",
            y - 5.5,
            x + 5.5,
            y + 4.5,
            x - 5.5,
            y + 4.5
        ),
    }
}

fn segment(out: &mut String, [x1, y1, x2, y2]: [f64; 4], stroke: &str) {
    let _ = writeln!(out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>");
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: &str, fill: &str, content: &str) {
    let content = escape(content);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{fill}\">{content}</text>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of an attribute, in order of appearance.
    fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
        svg.lines()
            .filter(|line| line.contains(element))
            .map(|line| line.split(&format!(" {attribute}=\"")).nth(1).unwrap().split('"').next().unwrap())
            .map(|number| number.parse().unwrap())
            .collect()
    }

    #[test]
    fn a_point_on_the_roof_lies_on_the_line() {
        let roofs = Roofs { threads: 1, read_gbs: 20.0, fma256_gflops: 100.0, ..Roofs::default() };
        let on_slope = Point { series: "a".into(), label: "<b>".into(), intensity: 2.0, gops: 40.0 };
        let on_peak = Point { intensity: 50.0, gops: 100.0, ..on_slope.clone() };
        let svg = Plot { title: "t & u".into(), roofs: vec![roofs], points: vec![on_slope, on_peak] }.svg();
        assert!(svg.contains("t &amp; u") && svg.contains("&lt;b&gt;") && svg.ends_with("</svg>\n"));
        let [x1, y1, x2, y2] = ["x1", "y1", "x2", "y2"].map(|a| numbers(&svg, "class=\"read\"", a)[0]);
        let circles: Vec<(f64, f64)> =
            numbers(&svg, "<title>", "cx").into_iter().zip(numbers(&svg, "<title>", "cy")).collect();
        let (cx, cy) = circles[0];
        let expected = y1 + (cx - x1) / (x2 - x1) * (y2 - y1);
        assert!((cy - expected).abs() < 0.3, "{cy} is not on the slope, {expected}");
        assert_eq!(numbers(&svg, "class=\"peak\"", "y1"), [circles[1].1]);
        // The level line starts where the slope ends.
        assert_eq!(numbers(&svg, "class=\"peak\"", "x1"), [x2]);
    }

    #[test]
    fn labels_of_near_peaks_do_not_overlap() {
        let roofs = Roofs {
            threads: 2,
            read_gbs: 20.0,
            dot128_gops: 99.0,
            dot256_gops: 100.0,
            fma128_gflops: 98.0,
            ..Roofs::default()
        };
        let svg = Plot { roofs: vec![roofs], ..Plot::default() }.svg();
        let mut heights = numbers(&svg, "GOP/s, 2 threads", "y");
        heights.sort_by(f64::total_cmp);
        assert_eq!(heights.len(), 3);
        assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= LABEL - 0.11), "{heights:?}");
    }
}
