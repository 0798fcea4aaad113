//! Attention of a step over the cache: a plan, a launch for each pool, the merge.

use super::plan::{AttendPlan, Queries, Segment, Splits, attend as plan_attend};
use super::{AttendOptions, KvCache};
use crate::{LaunchArg, View};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, ITEM, KvOp, Merge, ROW, Sight};
use bitsmith_compiler::{Error, Result};
use std::sync::Arc;

/// A plan, and what it was made for.
pub(super) struct Planned {
    basis: Basis,
    plan: Arc<AttendPlan>,
}

/// What a plan is made of: pages as they were after so many changes, and what the call asks for.
#[derive(PartialEq)]
struct Basis {
    changes: u64,
    /// The layer, where it has a window of its own.
    window_of: Option<usize>,
    queries: usize,
    sight: Sight,
    splits: Splits,
}

impl KvCache {
    /// Attention of the step's queries `[rows, heads, k_dim]` over all tokens of their requests, the step's own included:
    /// causal. Outputs are `[rows, heads, v_dim]`; those of a request without tokens are 0.
    pub fn attend(&mut self, layer: usize, q: View<'_>, y: View<'_>, options: &AttendOptions) -> Result<()> {
        self.check("q", &q, self.shape.heads * self.shape.k_dim)?;
        self.check("y", &y, self.shape.heads * self.shape.v_dim)?;
        for (what, list) in [("slopes", &options.slopes), ("sinks", &options.sinks)] {
            if !list.is_empty() && list.len() != self.shape.heads {
                return Err(Error::invalid(format!("{} {what}; accepted: one per query head, or none", list.len())));
            }
            if let Some(number) = list.iter().find(|number| !number.is_finite()) {
                return Err(Error::invalid(format!("{number} among the {what}; accepted: finite numbers")));
            }
        }
        let part = self.layer(layer)?;
        let layout = part.layout;
        let longest = self.step.iter().map(|&(_, tokens)| tokens).max().unwrap_or(0);
        if longest == 0 {
            return Ok(());
        }
        let op = Attend {
            layout,
            heads: self.shape.heads,
            queries: 1,
            input: self.shape.dtype,
            scale: options.scale,
            softcap: options.softcap,
            alibi: !options.slopes.is_empty(),
            sight: options.sight,
            arithmetic: Arithmetic::Float,
        };
        KvOp::Attend(op).checked()?;
        let op = Attend { arithmetic: super::arithmetic(&op, options.arithmetic, self.device.caps()), ..op };
        let queries = self.programs.queries(&op, longest);
        let op = Attend { queries, ..op };
        let splits = options.splits.unwrap_or(Splits::Balanced(self.programs.items(&op)));
        let plan = self.plan(layer, queries, options.sight, splits)?;
        let rows_per_slot = self.shape.kv_heads * op.rows();
        let o = self.programs.scratch("o", plan.slots.max(1) * rows_per_slot * self.shape.v_dim * 4)?;
        let ml = self.programs.scratch("ml", plan.slots.max(1) * rows_per_slot * 8)?;
        let slopes = self.programs.floats("slopes", &options.slopes)?;
        let part = &self.layers[layer];
        let mut targets = vec![(layout, part.pool.clone(), part.statics.clone())];
        targets.extend(part.window.as_ref().map(|window| (window.layout, window.pool.clone(), None)));
        for (i, (layout, pool, statics)) in targets.iter().enumerate() {
            if plan.items[i].is_empty() {
                continue;
            }
            let op = Attend { layout: *layout, ..op };
            let arithmetic = super::arithmetic(&op, options.arithmetic, self.device.caps());
            let op = KvOp::Attend(Attend { arithmetic, ..op });
            let (items, table) =
                (self.programs.list("items", &plan.items[i])?, self.programs.list("table", &plan.tables[i])?);
            let mut args = vec![LaunchArg::Buffer(q), LaunchArg::Buffer(pool.view())];
            args.extend([LaunchArg::Buffer(table.view()), LaunchArg::Buffer(items.view())]);
            args.extend(statics.as_ref().map(|buffer| LaunchArg::Buffer(buffer.view())));
            args.extend((!options.slopes.is_empty()).then(|| LaunchArg::Buffer(slopes.view())));
            args.extend([LaunchArg::Buffer(o.view()), LaunchArg::Buffer(ml.view())]);
            self.programs.launch(&op, plan.items[i].len() / ITEM, args)?;
        }
        let merge = KvOp::Merge(Merge {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            queries,
            dim: self.shape.v_dim,
            out: self.shape.dtype,
            sinks: !options.sinks.is_empty(),
        });
        let rows = self.programs.list("rows", &plan.rows)?;
        let sinks = self.programs.floats("sinks", &options.sinks)?;
        let mut args = vec![LaunchArg::Buffer(o.view()), LaunchArg::Buffer(ml.view()), LaunchArg::Buffer(rows.view())];
        args.extend((!options.sinks.is_empty()).then(|| LaunchArg::Buffer(sinks.view())));
        args.push(LaunchArg::Buffer(y));
        self.programs.launch(&merge, plan.rows.len() / ROW, args)
    }

    /// The plan of a layer: the one made last where it still holds, which it does for all layers of a step without a window.
    fn plan(&mut self, layer: usize, queries: usize, sight: Sight, splits: Splits) -> Result<Arc<AttendPlan>> {
        let part = self.layer(layer)?;
        let window_of = part.window.is_some().then_some(layer);
        let basis = Basis { changes: self.changes, window_of, queries, sight, splits };
        if let Some(planned) = self.planned.as_ref().filter(|planned| planned.basis == basis) {
            return Ok(Arc::clone(&planned.plan));
        }
        let page = self.shape.page;
        // Tables live until the plan is made.
        let mut tables = Vec::new();
        for &(id, _) in &self.step {
            let ring =
                part.window.as_ref().map(|window| window.table(id, self.pages.tokens(id).unwrap_or(0).div_ceil(page)));
            tables.push((self.pages.table(id)?.to_vec(), ring.unwrap_or_default()));
        }
        let mut segments = Vec::new();
        for (&(id, _), (table, ring)) in self.step.iter().zip(&tables) {
            let tokens = self.pages.tokens(id)?;
            let sealed = part.window.as_ref().map_or(tokens, |window| (window.sealed[id.slot()] * page).min(tokens));
            let mut list = vec![Segment { table, first_page: 0, start: 0, end: sealed }];
            if part.window.is_some() {
                list.push(Segment { table: ring, first_page: 0, start: sealed, end: tokens });
            }
            segments.push(list);
        }
        let (mut batch, mut row) = (Vec::new(), 0);
        for (&(id, count), segments) in self.step.iter().zip(&segments) {
            let position = self.pages.tokens(id)? - count;
            batch.push(Queries { row, count, position, segments });
            row += count;
        }
        let pools = 1 + usize::from(part.window.is_some());
        let plan = Arc::new(plan_attend(&batch, pools, page, queries, sight, splits)?);
        self.planned = Some(Planned { basis, plan: Arc::clone(&plan) });
        Ok(plan)
    }
}
