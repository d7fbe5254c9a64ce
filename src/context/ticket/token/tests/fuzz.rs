//! Tickets that are nearly right: put together field by field, so that what is wrong is met as late as it can be.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::option;
use proptest::sample::Index;

use super::*;

/// The key of each algorithm, and what signs for it.
static KEYS: LazyLock<(Key, SigningKey, Key)> = LazyLock::new(|| {
    let (signer, key) = ed();
    (hs(), signer, key)
});

fn key(algorithm: Algorithm) -> &'static Key {
    match algorithm {
        Algorithm::Hs256 => &KEYS.0,
        Algorithm::EdDsa => &KEYS.2,
    }
}

/// Fields of an object: names, and values in JSON.
type Fields = Vec<(String, String)>;

/// A ticket before it is signed, and what it says.
#[derive(Clone, Debug)]
struct Draft {
    algorithm: Algorithm,
    header: Fields,
    claims: Fields,
    says: Claims,
    /// Where white space and escapes are.
    style: u64,
}

impl Draft {
    fn signed(&self) -> String {
        self.signed_as(&object(&self.header, self.style), &object(&self.claims, self.style.reverse_bits()))
    }

    fn signed_as(&self, header: &str, claims: &str) -> String {
        let text = unsigned(header, claims);
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature(self.algorithm, &text)))
    }

    fn set(fields: &mut Fields, name: &str, value: &str) {
        fields.retain(|(known, _)| known != name);
        fields.push((name.into(), value.into()));
    }
}

fn signature(algorithm: Algorithm, text: &str) -> Vec<u8> {
    match algorithm {
        Algorithm::Hs256 => hmac(&SECRET, text),
        Algorithm::EdDsa => KEYS.1.sign(text.as_bytes()).to_bytes().to_vec(),
    }
}

fn hmac(secret: &[u8], text: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length").chain_update(text);
    mac.finalize().into_bytes().to_vec()
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An object in JSON. A bit of `style` for each letter of a name says whether it is escaped, one for each place between
/// two tokens whether there is white space.
fn object(fields: &Fields, style: u64) -> String {
    let bit = |at: usize| style >> (at % 64) & 1 == 1;
    let space = |at: usize| if bit(at) { [" ", "\n", "\t", "\r\n "][at % 4] } else { "" };
    let mut text = String::from("{");
    for (at, (name, value)) in fields.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text += space(at * 3);
        text.push('"');
        for (letter, c) in name.chars().enumerate() {
            if bit(at * 5 + letter) && c.is_ascii() {
                text += &format!("\\u{:04x}", u32::from(c));
            } else {
                let quoted = quote(&c.to_string());
                text += &quoted[1..quoted.len() - 1];
            }
        }
        text.push('"');
        text += space(at * 3 + 1);
        text.push(':');
        text += space(at * 3 + 2);
        text += value;
    }
    text + "}" + space(7)
}

/// A value in JSON of any kind: a number of any size, a text, an object or a list in another, hundreds deep.
fn any_value() -> impl Strategy<Value = String> {
    let nested = |(depth, list): (usize, bool)| {
        let (open, close) = if list { ("[", "]") } else { ("{\"a\":", "}") };
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    };
    prop_oneof![
        proptest::sample::select(vec!["null", "true", "false", "\"\"", "[]", "{}", "1e9999", "-0"])
            .prop_map(String::from),
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
        "\\PC{0,16}".prop_map(|text| quote(&text)),
        (1usize..300, any::<bool>()).prop_map(nested),
    ]
}

