//! A signed ticket as text: its parts, its signature, its claims.
//!
//! A ticket is a JSON Web Token (RFC 7519) in the compact form of RFC 7515. The key decides the algorithm (RFC 8725,
//! section 3.1): a header that names another one is refused. Claims are looked at only after the signature held.
//!
//! Pure: nothing here knows PostgreSQL's API.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::tenant::TenantId;

/// The longest ticket that is looked at, in bytes. One with all claims has about 400.
pub const LONGEST: usize = 4096;

/// The longest `kid` and `jti`, in bytes.
pub const LONGEST_NAME: usize = 255;

/// The shortest HS256 secret, in bytes: as long as the hash (RFC 7518, section 3.2).
pub const SHORTEST_SECRET: usize = 32;

/// The first second of the year 10000: no `exp` reaches it.
const END_OF_TIME: i64 = 253_402_300_800;

const MICROSECONDS: i64 = 1_000_000;

/// How a ticket is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256: issuer and database share a secret.
    Hs256,
    /// Ed25519: the database has the public key only.
    EdDsa,
}

impl Algorithm {
    /// The name in headers and in the table of keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of this very name; `none` and all others are none.
    pub fn parse(name: &str) -> Option<Algorithm> {
        [Algorithm::Hs256, Algorithm::EdDsa].into_iter().find(|algorithm| algorithm.as_str() == name)
    }
}

/// What tickets are checked with.
pub struct Key {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Key {
    /// A secret of HS256 or a public key of Ed25519.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as a sentence that does not show it.
    pub fn new(algorithm: Algorithm, bytes: Vec<u8>) -> Result<Key, &'static str> {
        match algorithm {
            Algorithm::Hs256 if bytes.len() < SHORTEST_SECRET => {
                Err("A secret of HS256 has at least 32 bytes.")
            }
            Algorithm::Hs256 => Ok(Key { algorithm, bytes }),
            Algorithm::EdDsa => {
                let point =
                    bytes.as_slice().try_into().map_err(|_| "A public key of Ed25519 has 32 bytes.")?;
                match ed25519_dalek::VerifyingKey::from_bytes(point) {
                    // Anybody can sign for a point of small order.
                    Ok(public) if !public.is_weak() => Ok(Key { algorithm, bytes }),
                    _ => Err("The bytes are no public key of Ed25519."),
                }
            }
        }
    }

    fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.algorithm {
            Algorithm::Hs256 => Hmac::<Sha256>::new_from_slice(&self.bytes)
                .is_ok_and(|mac| mac.chain_update(message).verify_slice(signature).is_ok()),
            Algorithm::EdDsa => {
                let public = self.bytes.as_slice().try_into().ok();
                let public = public.and_then(|point| ed25519_dalek::VerifyingKey::from_bytes(point).ok());
                let signature = ed25519_dalek::Signature::from_slice(signature).ok();
                public.zip(signature).is_some_and(|(key, signed)| key.verify_strict(message, &signed).is_ok())
            }
        }
    }

    /// Tells this key under this name from every other.
    pub fn fingerprint(&self, kid: &str) -> [u8; 32] {
        digest(&[kid.as_bytes(), self.algorithm.as_str().as_bytes(), &self.bytes])
    }
}

/// A hash of the parts that knows where each ends.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Why a ticket is refused: for the log of the server, never for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Longer than [`LONGEST`].
    TooLong,
    /// Not three parts of base64url, or a header that cannot be used.
    Malformed,
    /// No key of that `kid`, or not at this time.
    UnknownKey,
    /// The header names another algorithm than the key has.
    WrongAlgorithm,
    /// The signature is not that of the key.
    WrongSignature,
    /// A claim is missing, twice there, or of a wrong type.
    BadClaims,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come.
    NotYet,
    /// It is for somebody else.
    WrongAudience,
    /// The `jti` was used.
    Replayed,
}

impl Refusal {
    /// The reason in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::TooLong => "it is too long",
            Refusal::Malformed => "it is no signed token with a kid",
            Refusal::UnknownKey => "no signing key of its kid is in force",
            Refusal::WrongAlgorithm => "its algorithm is not that of the key",
            Refusal::WrongSignature => "the signature is wrong",
            Refusal::BadClaims => "a claim is missing, repeated or of a wrong type",
            Refusal::Expired => "it has expired",
            Refusal::NotYet => "it is not valid yet",
            Refusal::WrongAudience => "it is for another audience",
            Refusal::Replayed => "it was used before",
        }
    }
}

/// A ticket in its parts, not checked yet.
#[derive(Debug)]
pub struct Token<'a> {
    header: Header,
    signed: &'a [u8],
    payload: &'a [u8],
    signature: Vec<u8>,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: String,
    /// Extensions that must be understood. None is.
    #[serde(default, deserialize_with = "present")]
    crit: Option<serde::de::IgnoredAny>,
}

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// For whom the session may act.
    pub tenant: TenantId,
    /// Until when, in microseconds since 1970.
    pub expires_at: i64,
    /// From when on, in microseconds since 1970.
    pub not_before: Option<i64>,
    /// Who it is for.
    pub audience: Option<Vec<String>>,
    /// Its name, if it can be used once only.
    pub jti: Option<String>,
}

