//! Which pages belong to which request.
//!
//! Reads requests to grow, shrink and end; makes block tables. Always holds: a page belongs to at most one request, every
//! page is free or owned, and a request that fails changes nothing.

use bitsmith_compiler::{Error, Result};

/// A request, while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u32, u32);

impl RequestId {
    /// Its place among the requests: small numbers, used again after a request has ended.
    pub fn slot(self) -> usize {
        self.0 as usize
    }

    /// It as a number, for callers of other languages: never 0, never the same for two requests of a cache.
    pub fn number(self) -> u64 {
        u64::from(self.1) << 32 | u64::from(self.0)
    }

    /// Back from a number; one that stands for no request is refused where it is used.
    pub fn of_number(number: u64) -> RequestId {
        RequestId(number as u32, (number >> 32) as u32)
    }
}

/// What a request has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Request {
    generation: u32,
    alive: bool,
    tokens: usize,
    /// Page numbers in order; `None` where the window has passed over a page.
    pages: Vec<Option<u32>>,
}

/// The pages of one pool.
#[derive(Clone, Debug)]
pub struct Pages {
    page: usize,
    total: usize,
    /// Free pages; the next one to be taken is the last.
    free: Vec<u32>,
    requests: Vec<Request>,
}

impl Pages {
    /// `total` free pages of `page` tokens.
    pub fn new(page: usize, total: usize) -> Result<Pages> {
        if page == 0 || total > i32::MAX as usize {
            return Err(Error::invalid(format!(
                "{total} pages of {page} tokens; accepted: up to 2^31 pages of some tokens"
            )));
        }
        Ok(Pages { page, total, free: (0..total as u32).rev().collect(), requests: Vec::new() })
    }

    /// Tokens of a page.
    pub fn page(&self) -> usize {
        self.page
    }

    /// Pages that nobody has.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.total
    }

    /// A new request without tokens.
    pub fn open(&mut self) -> RequestId {
        let slot = match self.requests.iter().position(|request| !request.alive) {
            Some(slot) => slot,
            None => {
                self.requests.push(Request::default());
                self.requests.len() - 1
            }
        };
        let request = &mut self.requests[slot];
        *request = Request { generation: request.generation + 1, alive: true, ..Request::default() };
        RequestId(slot as u32, request.generation)
    }

    fn get(&self, id: RequestId) -> Result<&Request> {
        let found = self.requests.get(id.0 as usize).filter(|r| r.alive && r.generation == id.1);
        found.ok_or_else(|| Error::invalid(format!("request {} of generation {} is not open", id.0, id.1)))
    }

    /// Tokens of a request.
    pub fn tokens(&self, id: RequestId) -> Result<usize> {
        Ok(self.get(id)?.tokens)
    }

    /// Its pages in order; `None` for those that were dropped.
    pub fn table(&self, id: RequestId) -> Result<&[Option<u32>]> {
        Ok(&self.get(id)?.pages)
    }

    /// Pages that so many more tokens would take.
    pub fn wanted(&self, id: RequestId, tokens: usize) -> Result<usize> {
        let request = self.get(id)?;
        let end = request.tokens.checked_add(tokens);
        let end = end.ok_or_else(|| Error::invalid(format!("{tokens} more tokens; no cache holds that many")))?;
        Ok(end.div_ceil(self.page).saturating_sub(request.pages.len()))
    }

    /// Makes room for several requests at once. Fails, and changes nothing, where pages run out.
    pub fn grow(&mut self, wanted: &[(RequestId, usize)]) -> Result<()> {
        let mut total = 0usize;
        for (i, &(id, tokens)) in wanted.iter().enumerate() {
            if wanted[..i].iter().any(|&(other, _)| other == id) {
                return Err(Error::invalid(format!("request {} is named twice", id.0)));
            }
            total = total.saturating_add(self.wanted(id, tokens)?);
        }
        if total > self.free.len() {
            return Err(Error::invalid(format!(
                "the cache is full: {total} more pages of {} tokens are needed, {} of {} are free",
                self.page,
                self.free.len(),
                self.total
            )));
        }
        for &(id, tokens) in wanted {
            let count = self.wanted(id, tokens)?;
            let taken = self.free.split_off(self.free.len() - count);
            let request = &mut self.requests[id.0 as usize];
            request.pages.extend(taken.into_iter().rev().map(Some));
            request.tokens += tokens;
        }
        Ok(())
    }

    /// Takes back the newest tokens, so that `tokens` remain; pages that become empty are free again. Fails for more tokens
    /// than there are.
    pub fn truncate(&mut self, id: RequestId, tokens: usize) -> Result<()> {
        let request = self.get(id)?;
        if tokens > request.tokens {
            return Err(Error::invalid(format!(
                "truncating request {} to {tokens} tokens; it has {}",
                id.0, request.tokens
            )));
        }
        let keep = tokens.div_ceil(self.page);
        let request = &mut self.requests[id.0 as usize];
        let dropped = request.pages.split_off(keep.min(request.pages.len()));
        request.tokens = tokens;
        self.free.extend(dropped.into_iter().flatten().rev());
        Ok(())
    }

    /// Frees a request's page `index`, which a sliding window no longer reaches. Nothing happens if it is free already.
    pub fn drop_page(&mut self, id: RequestId, index: usize) -> Result<()> {
        let pages = self.get(id)?.pages.len();
        if index >= pages {
            return Err(Error::invalid(format!("page {index} of request {}, which has {pages}", id.0)));
        }
        if let Some(page) = self.requests[id.0 as usize].pages[index].take() {
            self.free.push(page);
        }
        Ok(())
    }

    /// Ends a request; its pages are free.
    pub fn close(&mut self, id: RequestId) -> Result<()> {
        self.get(id)?;
        let request = &mut self.requests[id.0 as usize];
        request.alive = false;
        request.tokens = 0;
        let pages = std::mem::take(&mut request.pages);
        self.free.extend(pages.into_iter().flatten().rev());
        Ok(())
    }

    /// Checks that every page is free or owned by one request; for tests and for debugging.
    pub fn check(&self) -> Result<()> {
        let mut seen = vec![0u32; self.total];
        let owned = self.requests.iter().flat_map(|request| request.pages.iter().flatten());
        for &page in self.free.iter().chain(owned) {
            seen[page as usize] += 1;
        }
        match seen.iter().position(|&count| count != 1) {
            None => Ok(()),
            Some(page) => Err(Error::Bug {
                message: format!("page {page} is free or owned {} times", seen[page]),
                text: format!("{self:?}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_refuses_and_changes_nothing() {
        let mut pages = Pages::new(16, 4).unwrap();
        let (a, b) = (pages.open(), pages.open());
        pages.grow(&[(a, 40)]).unwrap();
        let error = pages.grow(&[(a, 8), (b, 17)]).unwrap_err().to_string();
        assert!(error.contains("full") && error.contains("1 of 4"), "{error}");
        assert_eq!((pages.tokens(a).unwrap(), pages.tokens(b).unwrap(), pages.free()), (40, 0, 1));
        pages.grow(&[(a, 8), (b, 16)]).unwrap();
        pages.check().unwrap();
        pages.truncate(a, 16).unwrap();
        assert_eq!(pages.free(), 2);
        pages.close(a).unwrap();
        assert!(pages.tokens(a).unwrap_err().to_string().contains("not open"));
        assert!(pages.close(a).is_err() && pages.grow(&[(a, 1)]).is_err());
        pages.check().unwrap();
        let c = pages.open();
        assert!(pages.tokens(c).unwrap() == 0 && c != a);
    }
}
