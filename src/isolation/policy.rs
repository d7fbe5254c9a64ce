//! The text of the policies, how names and values are quoted in SQL, and what a policy's
//! fingerprint is.
//!
//! Pure. Everything that builds SQL from a name takes the quoting from here.

use std::fmt::Write;

/// The permissive policy: which rows a tenant can see and write.
pub const ISOLATION_POLICY: &str = "tenant_isolation";

/// The restrictive policy: what no other permissive policy can widen.
pub const BOUNDARY_POLICY: &str = "tenant_boundary";

/// `name` as an identifier in SQL. Always in quotes, so that it needs no list of key words, which
/// differs between PostgreSQL's versions, and never folds case.
///
/// The name must be one that the catalog holds or could hold: without NUL, not empty.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `value` as a string literal in SQL, right under either setting of
/// `standard_conforming_strings`: with backslashes in it, it becomes an `E''` string, as from
/// PostgreSQL's own `quote_literal`. `value` has no NUL.
pub fn quote_literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// The identifier `schema.name`, both quoted. Text of ours always names the schema, so that it
/// means the same under every `search_path`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// The type of a tenant column, which decides what it is compared with (DESIGN.md, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// `uuid`: the tenant's id.
    Uuid,
    /// `bigint`: the tenant's key.
    BigInt,
    /// `integer`: the tenant's key.
    Integer,
}

impl KeyType {
    /// The name that the registry and views show.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyType::Uuid => "uuid",
            KeyType::BigInt => "bigint",
            KeyType::Integer => "integer",
        }
    }

    /// The type of that name.
    pub fn parse(text: &str) -> Option<KeyType> {
        [KeyType::Uuid, KeyType::BigInt, KeyType::Integer].into_iter().find(|key| key.as_str() == text)
    }

    /// What to append to a column so that it is read as `uuid` or `bigint`.
    pub const fn cast(self) -> &'static str {
        match self {
            KeyType::Uuid | KeyType::BigInt => "",
            KeyType::Integer => "::pg_catalog.int8",
        }
    }

    /// The name of the function, in the extension's schema, that gives the value that rows of the
    /// current tenant have in the column, or raises.
    pub const fn required_function(self) -> &'static str {
        match self {
            KeyType::Uuid => "required_tenant",
            KeyType::BigInt | KeyType::Integer => "required_tenant_key",
        }
    }
}

/// What the policies of one table depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicySpec<'a> {
    /// The schema of the extension's functions, unquoted.
    pub schema: &'a str,
    /// The tenant column, unquoted.
    pub column: &'a str,
    /// The column's type.
    pub key: KeyType,
}

impl PolicySpec<'_> {
    /// The condition of both policies: `column = required_tenant()`.
    ///
    /// One comparison of the bare column, as a hand-written WHERE (DESIGN.md, section 5), and every
    /// name in it qualified. An integer column is compared with the bigint key by
    /// `pg_catalog.=(integer, bigint)`, which B-tree indexes on integers support: a cast of the
    /// column would keep the index from being used, a cast of the key could fail.
    pub fn predicate(&self) -> String {
        format!(
            "{} OPERATOR(pg_catalog.=) {}()",
            quote_ident(self.column),
            qualified(self.schema, self.key.required_function()),
        )
    }

    /// The two statements that create the policies on a table, [`ISOLATION_POLICY`] first.
    /// `table` is the table's name in SQL, as from [`qualified`].
    ///
    /// Both have one condition (DESIGN.md, section 5): PostgreSQL evaluates equal conditions once
    /// on reads, and no permissive policy that someone adds later gets around the restrictive one.
    /// TO PUBLIC, as a policy for named roles would leave the others without the boundary.
    pub fn create_policy_statements(&self, table: &str) -> [String; 2] {
        let predicate = self.predicate();
        [
            (ISOLATION_POLICY, "PERMISSIVE"),
            (BOUNDARY_POLICY, "RESTRICTIVE"),
        ]
        .map(|(name, kind)| {
            format!(
                "CREATE POLICY {} ON {table} AS {kind} FOR ALL TO PUBLIC \
                 USING ({predicate}) WITH CHECK ({predicate})",
                quote_ident(name),
            )
        })
    }
}

/// What `pg_policy` says about one policy, as [`fingerprint`] takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyShape<'a> {
    /// `polname`.
    pub name: &'a str,
    /// `polpermissive`.
    pub permissive: bool,
    /// `polcmd`: `*` is ALL.
    pub command: char,
    /// Whether `polroles` is PUBLIC alone (`{0}`).
    pub to_public: bool,
    /// `pg_get_expr(polqual, polrelid)`, printed with `search_path` set to `pg_catalog` alone: the
    /// setting decides which names are printed with their schema.
    pub using: Option<&'a str>,
    /// `pg_get_expr(polwithcheck, polrelid)`, printed in the same way.
    pub check: Option<&'a str>,
}