/// A good ticket, with fields that nobody knows among those that count, in any order and spelling.
fn draft() -> impl Strategy<Value = Draft> {
    const NOW: std::ops::Range<i64> = 0..4_000_000_000;
    let algorithm = prop_oneof![2 => Just(Algorithm::Hs256), 1 => Just(Algorithm::EdDsa)];
    let audience = prop_oneof![
        "\\PC{0,12}".prop_map(|one| (quote(&one), vec![one])),
        vec("\\PC{0,12}", 0..4).prop_map(|many| (serde_json::Value::from(many.clone()).to_string(), many)),
    ];
    let others = || vec(("\\PC{0,8}", any_value()), 0..3);
    (
        (algorithm, "\\PC{1,20}", any::<[u8; 16]>(), NOW, any::<bool>()),
        (option::of(NOW), option::of(audience), option::of("\\PC{1,40}")),
        (others(), others(), any::<u64>()),
    )
        .prop_map(|(must, may, (header, claims, style))| {
            let ((algorithm, kid, tenant, exp, half), (nbf, aud, jti)) = (must, may);
            let tenant = TenantId::from_bytes(tenant);
            let unknown = |fields: Fields| {
                fields.into_iter().map(|(name, value)| (format!("x{name}"), value)).collect::<Fields>()
            };
            let (mut header, mut claims) = (unknown(header), unknown(claims));
            header.push(("alg".into(), quote(algorithm.as_str())));
            header.push(("kid".into(), quote(&kid)));
            claims.push(("tenant".into(), quote(&tenant.to_string())));
            claims.push(("exp".into(), if half { format!("{exp}.5") } else { exp.to_string() }));
            claims.extend(nbf.map(|nbf| ("nbf".into(), format!("{nbf}"))));
            claims.extend(aud.as_ref().map(|(json, _)| ("aud".into(), json.clone())));
            claims.extend(jti.as_ref().map(|jti| ("jti".into(), quote(jti))));
            for fields in [&mut header, &mut claims] {
                let count = fields.len();
                fields.rotate_left(style as usize % count);
            }
            let says = Claims {
                tenant,
                expires_at: exp * MICROSECONDS + if half { MICROSECONDS / 2 } else { 0 },
                not_before: nbf.map(|nbf| nbf * MICROSECONDS),
                audience: aud.map(|(_, names)| names),
                jti,
            };
            Draft { algorithm, header, claims, says, style }
        })
}

/// A text in JSON that is no text, or a text that is no number, or worse.
const NO_TEXT: [&str; 7] = ["null", "1", "true", "[]", "{}", "[\"HS256\"]", "{\"HS256\":null}"];
const NO_INSTANT: [&str; 11] = [
    "null",
    "\"2000000000\"",
    "true",
    "[2000000000]",
    "{}",
    "-1",
    "253402300800",
    "9223372036854775808",
    "-9223372036854775809",
    "1e300",
    "1e400",
];
const NO_AUDIENCE: [&str; 6] = ["null", "1", "true", "{}", "[1]", "[\"a\",null]"];

