//! CRC-32C (Castagnoli), as in RFC 3720 12.1: tells bytes that were written from bytes that were torn.

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let mut value = at as u32;
        let mut bit = 0;
        while bit < 8 {
            // The reversed polynomial 0x1EDC6F41.
            value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
}

/// The checksum of `parts`, as if they were one text.
pub(crate) fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut value = u32::MAX;
    for part in parts {
        for &byte in *part {
            let low = value.to_le_bytes()[0] ^ byte;
            value = value >> 8 ^ TABLE[usize::from(low)];
        }
    }
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_3720_hold() {
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(crc32c(&[b"12345", b"6789"]), 0xe306_9283);
    }
}
