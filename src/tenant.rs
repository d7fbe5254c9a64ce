//! A tenant's id and status, as values: text is turned into them once, at the edge.
//!
//! Pure: nothing here knows PostgreSQL's API.

use std::error::Error;
use std::fmt;

/// Length of the canonical text of a [`TenantId`], in bytes.
pub const CANONICAL_LEN: usize = 36;

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The id of a tenant: the sixteen bytes of a PostgreSQL `uuid`, in its byte order.
///
/// Any value is a valid id, the nil uuid too; whether a tenant of that id exists is the
/// registry's business. Ids sort as PostgreSQL sorts `uuid` (by bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId([u8; 16]);

/// The text is not a uuid in any spelling that PostgreSQL's `uuid` type takes.
///
/// It does not carry the text: the caller has it, and only the caller knows whether to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseTenantIdError;

impl fmt::Display for ParseTenantIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid tenant id: not a uuid")
    }
}

impl Error for ParseTenantIdError {}

impl TenantId {
    /// The id made of these bytes, as they stand in a PostgreSQL `uuid` datum.
    pub const fn from_bytes(bytes: [u8; 16]) -> TenantId {
        TenantId(bytes)
    }

    /// The sixteen bytes, as they stand in a PostgreSQL `uuid` datum.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads an id in any spelling that PostgreSQL's `uuid` input takes (`string_to_uuid` in
    /// `src/backend/utils/adt/uuid.c`; documentation, section 8.12): 32 hexadecimal digits of
    /// either case, optionally within one pair of braces, with an optional hyphen after each
    /// group of four digits but the last. Does not allocate.
    ///
    /// # Errors
    ///
    /// [`ParseTenantIdError`] for all other text, so also for white space around the digits,
    /// a NUL byte and the `urn:uuid:` prefix. What this accepts and what a cast to `uuid`
    /// accepts must stay the same: the setting's text is read here, policies compare uuids.
    pub fn parse(text: &str) -> Result<TenantId, ParseTenantIdError> {
        let mut rest = text.as_bytes();
        if let [b'{', inner @ .., b'}'] = rest {
            rest = inner;
        }

        let mut id = [0u8; 16];
        for (i, byte) in id.iter_mut().enumerate() {
            let [high, low, tail @ ..] = rest else {
                return Err(ParseTenantIdError);
            };
            *byte = hex_value(*high)? << 4 | hex_value(*low)?;
            rest = match tail {
                [b'-', tail @ ..] if i % 2 == 1 && i < 15 => tail,
                tail => tail,
            };
        }

        if rest.is_empty() { Ok(TenantId(id)) } else { Err(ParseTenantIdError) }
    }

    /// Writes the canonical text (lower case, hyphens after 8, 12, 16 and 20 digits: what
    /// PostgreSQL's `uuid` prints) into `buffer` and returns it as text. Does not allocate.
    pub fn write_canonical<'a>(&self, buffer: &'a mut [u8; CANONICAL_LEN]) -> &'a str {
        let mut at = 0;
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                buffer[at] = b'-';
                at += 1;
            }
            buffer[at] = HEX_DIGITS[usize::from(byte >> 4)];
            buffer[at + 1] = HEX_DIGITS[usize::from(byte & 0x0f)];
            at += 2;
        }
        str::from_utf8(buffer).expect("hexadecimal digits and hyphens are ASCII")
    }
}

fn hex_value(digit: u8) -> Result<u8, ParseTenantIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(ParseTenantIdError),
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.write_canonical(&mut [0; CANONICAL_LEN]))
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({self})")
    }
}

/// What a tenant may do now: the column `status` of `tenant_rls.tenants` (docs/registry.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Reads, writes and consumes.
    Active,
    /// Locked out until it is resumed: its statements raise 55000.
    Suspended,
    /// Reads only: writes, row locks and consuming raise 25006.
    Fenced,
    /// Locked out for good, waiting for the purge: its statements raise 55000.
    Deleted,
}

impl Status {
    /// All statuses, in the order of the documents.
    pub const ALL: [Status; 4] = [Status::Active, Status::Suspended, Status::Fenced, Status::Deleted];

