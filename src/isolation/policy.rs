//! The text of the policies, and how names and values are quoted in SQL.
//!
//! Pure. Everything that builds SQL from a name takes the quoting from here.

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
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The identifier `schema.name`, both quoted. Text of ours always names the schema, so that it
/// means the same under every `search_path`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// The type of a tenant column, which decides what it is compared with (docs/registry.md).
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
    /// One comparison of the bare column, as a hand-written WHERE (docs/isolation.md), and every
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
    /// Both have one condition (docs/isolation.md): PostgreSQL evaluates equal conditions once
    /// on reads, and no permissive policy that someone adds later gets around the restrictive one.
    /// TO PUBLIC, as a policy for named roles would leave the others without the boundary.
    pub fn create_policy_statements(&self, table: &str) -> [String; 2] {
        let predicate = self.predicate();
        [(ISOLATION_POLICY, "PERMISSIVE"), (BOUNDARY_POLICY, "RESTRICTIVE")].map(|(name, kind)| {
            format!(
                "CREATE POLICY {} ON {table} AS {kind} FOR ALL TO PUBLIC \
                 USING ({predicate}) WITH CHECK ({predicate})",
                quote_ident(name),
            )
        })
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
            let spec = PolicySpec { schema: "public", column: "tenant_id", key };
            assert_eq!(
                spec.predicate(),
                format!(r#""tenant_id" OPERATOR(pg_catalog.=) "public"."{function}"()"#)
            );
        }
    }

    #[test]
    fn both_policies_have_one_condition_for_reads_and_writes() {
        let spec = PolicySpec { schema: "tenancy", column: r#"org"id"#, key: KeyType::Uuid };
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
            value.push(if c == quote || (backslashes && c == '\\') { chars.next()? } else { c });
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
    }
}
