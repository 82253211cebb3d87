//! Measures whether a comparison takes the same time wherever its input differs, for the tests
//! beside each comparison of secrets.
//!
//! The method is dudect's (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?", DATE
//! 2017): calls with inputs of two classes take turns at random, and Welch's t-test says whether
//! their times differ. The inputs of one class differ from the right one in their first byte, those
//! of the other in their last one: a comparison that ends early is faster for the first class.
//!
//! `make test` checks only what is accepted. `make constant-time` sets the variable
//! `KMS_PROXY_CONSTANT_TIME_SAMPLES`, and then the times are checked as well.

use std::hint::black_box;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

/// The largest |t| that is taken for chance, as in dudect's paper: with equal times, fewer than one
/// measurement in 100,000 exceeds it.
const LARGEST_T: f64 = 4.5;

/// The slowest calls are left out, 1 in this many: an interrupt took part in them.
const LEFT_OUT: usize = 10;

/// The samples when no times are checked.
const FEW: usize = 100;

/// Checks a comparison with the state `S`: `set` sets the input, which is not measured, and
/// `accepts` compares it. It must accept `right`, and refuse it with any one bit flipped in its
/// first or last byte.
pub(crate) fn check<S>(
    name: &str,
    state: S,
    right: &[u8],
    set: impl Fn(&mut S, &[u8]),
    accepts: impl Fn(&mut S) -> bool,
) {
    let samples = samples();
    let t = measure(samples.unwrap_or(FEW), state, right, set, accepts);
    if let Some(samples) = samples {
        println!("{name}: |t| = {:.2} in {samples} samples", t.abs());
        assert!(
            t.abs() < LARGEST_T,
            "{name}: the time depends on where the input differs: t = {t}"
        );
    }
}

/// The number of samples, if times are to be checked.
#[expect(clippy::disallowed_methods, reason = "`make constant-time` tells its tests by a variable")]
fn samples() -> Option<usize> {
    std::env::var("KMS_PROXY_CONSTANT_TIME_SAMPLES").ok()?.parse().ok()
}

/// The t of a comparison; negative if it is faster for inputs that differ in their first byte.
fn measure<S>(
    samples: usize,
    mut state: S,
    right: &[u8],
    set: impl Fn(&mut S, &[u8]),
    accepts: impl Fn(&mut S) -> bool,
) -> f64 {
    set(&mut state, right);
    assert!(accepts(&mut state), "the right input is refused");
    // Made beforehand: a byte that was just written slows the read of the word that it is in.
    let places = [0, right.len() - 1];
    let inputs: [[Vec<u8>; 8]; 2] = places.map(|place| {
        std::array::from_fn(|bit| {
            let mut input = right.to_vec();
            input[place] ^= 1 << bit;
            input
        })
    });
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let bits = random.next();
        let (class, bit) = ((bits & 1) as usize, (bits >> 8 & 7) as usize);
        set(&mut state, &inputs[class][bit]);
        // What was set has arrived in the cache before the time starts.
        fence(Ordering::SeqCst);
        let start = Instant::now();
        let accepted = black_box(accepts(&mut state));
        let time = start.elapsed().as_nanos() as u64;
        assert!(!accepted, "bit {bit} of byte {} makes no difference", places[class]);
        times.push((time, class));
    }
    times.sort_unstable_by_key(|&(time, _)| time);
    times.truncate(samples - samples / LEFT_OUT);
    welch([0, 1].map(|class| Moments::of(times.iter().filter(|t| t.1 == class).map(|t| t.0))))
}

/// The number, the mean and the variance of times.
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(times: impl Iterator<Item = u64> + Clone) -> Self {
        let count = times.clone().count() as f64;
        let mean = times.clone().map(|time| time as f64).sum::<f64>() / count;
        let squares = times.map(|time| (time as f64 - mean).powi(2)).sum::<f64>();
        Self { count, mean, variance: squares / (count - 1.0) }
    }
}

/// Welch's t of two sets of times.
fn welch([one, other]: [Moments; 2]) -> f64 {
    let error = (one.variance / one.count + other.variance / other.count).sqrt();
    (one.mean - other.mean) / error
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[test]
fn welch_gives_the_t_of_a_textbook() {
    // Times of 20..=24 and of 27..=31: equal variances of 2.5, means 7 apart, 5 of each.
    let t = welch([Moments::of(20..=24), Moments::of(27..=31)]);
    assert!((t + 7.0).abs() < 1e-9, "{t}");
    let t = welch([Moments::of([1, 2, 3, 4].into_iter()), Moments::of([2, 4, 6].into_iter())]);
    // (2.5 - 4) / sqrt(1.666667 / 4 + 4 / 3)
    assert!((t + 1.133_893).abs() < 1e-6, "{t}");
}

/// Without this, a measurement that sees nothing would look like a proof.
#[test]
fn a_comparison_that_ends_early_is_seen_wherever_the_difference_is() {
    let right = [7_u8; 32];
    let early = |state: &mut [u8; 32]| {
        // Not `==`, which compares 32 bytes as one word.
        state.iter().zip(&right).all(|(one, other)| black_box(one) == black_box(other))
    };
    let set = |state: &mut [u8; 32], input: &[u8]| state.copy_from_slice(input);
    let t = measure(samples().unwrap_or(FEW), right, &right, set, early);
    if let Some(samples) = samples() {
        println!("a comparison that ends early: |t| = {:.2} in {samples} samples", t.abs());
        assert!(t < -LARGEST_T, "an early end is not seen: t = {t}");
    }
}
