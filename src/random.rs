//! Randomness for keys and nonces: the operating system's, a few kilobytes at a time.
//!
//! One `getrandom(2)` costs more than sealing a short message, so each thread keeps a buffer of
//! 4 KiB. A byte is wiped when it is returned, so the buffer does not reveal keys that were made,
//! only those that will be. Cloning a running virtual machine clones the buffer: see SECURITY.md.

use std::cell::RefCell;

use zeroize::Zeroize;

/// The operating system returned no randomness. There is no other source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no randomness")]
pub struct Unavailable;

/// Fills `dest` with random bytes that are used nowhere else.
///
/// # Errors
/// [`Unavailable`]; `dest` must not be used then.
#[inline]
pub fn fill(dest: &mut [u8]) -> Result<(), Unavailable> {
    if dest.len() > SIZE / 4 {
        return system(dest);
    }
    POOL.try_with(|pool| match pool.try_borrow_mut() {
        Ok(mut pool) => pool.take(dest),
        Err(_) => system(dest),
    })
    // The thread is ending and its buffer is gone.
    .unwrap_or_else(|_| system(dest))
}

const SIZE: usize = 4096;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; SIZE], left: 0 }) };
}

/// The last `left` bytes are random and unused; all before them are zero.
struct Pool {
    bytes: [u8; SIZE],
    left: usize,
}

impl Pool {
    #[inline]
    fn take(&mut self, dest: &mut [u8]) -> Result<(), Unavailable> {
        if self.left < dest.len() {
            self.refill()?;
        }
        let start = SIZE - self.left;
        let fresh = self.bytes.get_mut(start..start + dest.len()).ok_or(Unavailable)?;
        dest.copy_from_slice(fresh);
        fresh.zeroize();
        self.left -= dest.len();
        Ok(())
    }

    #[cold]
    fn refill(&mut self) -> Result<(), Unavailable> {
        self.left = 0;
        system(&mut self.bytes)?;
        self.left = SIZE;
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

fn system(dest: &mut [u8]) -> Result<(), Unavailable> {
    #[cfg(test)]
    if seeded::fill(dest) {
        return Ok(());
    }
    getrandom::fill(dest).map_err(|_| Unavailable)
}

/// Reproducible randomness for simulations, so that their failures are reproducible. It only exists
/// in the tests of this crate.
#[cfg(test)]
pub(crate) mod seeded {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// From now on, the randomness of this thread is derived from `seed`.
    pub(crate) fn seed(seed: u64) {
        STATE.set(Some(seed));
        super::POOL.with_borrow_mut(|pool| pool.left = 0);
    }

    pub(super) fn fill(dest: &mut [u8]) -> bool {
        let Some(mut state) = STATE.get() else { return false };
        for bytes in dest.chunks_mut(8) {
            let next = split_mix(&mut state).to_le_bytes();
            bytes.copy_from_slice(&next[..bytes.len()]);
        }
        STATE.set(Some(state));
        true
    }

    /// The next number of SplitMix64 (Steele, Lea and Flood, 2014).
    pub(crate) fn split_mix(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_bytes_come_twice() {
        let draw = || {
            let mut bytes = [0; 28];
            fill(&mut bytes).unwrap();
            bytes
        };
        let mut seen: HashSet<[u8; 28]> = (0..1000).map(|_| draw()).collect();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| (0..1000).map(|_| draw()).collect::<Vec<_>>());
            seen.extend(other.join().unwrap());
        });
        assert_eq!(seen.len(), 2000);
    }

    #[test]
    fn used_bytes_are_wiped_from_the_buffer() {
        let mut pool = Pool { bytes: [0; SIZE], left: 0 };
        let mut out = [0; 100];
        pool.take(&mut out).unwrap();
        assert_ne!(out, [0; 100]);
        assert_eq!(pool.bytes[..100], [0; 100]);
        assert_ne!(pool.bytes[100..200], [0; 100]);
    }

    #[test]
    fn large_requests_bypass_the_buffer() {
        let mut bytes = vec![0; 10_000];
        fill(&mut bytes).unwrap();
        assert!(bytes.iter().any(|&b| b != 0));
    }
}
