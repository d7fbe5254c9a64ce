//! Signs tickets, right ones and wrong ones.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A secret of HS256; text, so that it can stand in SQL.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Header and claims, as they are signed.
pub fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

/// A ticket that is signed by a secret, whatever its header says.
pub fn hs256(secret: &[u8], header: &str, claims: &str) -> String {
    let text = unsigned(header, claims);
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length").chain_update(&text);
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn pair() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

/// The public key of [`eddsa`].
pub fn public_key() -> [u8; 32] {
    pair().verifying_key().to_bytes()
}

/// The same, as SQL writes a bytea.
pub fn public_key_sql() -> String {
    format!("'\\x{}'::bytea", public_key().map(|byte| format!("{byte:02x}")).concat())
}

/// A ticket that is signed by an Ed25519 key, whatever its header says.
pub fn eddsa(header: &str, claims: &str) -> String {
    let text = unsigned(header, claims);
    let signature = pair().sign(text.as_bytes()).to_bytes();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Claims for a tenant that hold for that many seconds, and more of them: `,"jti":"1"`.
pub fn claims(tenant: &str, seconds: i64, more: &str) -> String {
    format!(r#"{{"tenant":"{tenant}","exp":{}{more}}}"#, now() as i64 + seconds)
}
