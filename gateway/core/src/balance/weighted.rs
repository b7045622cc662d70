//! Drawing by weight in constant time (M. Vose's alias method), in integers.

/// `random` as a number below `n`, without the bias and the cost of a remainder; `None` if `n` is 0.
pub fn below(n: u64, random: u64) -> Option<u64> {
    (n > 0).then(|| ((u128::from(n) * u128::from(random)) >> 64) as u64)
}

/// A table of columns, each shared by at most two.
#[derive(Clone, Debug)]
pub struct Alias {
    columns: Vec<Column>,
}

/// `own` if the draw is below `limit`, else `other`.
#[derive(Clone, Copy, Debug)]
struct Column {
    limit: u64,
    other: u32,
}

impl Alias {
    /// For these weights, of which there must be at least one and none 0.
    pub fn new(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Self {
        let n = weights.len() as u128;
        let total: u128 = weights.clone().map(u128::from).sum();
        // Scaled so that the mean is `total`: a column holds exactly that much.
        let mut rest: Vec<u128> = weights.map(|w| u128::from(w) * n).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..rest.len()).partition(|i| rest[*i] < total);
        let mut columns: Vec<Column> =
            (0..rest.len()).map(|i| Column { limit: u64::MAX, other: i as u32 }).collect();
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            columns[less] = Column { limit: ((rest[less] << 32) / total) as u64, other: more as u32 };
            rest[more] -= total - rest[less];
            if rest[more] < total {
                large.pop();
                small.push(more);
            }
        }
        Self { columns }
    }

    /// The index that belongs to a random number.
    pub fn draw(&self, random: u64) -> usize {
        // The product's high half chooses the column, the upper bits of its low half the part of the column.
        let product = u128::from(random) * self.columns.len() as u128;
        let at = (product >> 64) as usize;
        let column = self.columns[at];
        if (product as u64) >> 32 < column.limit { at } else { column.other as usize }
    }
}
