//! The derivation of a key from a passphrase: the costs of Argon2id, their bounds, and the salt.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use crate::secret::{KeyBytes, SecretBytes};

/// The size of a salt in bytes (RFC 9106, section 3.1).
pub(super) const SALT_LEN: usize = 16;

/// The cost of a derivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    /// Memory in KiB.
    pub(super) memory: u32,
    /// Passes over the memory.
    pub(super) passes: u32,
    /// Lanes: how the memory is divided. One thread fills them all.
    pub(super) lanes: u32,
}

impl Cost {
    /// RFC 9106, section 4, second choice, with one lane: about 235 ms.
    pub(super) const DEFAULT: Self = Self { memory: 64 << 10, passes: 3, lanes: 1 };

    /// The lowest cost that is accepted: the minimum that OWASP recommends.
    const FLOOR: Self = Self { memory: 19 << 10, passes: 2, lanes: 1 };

    /// The highest cost that is accepted, so that a planted record can't exhaust memory or CPU
    /// time: 256 MiB, about 3 s.
    const CAP: Self = Self { memory: 256 << 10, passes: 10, lanes: 4 };

    /// The configured cost; `memory` is in bytes.
    pub(super) fn configured(memory: usize, passes: u32, lanes: u32) -> Result<Self, String> {
        let (floor, cap) = (Self::FLOOR, Self::CAP);
        let kib = u32::try_from(memory / 1024).unwrap_or(u32::MAX);
        if !memory.is_multiple_of(1024) || !(floor.memory..=cap.memory).contains(&kib) {
            let (floor, cap) = (floor.memory / 1024, cap.memory / 1024);
            return Err(format!("memory must be between {floor}MiB and {cap}MiB, in whole KiB"));
        }
        if !(floor.passes..=cap.passes).contains(&passes) {
            return Err(format!("passes must be between {} and {}", floor.passes, cap.passes));
        }
        if !(floor.lanes..=cap.lanes).contains(&lanes) {
            return Err(format!("lanes must be between {} and {}", floor.lanes, cap.lanes));
        }
        Ok(Self { memory: kib, passes, lanes })
    }

    /// Whether guessing costs less than with `other`. Lanes only divide the work.
    pub(super) fn is_weaker_than(self, other: Self) -> bool {
        self.memory < other.memory || self.passes < other.passes
    }

    /// Checks whether a root accepts this cost in a wrap; `own` is the cost of the root's own
    /// wraps.
    pub(super) fn check(self, own: Self) -> Result<(), String> {
        let within =
            |value: u32, floor: u32, own: u32, cap: u32| (floor.min(own)..=cap).contains(&value);
        let (floor, cap) = (Self::FLOOR, Self::CAP);
        if within(self.memory, floor.memory, own.memory, cap.memory)
            && within(self.passes, floor.passes, own.passes, cap.passes)
            && within(self.lanes, floor.lanes, own.lanes, cap.lanes)
        {
            return Ok(());
        }
        Err(format!(
            "it asks for {} KiB, {} passes and {} lanes of Argon2id; {} to {} KiB, {} to {} passes \
             and {} to {} lanes are accepted",
            self.memory,
            self.passes,
            self.lanes,
            floor.memory,
            cap.memory,
            floor.passes,
            cap.passes,
            floor.lanes,
            cap.lanes
        ))
    }
}

/// Cost and salt, as a wrap contains them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KdfParams {
    /// The cost of the derivation.
    pub(super) cost: Cost,
    /// The salt.
    pub(super) salt: [u8; SALT_LEN],
}

impl KdfParams {
    const LEN: usize = 12 + SALT_LEN;

    /// Memory, passes and lanes (4 bytes each, big-endian), then the salt.
    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let Cost { memory, passes, lanes } = self.cost;
        let mut bytes = [0; Self::LEN];
        let parts = [memory, passes, lanes].into_iter().flat_map(u32::to_be_bytes);
        for (byte, part) in bytes.iter_mut().zip(parts.chain(self.salt)) {
            *byte = part;
        }
        bytes
    }

    /// Parses what [`to_bytes`](Self::to_bytes) returned. The cost is not checked yet.
    pub(super) fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut numbers = [0; 3];
        let (costs, salt_bytes) = bytes.split_at(12);
        for (number, bytes) in numbers.iter_mut().zip(costs.as_chunks().0) {
            *number = u32::from_be_bytes(*bytes);
        }
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(salt_bytes);
        let [memory, passes, lanes] = numbers;
        Self { cost: Cost { memory, passes, lanes }, salt }
    }

    /// The 32-byte key; `None` if Argon2 rejects the cost. Blocks for the whole derivation.
    pub(super) fn derive(&self, passphrase: &SecretBytes) -> Option<KeyBytes> {
        let Cost { memory, passes, lanes } = self.cost;
        let params = Params::new(memory, passes, lanes, Some(32)).ok()?;
        // Allocated here so that it is wiped: the key can be computed from it.
        let mut blocks = Zeroizing::new(vec![Block::default(); params.block_count()]);
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(
                passphrase.expose(),
                &self.salt,
                &mut *key,
                blocks.as_mut_slice(),
            )
            .ok()?;
        KeyBytes::from_slice(&*key)
    }
}
