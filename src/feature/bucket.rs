//! Which share of the tenants a tenant belongs to.
//!
//! Pure: a salt and an id in, a bucket out.
//!
//! `murmur3_32("<salt>:<uuid>") mod 100 000`, the uuid in its canonical text: any client can compute it.

use crate::tenant::{CANONICAL_LEN, TenantId};

/// Buckets that tenants are spread over. A bucket is a thousandth of a percent.
pub const BUCKETS: u32 = 100_000;

/// The bucket of a tenant, below [`BUCKETS`]. It depends on nothing but the salt and the id.
pub fn bucket(salt: &str, tenant: TenantId) -> u32 {
    let mut text = Vec::with_capacity(salt.len() + 1 + CANONICAL_LEN);
    text.extend_from_slice(salt.as_bytes());
    text.push(b':');
    text.extend_from_slice(tenant.write_canonical(&mut [0; CANONICAL_LEN]).as_bytes());
    murmur3_32(&text, 0) % BUCKETS
}

/// A share of the tenants, in buckets: 0 is nobody, [`BUCKETS`] everybody.
///
/// A tenant is in a share if its bucket is below it, so a larger share has everybody of a smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Nobody.
    pub const NONE: Share = Share(0);

    /// Everybody.
    pub const ALL: Share = Share(BUCKETS);

    /// The share of that percentage, to a thousandth of a percent; `None` for one below 0, above 100 or no number.
    pub fn of_percent(percent: f64) -> Option<Share> {
        (0.0..=100.0).contains(&percent).then(|| Share((percent * 1000.0).round() as u32))
    }

    /// The percentage.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// Whether a tenant of that bucket is in it.
    pub fn has(self, bucket: u32) -> bool {
        bucket < self.0
    }

    /// Of that many things the part that goes with the share, at least one.
    pub fn of(self, things: u32) -> u32 {
        let part = (u64::from(things) * u64::from(self.0)).div_ceil(u64::from(BUCKETS));
        (part as u32).max(1)
    }
}

/// MurmurHash3_x86_32 of Austin Appleby, which is in the public domain.
pub fn murmur3_32(bytes: &[u8], seed: u32) -> u32 {
    fn mix(block: u32) -> u32 {
        block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593)
    }
    let mut hash = seed;
    let (blocks, rest) = bytes.as_chunks::<4>();
    for block in blocks {
        hash = (hash ^ mix(u32::from_le_bytes(*block))).rotate_left(13);
        hash = hash.wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    let tail = rest.iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
    // The published length is one of 32 bits.
    hash ^= mix(tail) ^ bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts, seeds and hashes that the Wikipedia page on MurmurHash publishes.
    const PUBLISHED: [(&str, u32, u32); 11] = [
        ("", 0, 0),
        ("", 1, 0x514e_28b7),
        ("", 0xffff_ffff, 0x81f1_6f39),
        ("test", 0, 0xba6b_d213),
        ("test", 0x9747_b28c, 0x704b_81dc),
        ("Hello, world!", 0, 0xc036_3e43),
        ("Hello, world!", 0x9747_b28c, 0x2488_4cba),
        ("The quick brown fox jumps over the lazy dog", 0, 0x2e4f_f723),
        ("The quick brown fox jumps over the lazy dog", 0x9747_b28c, 0x2fa8_26cd),
        ("aaaa", 0x9747_b28c, 0x5a97_808a),
        ("a", 0x9747_b28c, 0x7fa0_9ea6),
    ];

    #[test]
    fn the_published_vectors_hold() {
        for (text, seed, hash) in PUBLISHED {
            assert_eq!(murmur3_32(text.as_bytes(), seed), hash, "{text:?} {seed:#x}");
        }
    }

    /// The test of the hash's author (SMHasher, VerificationTest): one number for keys of every length to 255.
    #[test]
    fn the_verification_value_of_smhasher_holds() {
        let key: Vec<u8> = (0..=255).collect();
        let hashes: Vec<u8> =
            (0..256u32).flat_map(|n| murmur3_32(&key[..n as usize], 256 - n).to_le_bytes()).collect();
        assert_eq!(murmur3_32(&hashes, 0), 0xb0f5_7ee3);
    }

    fn tenants(number: u64) -> impl Iterator<Item = TenantId> {
        // As an application makes them that counts: the worst for a hash of the bytes.
        (0..number).map(|n| {
            let mut bytes = [0; 16];
            bytes[8..].copy_from_slice(&n.to_be_bytes());
            TenantId::from_bytes(bytes)
        })
    }

    /// Chi-square of 100 000 tenants over 100 shares of one percent: beyond 148.2 is once in a thousand, were it chance.
    #[test]
    fn tenants_are_spread_evenly() {
        for salt in ["new_checkout", "dark-mode", "x", ""] {
            let mut counts = [0u32; 100];
            for tenant in tenants(100_000) {
                counts[(bucket(salt, tenant) / 1000) as usize] += 1;
            }
            let chi: f64 = counts.iter().map(|count| (f64::from(*count) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 148.2, "{salt}: {chi}");
            assert!(chi > 61.0, "{salt}: {chi}, evener than chance");
        }
    }

    /// Who is in ten percent of one salt is in ten percent of another no more often than others.
    #[test]
    fn salts_are_independent() {
        let ten = Share::of_percent(10.0).unwrap();
        let both = tenants(100_000).filter(|t| ten.has(bucket("a", *t)) && ten.has(bucket("b", *t))).count();
        assert!((880..1120).contains(&both), "{both}");
    }

    proptest! {
        #[test]
        fn a_larger_share_has_everybody_of_a_smaller_one(bytes: [u8; 16], salt in "\\PC{0,20}", a in 0.0..=100.0, b in 0.0..=100.0) {
            let (small, large) = if a < b { (a, b) } else { (b, a) };
            let (small, large) = (Share::of_percent(small).unwrap(), Share::of_percent(large).unwrap());
            let bucket = bucket(&salt, TenantId::from_bytes(bytes));
            prop_assert!(bucket < BUCKETS);
            prop_assert!(!small.has(bucket) || large.has(bucket));
            prop_assert!(Share::ALL.has(bucket) && !Share::NONE.has(bucket));
        }

        #[test]
        fn a_share_of_things_is_at_least_one_and_at_most_all(things in 1u32..10_000, percent in 0.0..=100.0) {
            let part = Share::of_percent(percent).unwrap().of(things);
            prop_assert!((1..=things).contains(&part));
        }
    }

    #[test]
    fn what_is_no_percentage_is_no_share() {
        for percent in [-0.001, 100.001, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(Share::of_percent(percent), None, "{percent}");
        }
        assert_eq!(Share::of_percent(100.0), Some(Share::ALL));
        assert_eq!(Share::of_percent(33.333).map(Share::percent), Some(33.333));
    }
}
