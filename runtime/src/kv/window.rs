//! The newest tokens of each request in f16: a ring of pages per request.
//!
//! Page `p` of a request lies in place `p % ring` of its ring until page `p + ring` begins; then it is quantized into the
//! request's own page. Always holds: pages below `sealed` are quantized, all later ones lie in the ring.

use super::pages::RequestId;
use crate::{Buffer, Device};
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::{Error, Result};

/// The rings of all requests of a layer.
pub struct Window {
    /// Layout of the ring's pages: f16.
    pub layout: KvLayout,
    /// All rings.
    pub pool: Buffer,
    /// Quantized pages of each request.
    pub sealed: Vec<usize>,
    ring: usize,
}

impl Window {
    /// Rings for so many requests, for a layer whose format has a window.
    pub fn new(device: &dyn Device, layout: &KvLayout, requests: usize) -> Result<Window> {
        let ring = layout.format.window as usize / layout.page;
        let plain = KvLayout::new(KvFormat::F16, layout.page, layout.heads, layout.k.head_dim, layout.v.head_dim)?;
        let pool = device.allocate(plain.page_bytes() * ring * requests)?;
        Ok(Window { layout: plain, pool, sealed: vec![0; requests], ring })
    }

    /// Where the first `pages` pages of a request lie, as far as they lie in the ring.
    pub fn table(&self, id: RequestId, pages: usize) -> Vec<Option<u32>> {
        let sealed = self.sealed[id.slot()];
        let place = |page: usize| (id.slot() * self.ring + page % self.ring) as u32;
        (0..pages).map(|page| (page >= sealed).then(|| place(page))).collect()
    }

    /// Makes place for page `page`: adds the pages that are to be quantized to `pairs`.
    pub fn seal(
        &mut self,
        id: RequestId,
        page: usize,
        table: &[Option<u32>],
        tokens: usize,
        pairs: &mut Vec<i32>,
    ) -> Result<()> {
        while self.sealed[id.slot()] + self.ring <= page {
            let sealed = self.sealed[id.slot()];
            let target = table.get(sealed).copied().flatten();
            let target = target.ok_or_else(|| Error::invalid(format!("page {sealed} of a request is not there")))?;
            let source = id.slot() * self.ring + sealed % self.ring;
            pairs.extend([source as i32, target as i32, tokens as i32, 0]);
            self.sealed[id.slot()] += 1;
        }
        Ok(())
    }
}