/// One flaw of those that must be noticed, and how it is called.
fn flaw(draft: &mut Draft, which: usize, pick: Index) -> (String, Refusal) {
    let Draft { header, claims, .. } = draft;
    let odd = |values: &[&'static str]| values[pick.index(values.len())];
    let long = || quote(&"k".repeat(LONGEST_NAME + 1));
    let twice = |fields: &mut Fields, name: &str| {
        let field = fields.iter().find(|(known, _)| known == name).cloned();
        let field = field.unwrap_or_else(|| (name.into(), "[]".into()));
        fields.extend([field.clone(), field]);
    };
    let mut refusal = if which < 11 { Refusal::Malformed } else { Refusal::BadClaims };
    let (mut before, mut behind) = (["", ""], ["", ""]);
    match which {
        0 => header.retain(|(name, _)| name != "alg"),
        1 => header.retain(|(name, _)| name != "kid"),
        2 => twice(header, "alg"),
        3 => twice(header, "kid"),
        4 => Draft::set(header, "alg", odd(&NO_TEXT)),
        5 => Draft::set(header, "kid", odd(&NO_TEXT)),
        6 => Draft::set(header, "kid", "\"\""),
        7 => Draft::set(header, "kid", &long()),
        8 => header.push(("crit".into(), odd(&NO_TEXT).into())),
        9 => (before[0], behind[0]) = ("[", "]"),
        10 => behind[0] = odd(&["x", "{}", ",", "}"]),
        11 => claims.retain(|(name, _)| name != "tenant"),
        12 => claims.retain(|(name, _)| name != "exp"),
        13 => twice(claims, "tenant"),
        14 => twice(claims, "exp"),
        15 => twice(claims, "nbf"),
        16 => twice(claims, "aud"),
        17 => twice(claims, "jti"),
        18 => Draft::set(claims, "tenant", odd(&NO_TEXT)),
        19 => {
            Draft::set(claims, "tenant", odd(&["\"\"", "\"a\"", "\"aaaaaaaa-0000-4000-8000-00000000000\""]))
        }
        20 => Draft::set(claims, "exp", odd(&NO_INSTANT)),
        21 => Draft::set(claims, "nbf", odd(&NO_INSTANT)),
        22 => Draft::set(claims, "aud", odd(&NO_AUDIENCE)),
        23 => Draft::set(claims, "jti", odd(&NO_TEXT)),
        24 => Draft::set(claims, "jti", "\"\""),
        25 => Draft::set(claims, "jti", &long()),
        26 => (before[1], behind[1]) = ("[", "]"),
        27 => behind[1] = odd(&["x", "{}", ",", "}"]),
        28 => Draft::set(claims, "aud", &format!("{}{}", "[".repeat(200), "]".repeat(200))),
        _ => {
            let own = draft.algorithm.as_str();
            let names = ["none", "None", "", "hs256", "HS512", "HS256 ", "HS256", "EdDSA", "eddsa", "ES256"];
            let names: Vec<&str> = names.into_iter().filter(|name| *name != own).collect();
            Draft::set(header, "alg", &quote(odd(&names)));
            refusal = Refusal::WrongAlgorithm;
        }
    }
    let part = |at: usize, json: String| format!("{}{json}{}", before[at], behind[at]);
    let header = part(0, object(&draft.header, draft.style));
    let claims = part(1, object(&draft.claims, draft.style));
    (draft.signed_as(&header, &claims), refusal)
}

/// How many flaws there are.
const FLAWS: usize = 30;

/// Another text than `text`, near it.
fn changed(text: &str, how: usize, at: Index, letter: char) -> String {
    let place = at.index(text.len());
    let parts: Vec<&str> = text.split('.').collect();
    let with = |parts: &[&str]| parts.join(".");
    match how {
        0 => format!("{}{letter}{}", &text[..place], &text[place + 1..]),
        1 => format!("{}{}", &text[..place], &text[place + 1..]),
        2 => format!("{}{letter}{}", &text[..place], &text[place..]),
        3 => text[..place].into(),
        4 => text[place..].into(),
        5 => format!("{}{}", &text[place..], &text[..place]),
        6 => with(&[parts[0], parts[1], ""]),
        7 => with(&[parts[1], parts[0], parts[2]]),
        8 => with(&[parts[0], parts[1], parts[2], parts[2]]),
        9 => with(&[parts[0], parts[0], parts[2]]),
        10 => with(&[parts[0], parts[1], &format!("{}=", parts[2])]),
        // One bit of what the base64 means.
        _ => {
            let part = place % 3;
            let mut bytes = URL_SAFE_NO_PAD.decode(parts[part]).expect("base64");
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let bytes = URL_SAFE_NO_PAD.encode(bytes);
            let mut parts = parts;
            parts[part] = &bytes;
            with(&parts)
        }
    }
}

proptest! {
    #[test]
    fn fuzz_a_good_ticket_says_what_was_signed(draft in draft()) {
        let text = draft.signed();
        let expected = if text.len() > LONGEST { Err(Refusal::TooLong) } else { Ok(draft.says) };
        prop_assert_eq!(read(&text, key(draft.algorithm)), expected);
    }

    #[test]
    fn fuzz_a_ticket_with_one_flaw_is_refused(mut draft in draft(), which in 0..FLAWS, pick: Index) {
        let (text, refusal) = flaw(&mut draft, which, pick);
        let refusal = if text.len() > LONGEST { Refusal::TooLong } else { refusal };
        prop_assert_eq!(read(&text, key(draft.algorithm)), Err(refusal));
    }

    #[test]
    fn fuzz_a_ticket_that_was_changed_is_refused(
        draft in draft(),
        changes in vec((0usize..12, any::<Index>(), "[A-Za-z0-9_.=+/ -]"), 1..3),
    ) {
        let good = draft.signed();
        let text = changes.into_iter().try_fold(good.clone(), |text, (how, at, letter)| {
            // What an earlier change has left need not have three parts of base64.
            let whole = text.split('.').count() == 3
                && text.split('.').all(|part| URL_SAFE_NO_PAD.decode(part).is_ok_and(|bytes| !bytes.is_empty()));
            whole.then(|| changed(&text, how, at, letter.chars().next().unwrap_or('A'))).ok_or(text)
        });
        let text = text.unwrap_or_else(|text| text);
        prop_assert!(text == good || read(&text, key(draft.algorithm)).is_err(), "{text}");
    }

    #[test]
    fn fuzz_only_the_key_signs(mut draft in draft(), by in 0usize..6, named in 0usize..3, seed in 10u8..) {
        let (own, names) = (draft.algorithm, ["HS256", "EdDSA", "none"]);
        Draft::set(&mut draft.header, "alg", &quote(names[named]));
        let text = unsigned(&object(&draft.header, draft.style), &object(&draft.claims, draft.style));
        let signature = match by {
            0 => hmac(&[seed; 32], &text),
            1 => hmac(&KEYS.2.bytes, &text),
            2 => hmac(b"", &text),
            3 => SigningKey::from_bytes(&[seed; 32]).sign(text.as_bytes()).to_bytes().to_vec(),
            // The key of the other algorithm.
            4 if own == Algorithm::Hs256 => signature(Algorithm::EdDsa, &text),
            4 => signature(Algorithm::Hs256, &text),
            _ => vec![0; if seed % 2 == 0 { 32 } else { 64 }],
        };
        let text = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature));
        prop_assert!(read(&text, key(own)).is_err(), "{text}");
    }

    #[test]
    fn fuzz_whatever_was_signed_is_read_or_refused(
        header in "\\PC{0,20}|\\{(\"(alg|kid|crit)\" ?: ?(\"HS256\"|\"k\"|[0-9]|null|\\[\\]),?){0,4}\\}",
        claims in "\\PC{0,40}|\\{(\"(tenant|exp|nbf|aud|jti)\":(\"aaaaaaaa00004000800000000000000a\"|[0-9]{1,12}|null|\\[\"a\"\\]),?){0,5}\\}",
        ours: bool,
    ) {
        let header = if ours { HEADER } else { header.as_str() };
        if let Ok(says) = read(&sign(&SECRET, header, &claims), &hs()) {
            let field = |name: &str| format!("\"{name}\"");
            prop_assert!(claims.matches(&field("tenant")).count() == 1 && claims.matches(&field("exp")).count() == 1);
            prop_assert_eq!(says.tenant.to_string(), TENANT);
        }
    }

    #[test]
    fn fuzz_what_workers_get_reads_back(tenant: [u8; 16], expires_at: i64, key: [u8; 32]) {
        let carried = Carried(TenantId::from_bytes(tenant), Ticket { expires_at, key });
        prop_assert_eq!(Carried::parse(&carried.to_string()), Some(carried));
    }

    #[test]
    fn fuzz_what_workers_get_has_one_spelling(
        tenant: [u8; 16],
        expires_at: i64,
        key: [u8; 32],
        edits in vec((any::<Index>(), "[-+0-9a-fA-F {}]|\\PC", 0usize..3), 0..4),
    ) {
        let carried = Carried(TenantId::from_bytes(tenant), Ticket { expires_at, key });
        let mut text: Vec<char> = carried.to_string().chars().collect();
        for (at, edit, how) in edits {
            let at = at.index(text.len());
            match how {
                0 => drop(text.splice(at..at + 1, edit.chars())),
                1 => drop(text.splice(at..at, edit.chars())),
                _ => drop(text.remove(at)),
            }
        }
        let text: String = text.into_iter().collect();
        if let Some(read) = Carried::parse(&text) {
            prop_assert_eq!(read.to_string(), text);
        }
    }
}
