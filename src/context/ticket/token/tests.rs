use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;

use super::*;

const TENANT: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const SECRET: [u8; 32] = [7; 32];

fn hs() -> Key {
    Key::new(Algorithm::Hs256, SECRET.to_vec()).expect("a key")
}

fn ed() -> (SigningKey, Key) {
    let signer = SigningKey::from_bytes(&[9; 32]);
    let public = signer.verifying_key().to_bytes().to_vec();
    (signer, Key::new(Algorithm::EdDsa, public).expect("a key"))
}

fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

fn sign(secret: &[u8], header: &str, claims: &str) -> String {
    let text = unsigned(header, claims);
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length").chain_update(&text);
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn read(token: &str, key: &Key) -> Result<Claims, Refusal> {
    Token::parse(token.as_bytes())?.verify(key)
}

const HEADER: &str = r#"{"alg":"HS256","kid":"k"}"#;

fn claims(more: &str) -> String {
    format!(r#"{{"tenant":"{TENANT}","exp":2000000000{more}}}"#)
}

#[test]
fn both_algorithms_are_read() {
    assert!(read(&sign(&SECRET, HEADER, &claims("")), &hs()).is_ok());
    let (signer, key) = ed();
    let text = unsigned(r#"{"alg":"EdDSA","kid":"k"}"#, &claims(""));
    let signature = URL_SAFE_NO_PAD.encode(signer.sign(text.as_bytes()).to_bytes());
    assert!(read(&format!("{text}.{signature}"), &key).is_ok());
}

#[test]
fn the_key_decides_the_algorithm() {
    let (_, key) = ed();
    let public = key.bytes.clone();
    assert_eq!(read(&sign(&public, HEADER, &claims("")), &key), Err(Refusal::WrongAlgorithm));
    for alg in ["none", "None", "hs256", "HS512", "EdDSA", ""] {
        let header = format!(r#"{{"alg":"{alg}","kid":"k"}}"#);
        assert_eq!(read(&sign(&SECRET, &header, &claims("")), &hs()), Err(Refusal::WrongAlgorithm), "{alg}");
        let bare = format!("{}.", unsigned(&header, &claims("")));
        assert!(read(&bare, &hs()).is_err(), "{alg}");
    }
    assert_eq!(read(&sign(&[8; 32], HEADER, &claims("")), &hs()), Err(Refusal::WrongSignature));
}

#[test]
fn claims_are_there_once_and_of_their_type() {
    for more in [
        r#","exp":3"#,
        r#","tenant":"x""#,
        r#","\u0065xp":3"#,
        r#","jti":null"#,
        r#","jti":1"#,
        r#","jti":"""#,
        r#","nbf":"1""#,
        r#","nbf":-1"#,
        r#","nbf":null"#,
        r#","aud":1"#,
        r#","aud":[1]"#,
    ] {
        assert_eq!(read(&sign(&SECRET, HEADER, &claims(more)), &hs()), Err(Refusal::BadClaims), "{more}");
    }
    for bad in [
        "{}".to_string(),
        format!(r#"["{TENANT}",2000000000,null,null,null]"#),
        format!(r#"{{"tenant":"{TENANT}"}}"#),
        format!(r#"{{"tenant":"{TENANT}","exp":"2000000000"}}"#),
        format!(r#"{{"tenant":"{TENANT}","exp":1e300}}"#),
        r#"{"tenant":"x","exp":2000000000}"#.to_string(),
        claims("") + "x",
    ] {
        assert_eq!(read(&sign(&SECRET, HEADER, &bad), &hs()), Err(Refusal::BadClaims), "{bad}");
    }
    assert!(
        read(&sign(&SECRET, HEADER, &claims(r#","nbf":1.5,"aud":["a"],"jti":"j","x":1"#)), &hs()).is_ok()
    );
}

#[test]
fn length_and_critical_extensions_are_refused_early() {
    let long = vec![b'a'; LONGEST + 1];
    assert_eq!(Token::parse(&long).err(), Some(Refusal::TooLong));
    let header = r#"{"alg":"HS256","kid":"k","crit":["exp"]}"#;
    assert_eq!(read(&sign(&SECRET, header, &claims("")), &hs()), Err(Refusal::Malformed));
}

#[test]
fn time_and_audience_are_checked() {
    let read = |more: &str| read(&sign(&SECRET, HEADER, &claims(more)), &hs()).expect("signed");
    let end = 2_000_000_000 * MICROSECONDS;
    assert_eq!(read("").check(end - 1, None), Ok(()));
    assert_eq!(read("").check(end, None), Err(Refusal::Expired));
    assert_eq!(read(r#","nbf":5"#).check(5 * MICROSECONDS - 1, None), Err(Refusal::NotYet));
    assert_eq!(read(r#","nbf":5"#).check(5 * MICROSECONDS, None), Ok(()));
    for (more, own, meant) in [
        (r#","aud":"a""#, None, false),
        (r#","aud":"a""#, Some("a"), true),
        (r#","aud":["b","a"]"#, Some("a"), true),
        (r#","aud":"b""#, Some("a"), false),
        ("", Some("a"), false),
    ] {
        assert_eq!(read(more).check(1, own).is_ok(), !more.contains("exp") && meant, "{more} {own:?}");
    }
}

#[test]
fn weak_keys_are_refused() {
    assert!(Key::new(Algorithm::Hs256, vec![0; 31]).is_err());
    assert!(Key::new(Algorithm::EdDsa, vec![0; 31]).is_err());
    assert!(Key::new(Algorithm::EdDsa, vec![0; 32]).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_ticket(bytes: Vec<u8>) {
        prop_assert!(Token::parse(&bytes).and_then(|token| token.verify(&hs())).is_err());
    }

    #[test]
    fn a_changed_byte_is_refused(at: prop::sample::Index, byte: u8) {
        let mut token = sign(&SECRET, HEADER, &claims("")).into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != byte);
        token[at] = byte;
        prop_assert!(Token::parse(&token).and_then(|token| token.verify(&hs())).is_err());
    }
}

mod fuzz;
