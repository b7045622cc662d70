//! Sets of addresses, looked up in logarithmic time however many blocks a policy lists.

use std::net::IpAddr;

use ipnet::IpNet;

/// Disjoint ranges, inclusive, in order. The families are apart: `::/0` has no IPv4 address in it (as in Envoy).
#[derive(Debug, Default)]
pub struct AddressSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressSet {
    /// All addresses of these blocks.
    pub fn new<'a>(blocks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut set = Self::default();
        for block in blocks {
            match block {
                IpNet::V4(net) => set.v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => set.v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
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

fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlap = next.0 <= kept.1;
        if overlap {
            kept.1 = kept.1.max(next.1);
        }
        overlap
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
