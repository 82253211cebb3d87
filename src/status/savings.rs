//! What this process saved: root calls, and their price. Plain data.

use serde::{Deserialize, Serialize};

/// What this process saved since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Savings {
    /// Calls of roots that were made.
    pub root_calls: u64,
    /// The sum over all chains of the calls that one call per operation would have taken, minus
    /// those that were made for the chain.
    pub avoided: u64,
    /// What the avoided calls would have cost, in at most 5 digits after the point.
    pub saved: f64,
    /// The price of 10,000 root calls.
    pub price_per_10000: f64,
    /// The currency of both.
    pub currency: String,
    /// Root calls in each minute of the last hour, the latest last.
    pub root_calls_per_minute: Vec<u64>,
    /// The same of the avoided calls.
    pub avoided_per_minute: Vec<u64>,
}

/// The smallest part of an amount of money. A smaller one would be written with an exponent.
const PARTS: f64 = 100_000.0;

impl Savings {
    /// Values the avoided calls at `price` for 10,000.
    #[expect(clippy::cast_precision_loss, reason = "an amount of money need not be exact")]
    pub fn value_at(&mut self, price: f64, currency: &str) {
        self.saved = (self.avoided as f64 * price / 10_000.0 * PARTS).round() / PARTS;
        self.price_per_10000 = price;
        currency.clone_into(&mut self.currency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn avoided_calls_have_their_price_in_a_few_digits() {
        for (avoided, price, expected) in [
            (5_000_000, 0.03, "15.0"),
            (7, 0.03, "0.00002"),
            (4, 0.03, "0.00001"),
            (1, 0.03, "0.0"),
            (4_999, 0.03, "0.015"),
            (99, 3_000.0, "29.7"),
            (u64::MAX, 0.0, "0.0"),
        ] {
            let mut savings = Savings { avoided, ..Savings::default() };
            savings.value_at(price, "EUR");
            let json = serde_json::to_string(&savings).unwrap();
            assert!(json.contains(&format!("\"saved\":{expected},")), "{avoided}: {json}");
            assert_eq!((savings.price_per_10000, &*savings.currency), (price, "EUR"));
        }
    }
}
