//! The cache: keys of another tenant, and what one does to another's by patterns, budgets and locks.

use super::own::CARELESS;
use super::{Attack, attack, no, ok};

/// A budget of a few entries for A.
const SMALL: &str = "SELECT tenant_quota_set('{A}', 'cache_bytes', 1000)";

pub fn attacks() -> Vec<Attack> {
    [keys(), patterns(), budget(), locks(), rights(), tables()].into_iter().flatten().collect()
}

fn keys() -> Vec<Attack> {
    let read = |name, sql| attack(name, "cache key", "", vec![ok(sql)]);
    vec![
        read("cache: a key that B has", "SELECT tenant_cache_get('page:1'), tenant_cache_get('only-b')"),
        // B has a key of each of these names.
        read(
            "cache: keys with B's name before them",
            "SELECT tenant_cache_get(k) FROM unnest(ARRAY['tenant:{B}:page:1', '{B}:page:1', '{B}']) AS k",
        ),
        read(
            "cache: keys that look like patterns",
            "SELECT tenant_cache_get(k) FROM unnest(ARRAY['*', '%', 'page:*', '', 'page:1'' OR true --']) AS k",
        ),
        read(
            "cache: keys by the thousand",
            "SELECT string_agg(tenant_cache_get('page:' || i)::text, ',') FROM generate_series(0, 1000) AS i",
        ),
        attack(
            "cache: write a key that B has",
            "cache key",
            "",
            vec![
                ok(
                    "SELECT tenant_cache_set('page:1', '\"mine\"'), tenant_cache_set('page:2', 'null', '1 us')",
                ),
                ok("SELECT tenant_cache_get('page:1'), tenant_cache_get('page:2')"),
                ok("SELECT 1 / (tenant_cache_get('page:1') <> '\"mine\"')::int").by("b"),
            ],
        ),
        attack(
            "cache: delete a key that B has",
            "cache delete",
            "",
            vec![ok("SELECT tenant_cache_delete('page:1'), tenant_cache_delete('only-b')")],
        ),
        attack(
            "cache: delete the own key, and B's with it",
            "cache delete",
            "",
            vec![
                ok("SELECT tenant_cache_set('page:1', '1')"),
                ok("SELECT tenant_cache_delete('page:1'), tenant_cache_delete('page:1')"),
            ],
        ),
        attack(
            "cache: a name outside that is B's",
            "cache name",
            "",
            vec![ok("SELECT 1 / bool_and(starts_with(tenant_cache_key(k), 'tenant:{A}:'))::int \
                    FROM unnest(ARRAY['', 'page:1', '../{B}:page:1', 'tenant:{B}:page:1', E'\\n{B}:page:1']) AS k")],
        ),
        attack(
            "cache: the statistics of B",
            "cache statistics",
            "",
            vec![
                ok("SELECT tenant_cache_get('page:1')"),
                ok("SELECT key_count, total_size_bytes, hits, misses, evictions FROM tenant_cache_stats()"),
            ],
        ),
        attack(
            "cache: the statistics of B after an own write",
            "cache statistics",
            "",
            vec![
                ok("SELECT tenant_cache_set('page:1', '1')"),
                ok("SELECT key_count, total_size_bytes, hits, misses, evictions FROM tenant_cache_stats()"),
            ],
        ),
        attack(
            "cache: the gauge of B",
            "usage rights",
            "",
            vec![ok("SELECT tenant = '{A}', used FROM tenant_usage WHERE resource = 'cache_bytes'")],
        ),
        attack(
            "cache: move the gauge by hand",
            "attached",
            "",
            vec![
                no("55000", "SELECT tenant_quota_consume('cache_bytes', 1000000)"),
                no("55000", "SELECT tenant_quota_release('cache_bytes', 1)"),
            ],
        ),
    ]
}

