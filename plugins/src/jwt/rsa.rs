//! RSA keys that must not be trusted, by their numbers alone: too short, an exponent that is none, or made by a generator
//! whose keys can be factored (ROCA, CVE-2017-15361).

/// Bits of a modulus: RFC 7518 section 3.3 and 3.5 ask for at least the first; the second bounds what a check costs.
const BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a key with these numbers, big-endian without leading zeros, is not used.
pub(super) fn weakness(modulus: &[u8], exponent: &[u8]) -> Option<&'static str> {
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !BITS.contains(&bits) {
        return Some("RSA keys have 2048 to 8192 bits");
    }
    if exponent.len() > 4 || matches!(exponent, [] | [1]) || exponent.last().is_none_or(|last| last % 2 == 0)
    {
        return Some("the RSA exponent is not an odd number from 3 to 2^32");
    }
    is_roca(modulus).then_some("the RSA key can be factored (ROCA, CVE-2017-15361)")
}

/// Keys of the faulty generator are, modulo each small prime, a power of 65537; others pass all of these tests with a
/// chance below one in a hundred million.
fn is_roca(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101,
        103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.iter().all(|&prime| {
        let rest = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..prime).any(|_| {
            power = power * 65537 % prime;
            power == rest
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_numbers_are_told() {
        let mut modulus = vec![0xff; 256];
        assert_eq!(weakness(&modulus, &[1, 0, 1]), None);
        assert_eq!(weakness(&modulus, &[3]), None);
        assert!(weakness(&modulus, &[1]).is_some());
        assert!(weakness(&modulus, &[]).is_some());
        assert!(weakness(&modulus, &[1, 0, 0]).is_some());
        assert!(weakness(&modulus, &[1, 0, 0, 0, 1]).is_some());
        modulus[0] = 0x7f;
        assert!(weakness(&modulus, &[1, 0, 1]).is_some());
        assert!(weakness(&[], &[1, 0, 1]).is_some());
        assert!(weakness(&vec![0xff; 1025], &[1, 0, 1]).is_some());
    }
}
