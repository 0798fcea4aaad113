//! Memory for a stream's own numbers.

/// Memory at multiples of 64 bytes that grows, and then loses what it held.
#[derive(Default)]
pub struct Room(Vec<[u8; 64]>);

impl Room {
    /// Sees to it that there are so many bytes.
    pub fn grow(&mut self, bytes: usize) {
        // A line more, since memory starts anywhere.
        let lines = bytes.div_ceil(64) + 1;
        if self.0.len() < lines {
            self.0 = Vec::new();
            self.0.resize(lines, [0; 64]);
        }
    }

    /// The first multiple of 64 in it.
    pub fn start(&mut self) -> *mut u8 {
        let start = self.0.as_mut_ptr().cast::<u8>();
        // SAFETY: there is a line more than is needed.
        if self.0.is_empty() { start } else { unsafe { start.add(start.align_offset(64)) } }
    }
}