fn patterns() -> Vec<Attack> {
    let erase = |name, sql| {
        let own = ok("SELECT tenant_cache_set('page:1', '1')");
        attack(name, "cache pattern", "", vec![own, ok(sql)])
    };
    vec![
        erase("cache: invalidate everything", "SELECT tenant_cache_invalidate('*')"),
        erase("cache: invalidate by a prefix that B has", "SELECT tenant_cache_invalidate('page:*')"),
        erase("cache: invalidate the very key", "SELECT tenant_cache_invalidate('page:1')"),
        erase("cache: invalidate by classes", "SELECT tenant_cache_invalidate('[!-~]*[0-9]')"),
        erase("cache: invalidate by a negated class", "SELECT tenant_cache_invalidate('[^x]*')"),
        erase("cache: invalidate by single characters", "SELECT tenant_cache_invalidate('??????')"),
        erase("cache: invalidate by an escape", "SELECT tenant_cache_invalidate('\\page:\\1')"),
        erase(
            "cache: invalidate with B's name before it",
            "SELECT tenant_cache_invalidate(p) FROM unnest(ARRAY['tenant:{B}:*', '{B}*', '*{B}*']) AS p",
        ),
        erase("cache: invalidate beyond the end", "SELECT tenant_cache_invalidate(U&'\\+10FFFF*')"),
        attack(
            "cache: a pattern that takes for ever",
            "cache length",
            "",
            vec![no("22023", "SELECT tenant_cache_invalidate(repeat('*a', 3000))")],
        ),
        attack(
            "cache: a key that no index holds",
            "cache length",
            "",
            vec![no("22023", "SELECT tenant_cache_set(repeat('k', 1500), '1')")],
        ),
    ]
}

fn budget() -> Vec<Attack> {
    let fits = "SELECT 1 / coalesce(total_size_bytes <= budget, false)::int FROM tenant_cache_stats()";
    vec![
        attack(
            "cache: push B's entries out",
            "cache eviction",
            SMALL,
            vec![
                ok("SELECT tenant_cache_set('page:' || i, to_jsonb(i)) FROM generate_series(1, 2) AS i"),
                ok(
                    "SELECT count(*) FROM generate_series(1, 30) AS i, tenant_cache_set('k' || i, to_jsonb(i))",
                ),
                ok("SELECT tenant_cache_get('page:1'), tenant_cache_get('page:2')"),
                ok("SELECT 1 / (evictions = 0)::int FROM tenant_cache_stats()").by("b"),
            ],
        ),
        attack(
            "cache: more than the budget by many entries",
            "cache budget",
            SMALL,
            vec![
                ok(
                    "SELECT count(*) FROM generate_series(1, 30) AS i, tenant_cache_set('k' || i, to_jsonb(i))",
                ),
                ok(fits),
            ],
        ),
        attack(
            "cache: more than the budget in one transaction",
            "cache budget",
            SMALL,
            vec![
                ok("BEGIN"),
                ok("SELECT tenant_cache_set('a', to_jsonb(repeat('x', 600)))"),
                ok("SELECT tenant_cache_set('b', to_jsonb(repeat('x', 600)))"),
                ok("COMMIT"),
                ok(fits),
            ],
        ),
        attack(
            "cache: more than the budget by one key that grows",
            "cache budget",
            SMALL,
            vec![
                ok("SELECT tenant_cache_set('a', '1'), tenant_cache_set('b', '1')"),
                ok("SELECT tenant_cache_set('a', to_jsonb(repeat('x', 800)))"),
                ok(fits),
            ],
        ),
        attack(
            "cache: an entry larger than the budget",
            "cache budget",
            SMALL,
            vec![
                ok("SELECT tenant_cache_set('a', to_jsonb(repeat('x', 5000)))"),
                ok("SELECT 1 / (tenant_cache_get('a') IS NULL)::int"),
            ],
        ),
        attack(
            "cache: a budget of nothing",
            "cache budget",
            "SELECT tenant_quota_set('{A}', 'cache_bytes', 0)",
            vec![
                ok("SELECT tenant_cache_set('a', '1')"),
                ok("SELECT 1 / (tenant_cache_get('a') IS NULL)::int"),
            ],
        ),
    ]
}

/// Transactions that are still open when B works.
fn locks() -> Vec<Attack> {
    let open = |name, sql| attack(name, "cache lock", "", vec![ok("BEGIN"), ok(sql)]);
    vec![
        open("cache: hold a key that B has", "SELECT tenant_cache_set('page:1', '1')"),
        open("cache: hold every key", "SELECT tenant_cache_set('page:1', '1'), tenant_cache_invalidate('*')"),
        attack(
            "cache: hold an eviction open",
            "cache lock",
            SMALL,
            vec![
                ok("BEGIN"),
                ok("SELECT count(*) FROM generate_series(1, 30) AS i, tenant_cache_set('page:' || i, '1')"),
            ],
        ),
    ]
}

