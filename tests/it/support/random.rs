//! Numbers that a seed repeats, and the settings of long runs.

/// SplitMix64: the same moments for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// The seed in the variable `name`, which `make soak` sets. Without it the same one in every run, so
/// that a failure can be repeated. It is printed.
pub(crate) fn seed(name: &str) -> u64 {
    let seed = variable(name).unwrap_or(1);
    super::tell(&format!("{name}={seed}"));
    seed
}

#[expect(clippy::disallowed_methods, reason = "settings of the test, not of the service")]
pub(crate) fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}