    /// The text stored in the table and shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Suspended => "suspended",
            Status::Fenced => "fenced",
            Status::Deleted => "deleted",
        }
    }

    /// The status that [`as_str`](Status::as_str) writes as `text`; `None` for any other text,
    /// other cases included.
    pub fn parse(text: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const CANONICAL: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";

    fn parse(text: &str) -> Option<String> {
        TenantId::parse(text).ok().map(|id| id.to_string())
    }

    #[test]
    fn every_spelling_of_the_postgresql_manual_is_read() {
        for text in [
            CANONICAL,
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
        ] {
            assert_eq!(parse(text).as_deref(), Some(CANONICAL), "{text}");
        }
    }

    #[test]
    fn what_postgresql_refuses_is_refused() {
        for text in [
            "",
            "{",
            "}",
            "{}",
            "-",
            " a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11 ",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\0",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-",
            "-a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99--9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0-eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0eebc9-99c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a111",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "{{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}}",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-}",
            "urn:uuid:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "é0eebc999c0b4ef8bb6d6bb9bd380a1",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn ids_sort_by_bytes_as_uuids_do() {
        let low = TenantId::from_bytes([0x7f; 16]);
        let high = TenantId::from_bytes([0x80; 16]);
        assert!(low < high);
        assert!(low.as_bytes() < high.as_bytes());
    }

    #[test]
    fn a_status_is_read_as_it_is_written_and_in_no_other_way() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        for text in ["", "Active", " active", "purged"] {
            assert_eq!(Status::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_text_reads_back(bytes: [u8; 16]) {
            let id = TenantId::from_bytes(bytes);
            let text = id.to_string();
            prop_assert_eq!(&text, &Uuid::from_bytes(bytes).hyphenated().to_string());
            prop_assert_eq!(TenantId::parse(&text), Ok(id));
        }

        #[test]
        fn common_spellings_read_as_the_uuid_crate_reads_them(bytes: [u8; 16]) {
            let uuid = Uuid::from_bytes(bytes);
            for text in [
                format!("{:x}", uuid.simple()),
                format!("{:X}", uuid.simple()),
                format!("{:x}", uuid.hyphenated()),
                format!("{:X}", uuid.hyphenated()),
                format!("{:x}", uuid.braced()),
                format!("{:X}", uuid.braced()),
            ] {
                let expected = Uuid::try_parse(&text).expect("a spelling of the crate's own");
                prop_assert_eq!(
                    TenantId::parse(&text).map(|id| *id.as_bytes()),
                    Ok(*expected.as_bytes())
                );
            }
        }

        #[test]
        fn hyphens_are_free_after_every_four_digits(bytes: [u8; 16], hyphens: [bool; 7], braces: bool) {
            let digits = Uuid::from_bytes(bytes).simple().to_string();
            let mut text = String::new();
            for group in 0..8 {
                text.push_str(&digits[group * 4..group * 4 + 4]);
                if group < 7 && hyphens[group] {
                    text.push('-');
                }
            }
            if braces {
                text = format!("{{{text}}}");
            }
            prop_assert_eq!(TenantId::parse(&text), Ok(TenantId::from_bytes(bytes)));
        }

        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            let _ = TenantId::parse(&text);
        }

        #[test]
        fn nearly_right_text_never_panics_and_means_its_digits(text in "[{]?([0-9a-fA-F]{4}-?){7,9}[}]?") {
            if let Ok(id) = TenantId::parse(&text) {
                let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
                prop_assert_eq!(
                    Uuid::from_bytes(*id.as_bytes()).simple().to_string(),
                    digits.to_lowercase()
                );
            }
        }

        #[test]
        fn fuzz_an_edited_id_means_its_digits_or_nothing(
            bytes: [u8; 16],
            hyphens: [bool; 7],
            braces: bool,
            edits in proptest::collection::vec((0usize..48, "[-{}0-9a-fA-F \t\n\0gé０]|\\PC"), 0..3),
        ) {
            let digits = Uuid::from_bytes(bytes).simple().to_string();
            let mut text: Vec<char> = Vec::new();
            for group in 0..8 {
                text.extend(digits[group * 4..group * 4 + 4].chars());
                if group < 7 && hyphens[group] {
                    text.push('-');
                }
            }
            if braces {
                text.insert(0, '{');
                text.push('}');
            }
            for (at, edit) in &edits {
                let at = at % (text.len() + 1);
                match at % 3 {
                    0 if at < text.len() => drop(text.splice(at..at + 1, edit.chars())),
                    1 if at < text.len() => drop(text.remove(at)),
                    _ => drop(text.splice(at..at, edit.chars())),
                }
            }
            let text: String = text.into_iter().collect();
            let read = TenantId::parse(&text).ok().map(|id| Uuid::from_bytes(*id.as_bytes()).simple().to_string());
            prop_assert_eq!(read, by_the_manual(&text));
        }

        #[test]
        fn fuzz_any_text_means_what_the_manual_says(text in "\\PC{0,50}|[-{}0-9a-f]{30,42}") {
            let read = TenantId::parse(&text).ok().map(|id| Uuid::from_bytes(*id.as_bytes()).simple().to_string());
            prop_assert_eq!(read, by_the_manual(&text));
        }

        #[test]
        fn fuzz_any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = TenantId::parse(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn fuzz_a_status_is_one_of_four(text in "\\PC{0,12}|[a-z]{5,9}|active.?|.?suspended|fenced.?|delete.") {
            if let Some(status) = Status::parse(&text) {
                prop_assert_eq!(status.as_str(), text);
            }
        }
    }

    /// The digits that a text means after PostgreSQL's manual: read in another way than [`TenantId::parse`] does.
    fn by_the_manual(text: &str) -> Option<String> {
        let inner = match (text.strip_prefix('{'), text.strip_suffix('}')) {
            (Some(_), Some(_)) if text.len() >= 2 => &text[1..text.len() - 1],
            (None, None) => text,
            _ => return None,
        };
        let groups: String = inner.split('-').flat_map(|part| [part, "-"]).collect();
        let fits = inner.split('-').all(|part| !part.is_empty() && part.len() % 4 == 0);
        let digits: String = groups.chars().filter(|c| *c != '-').collect();
        let right = digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit());
        (fits && right).then(|| digits.to_lowercase())
    }
}