// serde refuses a field that comes twice, also when one of the two is written with escapes.
#[derive(Deserialize)]
struct RawClaims {
    tenant: String,
    exp: serde_json::Number,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<serde_json::Number>,
    #[serde(default, deserialize_with = "present")]
    aud: Option<Audience>,
    #[serde(default, deserialize_with = "present")]
    jti: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// A claim that is there has its type: null is not the same as absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// An object in JSON. serde would take the values of an array for fields, too.
fn object<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Option<T> {
    if json.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(json).ok()
}

impl<'a> Token<'a> {
    /// Takes a ticket apart.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooLong`], before anything else is looked at, or [`Refusal::Malformed`].
    pub fn parse(text: &'a [u8]) -> Result<Token<'a>, Refusal> {
        if text.len() > LONGEST {
            return Err(Refusal::TooLong);
        }
        let mut dots = text.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
        let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
            return Err(Refusal::Malformed);
        };
        let decode = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed);
        let header: Header = object(&decode(&text[..first])?).ok_or(Refusal::Malformed)?;
        if header.crit.is_some() || header.kid.is_empty() || header.kid.len() > LONGEST_NAME {
            return Err(Refusal::Malformed);
        }
        Ok(Token {
            header,
            signed: &text[..second],
            payload: &text[first + 1..second],
            signature: decode(&text[second + 1..])?,
        })
    }

    /// The name of the key that it claims to be signed with: only to look the key up.
    pub fn kid(&self) -> &str {
        &self.header.kid
    }

    /// What it says, if the key has signed it.
    ///
    /// # Errors
    ///
    /// [`Refusal::WrongAlgorithm`], [`Refusal::WrongSignature`], [`Refusal::BadClaims`].
    pub fn verify(&self, key: &Key) -> Result<Claims, Refusal> {
        if self.header.alg != key.algorithm.as_str() {
            return Err(Refusal::WrongAlgorithm);
        }
        if !key.signed(self.signed, &self.signature) {
            return Err(Refusal::WrongSignature);
        }
        let payload = URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| Refusal::Malformed)?;
        Claims::read(&payload).ok_or(Refusal::BadClaims)
    }
}

impl Claims {
    fn read(json: &[u8]) -> Option<Claims> {
        let raw: RawClaims = object(json)?;
        let not_before = match &raw.nbf {
            Some(nbf) => Some(instant(nbf)?),
            None => None,
        };
        if raw.jti.as_ref().is_some_and(|jti| jti.is_empty() || jti.len() > LONGEST_NAME) {
            return None;
        }
        Some(Claims {
            tenant: TenantId::parse(&raw.tenant).ok()?,
            expires_at: instant(&raw.exp)?,
            not_before,
            audience: raw.aud.map(|aud| match aud {
                Audience::One(one) => vec![one],
                Audience::Many(many) => many,
            }),
            jti: raw.jti,
        })
    }

    /// Whether it can be used at `now` (microseconds since 1970) by `audience`. A ticket for somebody is refused
    /// by a database that has no name (RFC 7519, section 4.1.3); one for nobody by a database that has one.
    ///
    /// # Errors
    ///
    /// [`Refusal::Expired`], [`Refusal::NotYet`], [`Refusal::WrongAudience`].
    pub fn check(&self, now: i64, audience: Option<&str>) -> Result<(), Refusal> {
        if now >= self.expires_at {
            return Err(Refusal::Expired);
        }
        if self.not_before.is_some_and(|from| now < from) {
            return Err(Refusal::NotYet);
        }
        let meant = match (&self.audience, audience) {
            (None, None) => true,
            (Some(named), Some(own)) => named.iter().any(|name| name == own),
            _ => false,
        };
        if meant { Ok(()) } else { Err(Refusal::WrongAudience) }
    }

    /// What a single use is remembered by.
    pub fn use_digest(&self, kid: &str) -> Option<[u8; 32]> {
        self.jti.as_ref().map(|jti| digest(&[kid.as_bytes(), jti.as_bytes()]))
    }
}

/// A NumericDate (RFC 7519, section 2) in microseconds; fractions are cut.
fn instant(number: &serde_json::Number) -> Option<i64> {
    let in_range = |seconds: i64| (0..END_OF_TIME).contains(&seconds);
    if let Some(seconds) = number.as_i64() {
        return in_range(seconds).then_some(seconds * MICROSECONDS);
    }
    let seconds = number.as_f64()?;
    (seconds >= 0.0 && seconds < END_OF_TIME as f64).then_some((seconds * MICROSECONDS as f64) as i64)
}

/// What a session keeps of an accepted ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Until when it holds, in microseconds since 2000-01-01, the server's own count.
    pub expires_at: i64,
    /// Which key it was accepted with.
    pub key: [u8; 32],
}

/// A ticket and its tenant as parallel workers get them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried(pub TenantId, pub Ticket);

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.0, self.1.expires_at)?;
        self.1.key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Carried {
    /// Reads what `Display` writes, and no other spelling of it.
    pub fn parse(text: &str) -> Option<Carried> {
        let mut parts = text.split(' ');
        let (tenant, expires_at, hex) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || hex.len() != 64 || !hex.is_ascii() {
            return None;
        }
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
        }
        let ticket = Ticket { expires_at: expires_at.parse().ok()?, key };
        let carried = Carried(TenantId::parse(tenant).ok()?, ticket);
        (carried.to_string() == text).then_some(carried)
    }
}

#[cfg(test)]
mod tests;
