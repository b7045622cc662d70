//! The lines that one worker has gathered and not yet handed over.

/// Bytes at which a batch is handed over.
pub(super) const FULL: usize = 32 * 1024;
/// Room for the line that fills it.
const SPARE: usize = 1024;

/// A worker's own.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    /// Whether there is nothing to hand over.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Where the next line is written.
    pub(super) fn begin(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(FULL + SPARE);
        }
        &mut self.bytes
    }

    /// It is written. Says whether the batch is full.
    pub(super) fn end(&mut self) -> bool {
        self.lines += 1;
        self.bytes.len() >= FULL
    }

    /// All bytes, and how many lines they are.
    pub(super) fn take(&mut self) -> Option<(Vec<u8>, u64)> {
        (!self.is_empty()).then(|| (std::mem::take(&mut self.bytes), std::mem::take(&mut self.lines)))
    }
}
