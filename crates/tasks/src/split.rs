//! Which problems are held out: a fixed hash, so that no run ever trains on another's test.

/// True for about one in ten. Equal `values` (order included) always fall on the same side, so
/// callers sort what may be shown in several orders. `salt` keeps tasks apart.
pub(crate) fn is_held_out(salt: u64, values: impl IntoIterator<Item = u32>) -> bool {
    let hash = values
        .into_iter()
        .fold(mix(salt), |hash, value| mix(hash ^ u64::from(value)));
    hash.is_multiple_of(10)
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014) with its increment added first.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two outputs of SplitMix64 seeded with 1234567, as published with its test vectors.
    #[test]
    fn mix_is_splitmix64() {
        let gamma = 0x9e37_79b9_7f4a_7c15_u64;
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
        assert_eq!(
            mix(1_234_567_u64.wrapping_add(gamma)),
            3_203_168_211_198_807_973
        );
    }

    #[test]
    fn one_in_ten_is_held_out() {
        let held_out = (0..100_000).filter(|&n| is_held_out(7, [n, 5])).count();
        // Binomial(100,000, 0.1) has a standard deviation of 95.
        assert!((9_500..10_500).contains(&held_out), "{held_out}");
    }
}