/// Whether the tenant of the session still is one, asked at every call.
fn rights() -> Vec<Attack> {
    let mut attacks = vec![
        attack(
            "cache: write after a switch that failed",
            "failed mark",
            "",
            vec![
                no("42501", "SET app.current_tenant = '{B}'"),
                no("55000", "SELECT tenant_cache_set('page:1', '\"poison\"')"),
                no("55000", "SELECT tenant_cache_invalidate('*')"),
            ],
        ),
        attack(
            "cache: read for B as its own role",
            "grant",
            "",
            vec![
                no("42501", "SET app.current_tenant = '{B}'"),
                no("55000", "SELECT tenant_cache_get('page:1')"),
            ],
        ),
        attack(
            "cache: read in a function that acts for B",
            "grant",
            "",
            vec![
                ok(
                    "CREATE FUNCTION pg_temp.f() RETURNS jsonb LANGUAGE sql AS $$ SELECT public.tenant_cache_get('page:1') $$",
                ),
                ok("ALTER FUNCTION pg_temp.f() SET app.current_tenant = '{B}'"),
                no("42501", "SELECT pg_temp.f()"),
            ],
        ),
        attack(
            "cache: write behind the fence",
            "fence",
            "",
            vec![
                ok("SELECT tenant_cache_set('a', '1')"),
                ok("SELECT tenant_fence('{A}')").by("admin"),
                no("25006", "SELECT tenant_cache_set('a', '2')"),
                no("25006", "SELECT tenant_cache_delete('a')"),
                no("25006", "SELECT tenant_cache_invalidate('*')"),
                ok("SELECT tenant_cache_get('a')"),
            ],
        ),
    ];
    let suspended = |name, sql| {
        let locked_out = ok("SELECT tenant_suspend('{A}')").by("admin");
        attack(name, "invalidation", "", vec![ok(sql), locked_out, no("55000", sql)])
    };
    let revoked = |name, sql| {
        // tenant_revoke would take the functions too.
        let locked_out = ok("DELETE FROM tenant_rls.grants WHERE role_name = '{app}'").by("admin");
        attack(name, "invalidation", "", vec![ok(sql), locked_out, no("42501", sql)])
    };
    attacks.extend([
        suspended("cache: read when suspended", "SELECT tenant_cache_get('a')"),
        suspended("cache: write when suspended", "SELECT tenant_cache_set('a', '1')"),
        suspended("cache: invalidate when suspended", "SELECT tenant_cache_invalidate('*')"),
        suspended("cache: statistics when suspended", "SELECT key_count FROM tenant_cache_stats()"),
        revoked("cache: read when the grant is gone", "SELECT tenant_cache_get('a')"),
        revoked("cache: write when the grant is gone", "SELECT tenant_cache_set('a', '1')"),
    ]);
    attacks
}

fn tables() -> Vec<Attack> {
    let closed = |name, sql| attack(name, "our privileges", "", vec![no("42501", sql)]);
    let careless = |name, step| attack(name, "our row security", CARELESS, vec![step]);
    vec![
        closed("cache: read the table", "SELECT * FROM tenant_rls.cache"),
        closed("cache: read the totals", "SELECT * FROM tenant_rls.cache_parts"),
        attack(
            "cache: read the caches of all",
            "operator check",
            "",
            vec![no("42501", "SELECT * FROM tenant_cache_usage")],
        ),
        closed("cache: match the keys of all", "SELECT tenant_rls.cache_key_matches('page:1', '*')"),
        careless("cache: read the table with careless grants", ok("SELECT * FROM tenant_rls.cache")),
        careless("cache: read the totals with careless grants", ok("SELECT * FROM tenant_rls.cache_parts")),
        careless(
            "cache: poison B's with careless grants",
            no(
                "42501",
                "INSERT INTO tenant_rls.cache VALUES ('{B}', now() + interval '1 day', now(), 1, 0, 'page:3', '\"poison\"')",
            ),
        ),
        careless(
            "cache: change B's with careless grants",
            ok("UPDATE tenant_rls.cache SET value = '\"poison\"'; DELETE FROM tenant_rls.cache"),
        ),
        careless(
            "cache: fill B's totals with careless grants",
            ok("UPDATE tenant_rls.cache_parts SET size = 1000000000"),
        ),
        attack(
            "cache: the view of all with a careless grant",
            "usage rights",
            "GRANT SELECT ON tenant_cache_usage TO {app}",
            vec![ok("SELECT * FROM tenant_cache_usage")],
        ),
    ]
}
