//! XXH64, the stable hash of everything that must fall the same way in every process and on every machine.
//!
//! The algorithm is public and frozen (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>), so a user's
//! side of a split can be computed with any tool. It is not keyed: whoever may choose the input may choose the output.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// The XXH64 hash of `data`.
pub fn xxh64(data: &[u8], seed: u64) -> u64 {
    let (stripes, mut rest) = data.as_chunks::<32>();
    let mut h = if stripes.is_empty() { seed.wrapping_add(P5) } else { long(stripes, seed) };
    h = h.wrapping_add(data.len() as u64);
    while let Some((lane, tail)) = rest.split_first_chunk::<8>() {
        h = (h ^ round(0, u64::from_le_bytes(*lane))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        rest = tail;
    }
    if let Some((lane, tail)) = rest.split_first_chunk::<4>() {
        let lane = u64::from(u32::from_le_bytes(*lane));
        h = (h ^ lane.wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = tail;
    }
    for byte in rest {
        h = (h ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    avalanche(h)
}

fn long(stripes: &[[u8; 32]], seed: u64) -> u64 {
    let mut acc =
        [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
    for stripe in stripes {
        let (lanes, _) = stripe.as_chunks::<8>();
        for (acc, lane) in acc.iter_mut().zip(lanes) {
            *acc = round(*acc, u64::from_le_bytes(*lane));
        }
    }
    let h = acc.iter().zip([1, 7, 12, 18]).fold(0u64, |h, (acc, by)| h.wrapping_add(acc.rotate_left(by)));
    acc.iter().fold(h, |h, acc| (h ^ round(0, *acc)).wrapping_mul(P1).wrapping_add(P4))
}

fn round(acc: u64, lane: u64) -> u64 {
    acc.wrapping_add(lane.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

fn avalanche(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(P2);
    h = (h ^ (h >> 29)).wrapping_mul(P3);
    h ^ (h >> 32)
}

#[cfg(test)]
mod tests {
    use super::xxh64;

    /// The sanity checks of the reference implementation: prefixes of one generated buffer.
    #[test]
    fn reference_vectors() {
        const PRIME32: u64 = 2_654_435_761;
        let mut generator = PRIME32;
        let buffer: Vec<u8> = (0..256)
            .map(|_| {
                let byte = (generator >> 56) as u8;
                generator = generator.wrapping_mul(11_400_714_785_074_694_797);
                byte
            })
            .collect();
        for (len, seed, expected) in [
            (0, 0, 0xEF46_DB37_51D8_E999),
            (0, PRIME32, 0xAC75_FDA2_929B_17EF),
            (1, 0, 0xE934_A84A_DB05_2768),
            (1, PRIME32, 0x5014_6076_43A9_B4C3),
            (4, 0, 0x9136_A0DC_A574_57EE),
            (14, 0, 0x8282_DCC4_994E_35C8),
            (14, PRIME32, 0xC3BD_6BF6_3DEB_6DF0),
            (222, 0, 0xB641_AE8C_B691_C174),
            (222, PRIME32, 0x20CB_8AB7_AE10_C14A),
        ] {
            assert_eq!(xxh64(&buffer[..len], seed), expected, "{len} bytes, seed {seed}");
        }
    }

    #[test]
    fn well_known_texts() {
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
    }
}