/// A hash of all that a policy does, 16 hexadecimal digits: two policies that differ in anything
/// but white space and a pair of parentheses around a whole condition have, for all practical
/// purposes, different ones. The same on every machine and in every release, as it is stored.
///
/// It finds what changed by accident. It is no proof against one who picks a condition to fit a
/// hash (FNV-1a, 64 bits): who may create policies on a table may as well drop them.
pub fn fingerprint(policy: &PolicyShape<'_>) -> String {
    let mut hash = Fnv1a::new();
    hash.field(Some(policy.name));
    hash.field(Some(if policy.permissive { "p" } else { "r" }));
    hash.field(Some(policy.command.encode_utf8(&mut [0; 4])));
    hash.field(Some(if policy.to_public { "public" } else { "roles" }));
    hash.field(policy.using.map(normalized).as_deref());
    hash.field(policy.check.map(normalized).as_deref());
    hash.into_text()
}

/// A deparsed condition without what may differ between PostgreSQL's versions and means nothing:
/// runs of white space outside of quotes become one space, parentheses around the whole go.
fn normalized(condition: &str) -> String {
    let mut text = String::with_capacity(condition.len());
    let mut quote = None;
    for c in condition.chars() {
        match quote {
            None if c.is_ascii_whitespace() => {
                if !text.ends_with(' ') {
                    text.push(' ');
                }
                continue;
            }
            // A doubled quote closes and opens again at once, which comes to the same.
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        text.push(c);
    }

    let mut rest = text.trim_matches(' ');
    while let Some(inner) = within_parentheses(rest) {
        rest = inner.trim_matches(' ');
    }
    rest.to_owned()
}

/// What is between the first and the last character if these are one pair of parentheses:
/// `a` for `(a)`, nothing for `(a) AND (b)`.
fn within_parentheses(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0_usize;
    let mut quote = None;
    for c in inner.chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    (depth == 0 && quote.is_none()).then_some(inner)
}

/// The Fowler/Noll/Vo hash 1a of 64 bits. `std`'s hasher may change with the compiler.
struct Fnv1a(u64);

impl Fnv1a {
    const fn new() -> Fnv1a {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// One value, with its length before it: text that moves from one field to the next changes
    /// the hash, and a missing value is not an empty one.
    fn field(&mut self, value: Option<&str>) {
        match value {
            Some(value) => {
                self.bytes(&[1]);
                self.bytes(&(value.len() as u64).to_be_bytes());
                self.bytes(value.as_bytes());
            }
            None => self.bytes(&[0]),
        }
    }

    fn into_text(self) -> String {
        let mut text = String::with_capacity(16);
        write!(text, "{:016x}", self.0).expect("writing to a string cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nasty_names_stay_one_identifier() {
        for (name, quoted) in [
            ("orders", r#""orders""#),
            ("Orders", r#""Orders""#),
            ("select", r#""select""#),
            ("a.b", r#""a.b""#),
            ("a b", r#""a b""#),
            (r#"a"b"#, r#""a""b""#),
            (r#"""#, r#""""""#),
            (r#"x"; DROP TABLE y; --"#, r#""x""; DROP TABLE y; --""#),
            (r"a\b", r#""a\b""#),
            ("a'b", r#""a'b""#),
            ("größe", r#""größe""#),
            ("line\nbreak", "\"line\nbreak\""),
        ] {
            assert_eq!(quote_ident(name), quoted);
        }
        assert_eq!(qualified(r#"my"schema"#, "a.b"), r#""my""schema"."a.b""#);
    }

    #[test]
    fn nasty_values_stay_one_literal() {
        for (value, quoted) in [
            ("", "''"),
            ("plain", "'plain'"),
            ("it's", "'it''s'"),
            ("'; DROP TABLE y; --", "'''; DROP TABLE y; --'"),
            (r"a\b", r"E'a\\b'"),
            (r"\'", r"E'\\'''"),
            (r#"say "hi""#, r#"'say "hi"'"#),
            ("$$", "'$$'"),
        ] {
            assert_eq!(quote_literal(value), quoted);
        }
    }

    #[test]
    fn the_predicate_compares_the_bare_column_with_the_function_of_its_type() {
        for (key, function) in [
            (KeyType::Uuid, "required_tenant"),
            (KeyType::BigInt, "required_tenant_key"),
            (KeyType::Integer, "required_tenant_key"),
        ] {
            let spec = PolicySpec {
                schema: "public",
                column: "tenant_id",
                key,
            };
            assert_eq!(
                spec.predicate(),
                format!(r#""tenant_id" OPERATOR(pg_catalog.=) "public"."{function}"()"#)
            );
        }
    }

    #[test]
    fn both_policies_have_one_condition_for_reads_and_writes() {
        let spec = PolicySpec {
            schema: "tenancy",
            column: r#"org"id"#,
            key: KeyType::Uuid,
        };
        let condition = r#""org""id" OPERATOR(pg_catalog.=) "tenancy"."required_tenant"()"#;
        let [isolation, boundary] = spec.create_policy_statements(&qualified("shop", "Orders"));
        assert_eq!(
            isolation,
            format!(
                r#"CREATE POLICY "tenant_isolation" ON "shop"."Orders" AS PERMISSIVE FOR ALL TO PUBLIC USING ({condition}) WITH CHECK ({condition})"#
            )
        );
        assert_eq!(
            boundary,
            format!(
                r#"CREATE POLICY "tenant_boundary" ON "shop"."Orders" AS RESTRICTIVE FOR ALL TO PUBLIC USING ({condition}) WITH CHECK ({condition})"#
            )
        );
    }

    const SHAPE: PolicyShape<'static> = PolicyShape {
        name: ISOLATION_POLICY,
        permissive: true,
        command: '*',
        to_public: true,
        using: Some("(tenant_id = public.required_tenant())"),
        check: Some("(tenant_id = public.required_tenant())"),
    };

    #[test]
    fn the_fingerprint_is_stable() {
        // Stored in databases: a change here makes every protected table look tampered with.
        assert_eq!(fingerprint(&SHAPE), "7480b231052b978f");
    }

    #[test]
    fn layout_leaves_the_fingerprint_alone() {
        for text in [
            "tenant_id = public.required_tenant()",
            "((tenant_id = public.required_tenant()))",
            " ( tenant_id  =\n\tpublic.required_tenant() ) ",
        ] {
            let using = Some(text);
            assert_eq!(
                fingerprint(&PolicyShape { using, ..SHAPE }),
                fingerprint(&SHAPE),
                "{text}"
            );
        }
    }

    #[test]
    fn every_change_of_a_policy_changes_the_fingerprint() {
        let original = fingerprint(&SHAPE);
        for changed in [
            PolicyShape {
                name: BOUNDARY_POLICY,
                ..SHAPE
            },
            PolicyShape {
                permissive: false,
                ..SHAPE
            },
            PolicyShape {
                command: 'r',
                ..SHAPE
            },
            PolicyShape {
                to_public: false,
                ..SHAPE
            },
            PolicyShape {
                using: None,
                ..SHAPE
            },
            PolicyShape {
                check: None,
                ..SHAPE
            },
            PolicyShape {
                using: Some("true"),
                ..SHAPE
            },
            PolicyShape {
                check: Some(""),
                ..SHAPE
            },
            PolicyShape {
                using: Some("(tenant_id = public.required_tenant()) OR true"),
                ..SHAPE
            },
            PolicyShape {
                using: Some("(tenant_id = other.required_tenant())"),
                ..SHAPE
            },
        ] {
            assert_ne!(fingerprint(&changed), original, "{changed:?}");
        }
    }

    #[test]
    fn text_in_quotes_is_left_as_it_is() {
        assert_eq!(
            normalized(r#"("a  b" = 'c  ''  d')"#),
            r#""a  b" = 'c  ''  d'"#
        );
        assert_eq!(normalized("(a)   AND (b)"), "(a) AND (b)");
        assert_eq!(normalized("(a = ')')"), "a = ')'");
        assert_eq!(
            normalized("(a = '(') OR (b = ')')"),
            "(a = '(') OR (b = ')')"
        );
        assert_eq!(normalized("()"), "");
    }

    /// Reads back a quoted identifier or literal as PostgreSQL's scanner does.
    fn unquoted(text: &str, quote: char, backslashes: bool) -> Option<String> {
        let mut chars = text.chars();
        if chars.next() != Some(quote) {
            return None;
        }
        let mut value = String::new();
        while let Some(c) = chars.next() {
            if c == quote && chars.clone().next() != Some(quote) {
                return chars.next().is_none().then_some(value);
            }
            value.push(if c == quote || (backslashes && c == '\\') {
                chars.next()?
            } else {
                c
            });
        }
        None
    }

    proptest! {
        #[test]
        fn every_name_reads_back(name in "([\"'\\\\ a]|\\PC){0,20}") {
            prop_assert_eq!(unquoted(&quote_ident(&name), '"', false), Some(name));
        }

        #[test]
        fn every_value_reads_back_under_both_settings(value in "([\"'\\\\ a]|\\PC){0,20}") {
            let literal = quote_literal(&value);
            match literal.strip_prefix('E') {
                Some(escaped) => prop_assert_eq!(unquoted(escaped, '\'', true), Some(value)),
                None => {
                    prop_assert_eq!(unquoted(&literal, '\'', false), Some(value.clone()));
                    prop_assert_eq!(unquoted(&literal, '\'', true), Some(value));
                }
            }
        }

        #[test]
        fn normal_text_is_its_own_normal_text(text in "[()'\" a=]{0,30}") {
            let once = normalized(&text);
            prop_assert_eq!(normalized(&once), once);
        }
    }
}
