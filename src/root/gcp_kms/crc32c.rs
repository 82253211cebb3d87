//! CRC-32C (Castagnoli), with which Cloud KMS checks what crosses the network. A leaf.

/// The reversed polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of `bytes`. What is summed has a few hundred bytes, so there is no table.
pub(super) fn of(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (POLYNOMIAL & (sum & 1).wrapping_neg())
        })
    });
    !sum
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_checksum_of_rfc_3720() {
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, sum) in [
            (&b"123456789"[..], 0xe306_9283),
            (b"", 0),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
        ] {
            assert_eq!(super::of(bytes), sum, "{bytes:?}");
        }
    }
}
