//! Structure from bytes: small numbers, choices and texts, taken from the front, so that a mutated byte changes one
//! decision and leaves the others.

/// What is left of an input. An empty one gives zeros for ever.
pub struct Input<'b>(pub &'b [u8]);

impl<'b> Input<'b> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    /// Two bytes as a number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Eight bytes as a number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Once in `bound` times.
    pub fn rarely(&mut self, bound: usize) -> bool {
        self.below(bound) == bound - 1
    }

    /// One of these.
    pub fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    /// All bytes up to the next zero byte, which is dropped.
    pub fn line(&mut self) -> &'b [u8] {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        let (line, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\0").unwrap_or(rest);
        line
    }

    /// The same as text, each invalid sequence replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.line()).into_owned()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Places at which to cut `len` bytes: all of them if there are few, else some that depend on `seed`.
pub fn cuts(len: usize, seed: u64) -> Vec<usize> {
    if len <= 128 {
        return (0..len).collect();
    }
    let mut state = seed | 1;
    let mut next = || {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    (0..12).map(|_| next() % len).chain(len - 4..len).collect()
}
