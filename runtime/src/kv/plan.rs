//! Work lists of launches: which tokens go where, and how attention is split.
//!
//! Reads block tables; makes the `i32` records of `op::kv`. Always holds: no two records of a launch share a unit of storage
//! or a slot, and a token of a page that is not there is an error.

use bitsmith_compiler::op::kv::{ITEM, ROW, SPAN, Sight};
use bitsmith_compiler::{Error, Result};

/// How a query's tokens are split over work items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splits {
    /// About so many items in all (per KV head), tokens spread evenly: what fills the machine.
    Balanced(usize),
    /// So many tokens per item, whatever else is in the batch: results do not depend on it.
    Fixed(usize),
}

/// The queries of one request in a launch.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// First row of the queries.
    pub row: usize,
    /// Query tokens.
    pub count: usize,
    /// Position of the first one.
    pub position: usize,
    /// The request's pages, and with them the ranges of tokens, in each of the pools that have some of its tokens.
    pub segments: &'a [Segment<'a>],
}

/// A range of a request's tokens in one pool.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Pages in order; entry 0 holds the tokens from `first_page · page` on.
    pub table: &'a [Option<u32>],
    /// Number of the first page.
    pub first_page: usize,
    /// First token: starts a page.
    pub start: usize,
    /// End of the tokens.
    pub end: usize,
}

/// Work of attention: for each pool a list of items and its block tables, and the rows of the merge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttendPlan {
    /// Items of each pool.
    pub items: Vec<Vec<i32>>,
    /// Block tables of each pool.
    pub tables: Vec<Vec<i32>>,
    /// Merge records, one per query row, in order.
    pub rows: Vec<i32>,
    /// Slots in all.
    pub slots: usize,
}

/// Records that store or gather tokens `start..start + count` of a request, whose row 0 is `row`.
pub fn spans(
    table: &[Option<u32>],
    page: usize,
    row: usize,
    start: usize,
    count: usize,
    out: &mut Vec<i32>,
) -> Result<()> {
    let (mut token, end) = (start, start + count);
    while token < end {
        let index = token / page;
        let number = table.get(index).copied().flatten().ok_or_else(|| unmapped(index))?;
        let next = ((token / 8 + 1) * 8).min(end);
        let record = [row + token - start, number as usize, token % page, next - token, token, 0, 0, 0];
        debug_assert_eq!(record.len(), SPAN);
        out.extend(record.map(|field| field as i32));
        token = next;
    }
    Ok(())
}

fn unmapped(index: usize) -> Error {
    Error::invalid(format!("page {index} of a request is not there: it was dropped, or no room was made"))
}

