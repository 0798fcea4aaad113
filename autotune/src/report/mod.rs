//! Reports: a run of the tuner as one HTML page without outside files.
//!
//! Reads a [`Summary`]; makes a page: what was gained where, rooflines before and after, heat maps of tiles, every entry
//! with what won, by how much and what bounds it.

pub mod svg;

use self::svg::{Cell, escape, heat_map};
use crate::ceiling::Ceiling;
use crate::key::Key;
use crate::measure::statistics::geometric_mean;
use crate::search::Outcome;
use crate::table::Entry;
use crate::tune::Summary;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::roofs::Roofs;
use bitsmith_runtime::roofs::picture::{Plot, Point};
use std::collections::BTreeMap;

const FRAME: &str = include_str!("../../templates/tune.html");
/// Shared with the page of a quantized model.
const STYLE: &str = include_str!("../../templates/page.css");

/// A page from its parts: title, verdict, sentence, facts (value, name, note), pictures, table head and rows.
pub struct Page {
    /// Stands on top.
    pub title: String,
    /// The result in a line.
    pub verdict: String,
    /// What was done.
    pub about: String,
    /// Value, name, note.
    pub facts: Vec<[String; 3]>,
    /// SVG.
    pub pictures: Vec<String>,
    /// Names of columns.
    pub head: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

impl Page {
    /// The HTML.
    pub fn html(&self) -> Result<String> {
        let facts: String = self
            .facts
            .iter()
            .map(|[value, name, note]| {
                format!(
                    "<div class=\"fact\"><b>{}</b><span>{}</span><small>{}</small></div>",
                    escape(value),
                    escape(name),
                    escape(note)
                )
            })
            .collect();
        let cells = |tag: &str, row: &[String]| -> String {
            row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let rows: String = self.rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
        let mut context = tera::Context::new();
        context.insert("title", &self.title);
        context.insert("verdict", &self.verdict);
        context.insert("about", &self.about);
        context.insert("facts", &facts);
        context.insert("pictures", &self.pictures.concat());
        context.insert("style", STYLE);
        context.insert("head", &cells("th", &self.head));
        context.insert("rows", &rows);
        tera::Tera::one_off(FRAME, &context, true)
            .map_err(|error| Error::Bug { message: format!("tuning template: {error:?}"), text: FRAME.to_string() })
    }
}

/// A schedule in a few characters.
pub fn short(s: &Schedule) -> String {
    let threads = if s.threads > 1 { format!(" t{} s{}", s.threads, s.split) } else { String::new() };
    format!("{} {}x{} u{}{threads}", s.family.name(), s.tile_m, s.tile_n, s.unroll)
}

/// The page of a run.
pub fn page(summary: &Summary) -> Page {
    let entries = &summary.entries;
    let gain = |e: &Entry| e.chooser_seconds / e.seconds;
    let best = entries.iter().max_by(|a, b| gain(a).total_cmp(&gain(b)));
    let phase = |decode: bool| {
        let of = |e: &&Entry| (e.key.m <= crate::bucket::DECODE_ROWS) == decode;
        geometric_mean(entries.iter().filter(of).map(gain))
    };
    let changed = entries.iter().filter(|e| e.schedule != e.chooser).count();
    let run = summary.table.runs.last();
    let mut pictures = vec![gains(entries)];
    if let Some(run) = run {
        pictures.extend(roofline(entries, &run.ceiling, summary.table.device.threads));
    }
    // One of each phase: where most candidates were measured.
    for decode in [true, false] {
        let of = |(key, _): &&(Key, Outcome)| (key.m <= crate::bucket::DECODE_ROWS) == decode;
        if let Some((key, outcome)) = summary.outcomes.iter().filter(of).max_by_key(|(_, o)| o.measured.len()) {
            pictures.push(tiles(key, outcome));
        }
    }
    Page {
        title: format!("Tuned on {}", summary.table.device),
        verdict: format!("{:.3} times as fast as the chooser's schedules, in the geometric mean", summary.gain()),
        about: format!(
            "{} entries; {changed} of them take another schedule than the chooser. Times are levels of interleaved samples \
             with cold weights; every candidate was compared with the reference first.{}",
            entries.len(),
            run.map_or(String::new(), |run| format!(
                " Roofs ({}): read {} GB/s, {} {} GOP/s.",
                run.ceiling.source, run.ceiling.read_gbs, run.ceiling.float_by, run.ceiling.float_gops
            ))
        ),
        facts: vec![
            [format!("{:.2} x", phase(true)), "decode".into(), "up to 8 rows".into()],
            [format!("{:.2} x", phase(false)), "prefill".into(), "more rows".into()],
            best.map_or([String::new(), String::new(), String::new()], |e| {
                [format!("{:.2} x", gain(e)), "largest gain".into(), e.key.to_string()]
            }),
            [
                entries.iter().map(|e| e.tried.samples).sum::<usize>().to_string(),
                "samples".into(),
                format!("of {} declared candidates", entries.iter().map(|e| e.tried.declared).sum::<usize>()),
            ],
        ],
        pictures,
        head: ["entry", "taken", "of roof", "bound by", "chooser's", "gain", "runner-up", "tried"]
            .map(String::from)
            .to_vec(),
        rows: entries
            .iter()
            .map(|e| {
                vec![
                    e.key.to_string(),
                    short(&e.schedule),
                    e.share.map_or("–".into(), |s| format!("{:.0} %", 100.0 * s)),
                    e.bound.clone(),
                    short(&e.chooser),
                    format!("{:.2}", gain(e)),
                    e.runner_up.map_or("–".into(), |(s, r)| format!("{}, {r:.2} x as long", short(&s))),
                    format!("{} of {}{}", e.tried.measured, e.tried.declared, if e.tried.cut { ", cut" } else { "" }),
                ]
            })
            .collect(),
    }
}

/// Gains by shape and rows.
fn gains(entries: &[Entry]) -> String {
    let mut rows: Vec<String> = Vec::new();
    let mut columns: Vec<usize> = entries.iter().map(|e| e.key.m).collect();
    columns.sort_unstable();
    columns.dedup();
    let name = |e: &Entry| format!("{} {}x{}", e.key.weight, e.key.n, e.key.k);
    for entry in entries {
        if !rows.contains(&name(entry)) {
            rows.push(name(entry));
        }
    }
    let most = entries.iter().map(|e| e.chooser_seconds / e.seconds).fold(1.05, f64::max);
    let cells: Vec<Vec<Option<Cell>>> = rows
        .iter()
        .map(|row| {
            columns
                .iter()
                .map(|&m| {
                    let e = entries.iter().find(|e| name(e) == *row && e.key.m == m)?;
                    let gain = e.chooser_seconds / e.seconds;
                    Some(Cell {
                        depth: (gain - 1.0) / (most - 1.0),
                        text: format!("{gain:.2}"),
                        hint: format!("{}: {} instead of {}", e.key, short(&e.schedule), short(&e.chooser)),
                        framed: false,
                    })
                })
                .collect()
        })
        .collect();
    let columns: Vec<String> = columns.iter().map(|m| format!("M={m}")).collect();
    heat_map("How many times as fast as the chooser's schedule", "", &rows, &columns, &cells)
}

/// The roofline with chosen and tuned kernels; nothing where the roofs are not measured.
fn roofline(entries: &[Entry], ceiling: &Ceiling, threads: usize) -> Option<String> {
    if ceiling.source != "measured" {
        return None;
    }
    let mut roofs = Roofs { threads, read_gbs: ceiling.read_gbs, ..Roofs::default() };
    for (name, gops) in [(&ceiling.float_by, ceiling.float_gops), (&ceiling.byte_by, ceiling.byte_gops)] {
        roofs.set(name, gops);
    }
    let mut points = Vec::new();
    for (series, seconds) in [("chooser", (|e| e.chooser_seconds) as fn(&Entry) -> f64), ("tuned", |e| e.seconds)] {
        for e in entries {
            let Ok(op) = e.key.op() else { continue };
            let m = e.measured_rows() as f64;
            let operations = 2.0 * m * e.columns as f64 * e.key.k as f64;
            let weights = crate::tune::bytes(&op) * e.columns as f64 / e.key.n as f64;
            let bytes = weights + m * (e.key.k + e.columns) as f64 * 2.0;
            points.push(Point {
                series: series.into(),
                label: e.key.to_string(),
                intensity: operations / bytes,
                gops: operations / seconds(e) / 1e9,
            });
        }
    }
    Some(Plot { title: "Roofline, before and after".into(), roofs: vec![roofs], points }.svg())
}

/// Tiles by unrolling of one entry: how many times as long as the best.
fn tiles(key: &Key, outcome: &Outcome) -> String {
    type Row = BTreeMap<u32, (f64, Schedule)>;
    let mut cells: BTreeMap<(String, u32, u32, String), Row> = BTreeMap::new();
    for m in &outcome.measured {
        let s = &m.schedule;
        let threads = if s.threads > 1 { format!(" t{} s{}", s.threads, s.split) } else { String::new() };
        let row = cells.entry((s.family.name().to_string(), s.tile_n, s.tile_m, threads)).or_default();
        row.insert(s.unroll, (m.seconds / outcome.seconds, *s));
    }
    let mut unrolls: Vec<u32> = cells.values().flat_map(|row| row.keys().copied()).collect();
    unrolls.sort_unstable();
    unrolls.dedup();
    let rows: Vec<String> = cells.keys().map(|(f, n, m, t)| format!("{f} {m}x{n}{t}")).collect();
    let grid: Vec<Vec<Option<Cell>>> = cells
        .values()
        .map(|row| {
            let cell = |u: &u32| {
                let (ratio, schedule) = row.get(u)?;
                Some(Cell {
                    depth: 1.0 / ratio.powi(2),
                    text: format!("{ratio:.2}"),
                    hint: short(schedule),
                    framed: *schedule == outcome.best,
                })
            };
            unrolls.iter().map(cell).collect()
        })
        .collect();
    let columns: Vec<String> = unrolls.iter().map(|u| format!("u{u}")).collect();
    heat_map(
        &format!("{key}: times as long as the best, by tile and unrolling (framed: taken)"),
        "tile",
        &rows,
        &columns,
        &grid,
    )
}
