//! The hashes. They are seeded, so that whoever chooses the keys cannot choose where they collide.
//! The seed is in the table, so the hash is the same in every process.
//!
//! SipHash-1-3: Aumasson, Bernstein, *SipHash: a fast short-input PRF*, INDOCRYPT 2012; one round
//! for each word and three at the end, the variant that most hash tables use.
//!
//! The folded hash multiplies two words to 128 bits and adds the halves without carry, as wyhash
//! (Wang Yi) does. It is several times as fast, and nobody has claimed that it withstands an attacker
//! who can measure times.

/// A seed for a table that nobody has used yet.
pub(crate) fn seed() -> [u64; 2] {
    let mut bytes = [0; 16];
    // Without the system's randomness, takes what differs from table to table and from run to run.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        bytes[..8].copy_from_slice(&(now.tv_nsec as u64).to_ne_bytes());
        let stack = std::ptr::from_ref(&now).addr() as u64;
        bytes[8..].copy_from_slice(&stack.to_ne_bytes());
    }
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    [word(0), word(8)]
}

/// A fast hash of a key's bytes.
#[inline]
pub(crate) fn folded(seed: [u64; 2], bytes: &[u8]) -> u64 {
    // The constants are odd, and about half of their bits are set: digits of the golden ratio and
    // of the square root of two.
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xb504_f333_f9de_6485;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = seed[0] ^ A;
    for &word in words {
        state = fold(state ^ u64::from_le_bytes(word), seed[1] ^ B).rotate_left(29) ^ seed[0];
    }
    let mut end = (bytes.len() as u64) << 56;
    for (i, &byte) in rest.iter().enumerate() {
        end ^= u64::from(byte) << (8 * i);
    }
    fold(fold(state ^ end, seed[1] ^ B) ^ A, seed[0] ^ B)
}

/// SipHash-1-3 of a key's bytes. The hash of a word is inlined: until it is there, nothing is requested from memory,
/// and with a call the processor would look less far ahead for operations to begin in the meantime.
#[inline(always)]
pub(crate) fn sip(seed: [u64; 2], bytes: &[u8]) -> u64 {
    match <&[u8; 8]>::try_from(bytes) {
        Ok(word) => sip_of(seed, word),
        Err(_) => sip_of_many(seed, bytes),
    }
}

#[inline(never)]
fn sip_of_many(seed: [u64; 2], bytes: &[u8]) -> u64 {
    sip_of(seed, bytes)
}

#[inline(always)]
fn sip_of(seed: [u64; 2], bytes: &[u8]) -> u64 {
    let mut v = [
        seed[0] ^ 0x736f_6d65_7073_6575,
        seed[1] ^ 0x646f_7261_6e64_6f6d,
        seed[0] ^ 0x6c79_6765_6e65_7261,
        seed[1] ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<8>();
    for &word in words {
        compress(&mut v, u64::from_le_bytes(word));
    }
    let mut end = (bytes.len() as u64) << 56;
    for (i, &byte) in rest.iter().enumerate() {
        end |= u64::from(byte) << (8 * i);
    }
    compress(&mut v, end);
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn compress(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    v[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It gives the same as std's hasher, which is SipHash-1-3 with a seed of zeros.
    #[test]
    #[allow(
        deprecated,
        reason = "std's SipHash-1-3 is reached by another name only"
    )]
    fn is_siphash_1_3() {
        use std::hash::Hasher;
        let bytes: Vec<u8> = (0..40).collect();
        for len in 0..bytes.len() {
            let mut theirs = std::hash::DefaultHasher::new();
            theirs.write(&bytes[..len]);
            assert_eq!(sip([0, 0], &bytes[..len]), theirs.finish(), "{len} bytes");
        }
    }
}