/// Plans attention for a batch: `tile` query tokens per item, pages of `page` tokens. Requests without tokens get rows
/// without slots.
pub fn attend(
    batch: &[Queries<'_>],
    pools: usize,
    page: usize,
    tile: usize,
    sight: Sight,
    splits: Splits,
) -> Result<AttendPlan> {
    let mut plan =
        AttendPlan { items: vec![Vec::new(); pools], tables: vec![Vec::new(); pools], ..AttendPlan::default() };
    // The tokens that each group of queries sees, by pool.
    let mut groups = Vec::new();
    for (request, queries) in batch.iter().enumerate() {
        for first in (0..queries.count).step_by(tile) {
            let count = tile.min(queries.count - first);
            let (position, last) = (queries.position + first, queries.position + first + count - 1);
            let mut ranges = Vec::new();
            for (pool, segment) in queries.segments.iter().enumerate() {
                for (start, end) in seen(sight, position, last, page) {
                    let (start, end) = (start.max(segment.start), end.min(segment.end).min(last + 1));
                    if start < end {
                        ranges.push((pool, start, end));
                    }
                }
            }
            groups.push((request, first, count, ranges));
        }
    }
    let total: usize = groups.iter().flat_map(|group| &group.3).map(|&(_, start, end)| end - start).sum();
    let length = match splits {
        Splits::Fixed(tokens) => tokens,
        Splits::Balanced(items) => total.div_ceil(items.max(1)),
    };
    let length = length.max(1).next_multiple_of(page);
    // Where each request's table starts in its pool's list, minus its first page.
    let mut starts = vec![vec![0i64; pools]; batch.len()];
    for (request, queries) in batch.iter().enumerate() {
        for (pool, segment) in queries.segments.iter().enumerate() {
            starts[request][pool] = plan.tables[pool].len() as i64 - segment.first_page as i64;
            plan.tables[pool].extend(segment.table.iter().map(|entry| entry.map_or(-1, |page| page as i32)));
        }
    }
    for (request, first, count, ranges) in groups {
        let queries = &batch[request];
        let slot = plan.slots;
        for (pool, start, end) in ranges {
            let segment = &queries.segments[pool];
            for index in start / page..end.div_ceil(page) {
                let entry = index.checked_sub(segment.first_page).and_then(|i| segment.table.get(i));
                entry.copied().flatten().ok_or_else(|| unmapped(index))?;
            }
            let length = match splits {
                Splits::Fixed(_) => length,
                // Pieces of one range are alike: a short one at the end would take a start and an end of its own.
                Splits::Balanced(_) => (end - start).div_ceil((end - start).div_ceil(length)).next_multiple_of(page),
            };
            for from in (start..end).step_by(length) {
                let record = [
                    (queries.row + first) as i64,
                    count as i64,
                    starts[request][pool],
                    from as i64,
                    end.min(from + length) as i64,
                    (queries.position + first) as i64,
                    plan.slots as i64,
                    0,
                ];
                debug_assert_eq!(record.len(), ITEM);
                plan.items[pool].extend(record.map(|field| field as i32));
                plan.slots += 1;
            }
        }
        for query in 0..count {
            let row = queries.row + first + query;
            let at = row * ROW;
            if plan.rows.len() < at + ROW {
                plan.rows.resize(at + ROW, 0);
            }
            plan.rows[at..at + ROW].copy_from_slice(&[slot as i32, (plan.slots - slot) as i32, query as i32, 0]);
        }
    }
    Ok(plan)
}

/// Ranges of tokens that queries at positions `first..=last` may see; starts are starts of pages.
fn seen(sight: Sight, first: usize, last: usize, page: usize) -> Vec<(usize, usize)> {
    match sight {
        Sight::All => vec![(0, last + 1)],
        Sight::Window { window, first: always } => {
            let start = (first + 1).saturating_sub(window as usize) / page * page;
            let early = (always as usize).min(start).next_multiple_of(page);
            if early >= start {
                vec![(0, last + 1)]
            } else if always == 0 {
                vec![(start, last + 1)]
            } else {
                vec![(0, early), (start, last + 1)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_seen_once() {
        let table: Vec<Option<u32>> = (0..20).map(Some).collect();
        for (sight, splits) in [
            (Sight::All, Splits::Balanced(5)),
            (Sight::All, Splits::Fixed(64)),
            (Sight::Window { window: 50, first: 0 }, Splits::Fixed(16)),
            (Sight::Window { window: 50, first: 4 }, Splits::Balanced(3)),
        ] {
            let segments = [Segment { table: &table, first_page: 0, start: 0, end: 310 }];
            let queries = [Queries { row: 0, count: 3, position: 307, segments: &segments }];
            let plan = attend(&queries, 1, 16, 2, sight, splits).unwrap();
            assert_eq!(plan.rows.len(), 3 * ROW);
            for (query, row) in plan.rows.chunks(ROW).enumerate() {
                let mut times = vec![0; 310];
                for slot in row[0]..row[0] + row[1] {
                    let item = plan.items[0].chunks(ITEM).find(|item| item[6] == slot).unwrap();
                    assert_eq!(item[3] % 16, 0);
                    (item[3]..item[4]).for_each(|t| times[t as usize] += 1);
                }
                for (t, &count) in times.iter().enumerate() {
                    assert!(count <= 1, "token {t} twice");
                    assert!(count == 1 || !sight.sees(307 + query, t), "token {t} is not seen by query {query}");
                }
            }
        }
    }

    #[test]
    fn a_page_that_is_not_there_is_an_error() {
        let table = [Some(3), None];
        let mut out = Vec::new();
        assert!(spans(&table, 16, 0, 12, 8, &mut out).unwrap_err().to_string().contains("page 1"));
        let segments = [Segment { table: &table, first_page: 0, start: 0, end: 20 }];
        let queries = [Queries { row: 0, count: 1, position: 19, segments: &segments }];
        assert!(attend(&queries, 1, 16, 1, Sight::All, Splits::Fixed(64)).is_err());
    }
}
