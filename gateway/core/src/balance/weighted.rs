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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The probability of each index, read off the table.
    fn probabilities(weights: &[u32]) -> Vec<f64> {
        let alias = Alias::new(weights.iter().copied());
        let n = weights.len() as f64;
        let mut p = vec![0.0; weights.len()];
        for (at, column) in alias.columns.iter().enumerate() {
            let own = (column.limit as f64 / (1u64 << 32) as f64).min(1.0);
            p[at] += own / n;
            p[column.other as usize] += (1.0 - own) / n;
        }
        p
    }

    #[test]
    fn nothing_is_below_zero() {
        assert_eq!(below(0, 5), None);
        assert_eq!((below(3, 0), below(3, u64::MAX)), (Some(0), Some(2)));
    }

    proptest! {
        #[test]
        fn probabilities_are_as_the_weights(weights in prop::collection::vec(1..=1_000_000u32, 1..64)) {
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (p, weight) in probabilities(&weights).iter().zip(&weights) {
                prop_assert!((p - f64::from(*weight) / total).abs() < 1e-8);
            }
        }

        #[test]
        fn draws_are_in_range(weights in prop::collection::vec(1..9u32, 1..9), random: u64) {
            prop_assert!(Alias::new(weights.iter().copied()).draw(random) < weights.len());
        }
    }
}
