//! Sets of addresses, looked up in logarithmic time however many blocks a policy lists: a million of them are twenty
//! comparisons and, as ranges, 8 MB (IPv4: 8 bytes a block; IPv6: 32; blocks that touch share one range).

use std::net::IpAddr;

use ipnet::IpNet;

/// Disjoint ranges, inclusive, in order. The families are apart: `::/0` has no IPv4 address in it (as in Envoy).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

/// A million ranges are not for a log.
impl std::fmt::Debug for AddressSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AddressSet({} IPv4 ranges, {} IPv6 ranges)", self.v4.len(), self.v6.len())
    }
}

impl AddressSet {
    /// All addresses of these blocks.
    pub fn new<'a>(blocks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut v4: Vec<(u32, u32)> = Vec::new();
        let mut v6: Vec<(u128, u128)> = Vec::new();
        for block in blocks {
            match block {
                IpNet::V4(net) => v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        merge(&mut v4, |last| last.checked_add(1));
        merge(&mut v6, |last| last.checked_add(1));
        Self { v4: v4.into(), v6: v6.into() }
    }

    /// Bytes that the ranges take.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.v4) + size_of_val(&*self.v6)
    }

    /// Whether there is no address in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether a canonical address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => within(&self.v4, a.into()),
            IpAddr::V6(a) => within(&self.v6, a.into()),
        }
    }
}

fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, after: impl Fn(T) -> Option<T>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let touch = after(kept.1).is_none_or(|after| next.0 <= after);
        if touch {
            kept.1 = kept.1.max(next.1);
        }
        touch
    });
}

fn within<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|range| range.0 <= address);
    after > 0 && address <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn families_are_apart() {
        let set = AddressSet::new(&["::/0".parse().unwrap()]);
        assert!(set.contains("2001:db8::1".parse().unwrap()));
        assert!(!set.contains("1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn blocks_that_touch_share_a_range() {
        let blocks = ["10.0.0.0/25", "10.0.0.128/25", "10.0.1.7/32", "255.255.255.255/32", "255.0.0.0/8"];
        let blocks: Vec<IpNet> = blocks.iter().map(|b| b.parse().unwrap()).collect();
        let set = AddressSet::new(&blocks);
        assert_eq!(set.bytes(), 3 * 8);
        assert!(
            set.contains("255.255.255.255".parse().unwrap()) && !set.contains("10.0.1.8".parse().unwrap())
        );
    }

    #[test]
    fn a_million_blocks_are_eight_megabytes() {
        // Every other address of 10.0.0.0/8: none of them touch.
        let blocks: Vec<IpNet> = (0..1_000_000u32)
            .map(|n| IpNet::new(IpAddr::V4((0x0a00_0000 + 2 * n).into()), 32).unwrap())
            .collect();
        let set = AddressSet::new(&blocks);
        assert_eq!(set.bytes(), 8_000_000);
        assert!(
            set.contains("10.30.132.126".parse().unwrap()) && !set.contains("10.30.132.127".parse().unwrap())
        );
    }

    proptest! {
        #[test]
        fn as_one_by_one(blocks in prop::collection::vec((0..64u32, 24..=32u8), 0..12), last in 0..64u32, wide: bool) {
            let address = |n: u32| if wide {
                IpAddr::V6((0x2001_0db8 << 96 | u128::from(n)).into())
            } else {
                IpAddr::V4((0x0a00_0000 | n).into())
            };
            let nets: Vec<IpNet> = blocks
                .iter()
                .map(|(n, len)| IpNet::new(address(*n), if wide { len + 96 } else { *len }).unwrap())
                .collect();
            let asked = address(last);
            prop_assert_eq!(AddressSet::new(&nets).contains(asked), nets.iter().any(|net| net.contains(&asked)));
        }
    }
}
