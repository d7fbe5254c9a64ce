//! The database that is attacked: tenants A and B, protected tables of every kind, roles of an application.
//!
//! There are two of it, made once: in one B has rows, in the other none. What A can find out is the same in both,
//! or it is a leak. Attacks run in copies.

use std::sync::OnceLock;

use crate::harness::{A, B, Db, Session};
use crate::signer;

/// In every text of B.
pub const CANARY: &str = "canary-b";
/// In every number of B.
pub const CANARY_NUMBER: &str = "8675309042";
/// A tenant that is suspended.
const C: &str = "cccccccc-0000-4000-8000-00000000000c";
/// No tenant.
const D: &str = "dddddddd-0000-4000-8000-00000000000d";

/// The roles: their names, and who they are.
///
/// `app` acts for A and is the attacker unless an attack says otherwise; `shared` is the pool's role, which acts for
/// every tenant, `pool` does so with tickets alone; `b` acts for B; `owner` owns the tables; `operator` runs the
/// registry; `stranger` may do nothing.
pub const ROLES: [&str; 7] = ["app", "shared", "pool", "b", "owner", "operator", "stranger"];

/// A pair of worlds.
pub struct Worlds {
    /// B has rows.
    pub with_b: Db,
    /// B has none.
    pub without_b: Db,
}

impl Worlds {
    /// A new pair, in which `mutation` has been run before B's rows came.
    pub fn new(mutation: &str) -> Worlds {
        let without_b = Db::new();
        for role in ROLES {
            without_b.role(&without_b.role_name(role), "LOGIN");
        }
        without_b.admin().run(&fill(TABLES, &without_b));
        without_b.admin().run(&fill(ROWS_OF_A, &without_b));
        without_b.breaker().run(&fill(mutation, &without_b));
        let with_b = without_b.copy();
        with_b.admin().run(&fill(ROWS_OF_B, &with_b));
        for db in [&without_b, &with_b] {
            db.admin().run("ANALYZE");
        }
        Worlds { with_b, without_b }
    }

    /// The pair that no guard has been taken from.
    pub fn whole() -> &'static Worlds {
        static WORLDS: OnceLock<Worlds> = OnceLock::new();
        WORLDS.get_or_init(|| Worlds::new(""))
    }
}

/// Puts names of roles, tenants and the database in the place of `{…}`.
pub fn fill(sql: &str, db: &Db) -> String {
    let mut filled = sql.replace("{A}", A).replace("{B}", B).replace("{C}", C).replace("{D}", D);
    for role in ROLES {
        filled = filled.replace(&format!("{{{role}}}"), &db.role_name(role));
    }
    while let Some((before, (name, after))) =
        filled.split_once("{ticket ").and_then(|(a, b)| Some((a, b.split_once('}')?)))
    {
        filled = format!("{before}{}{after}", ticket(name));
    }
    filled = filled.replace("{public key}", &signer::public_key_sql()).replace("{secret}", signer::SECRET);
    filled = filled.replace("{db}", db.name()).replace("{own}", &format!("own_{}", db.name()));
    if filled.contains("{MB}") { filled.replace("{MB}", &"x".repeat(1 << 20)) } else { filled }
}

/// Tickets by the name that attacks call them by. Signed by `hs` (a secret) unless they say otherwise, for B, and good for
/// ten minutes.
fn ticket(name: &str) -> String {
    const MINUTES: i64 = 600;
    let header = |alg: &str, kid: &str| format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#);
    let hs = |header: &str, claims: &str| signer::hs256(signer::SECRET.as_bytes(), header, claims);
    let of_b = |more: &str| signer::claims(B, MINUTES, more);
    let good = |claims: &str| hs(&header("HS256", "hs"), claims);
    let with_header = |more: &str| hs(&format!(r#"{{"alg":"HS256","kid":"hs"{more}}}"#), &of_b(""));
    // `seconds:TENANT:SECONDS`, `more:TENANT:CLAIMS` and `raw:CLAIMS`.
    if let Some((tenant, seconds)) = name.strip_prefix("seconds:").and_then(|rest| rest.split_once(':')) {
        return good(&signer::claims(of(tenant), seconds.parse().expect("seconds"), ""));
    }
    if let Some((tenant, more)) = name.strip_prefix("more:").and_then(|rest| rest.split_once(':')) {
        return good(&signer::claims(of(tenant), MINUTES, more));
    }
    if let Some(more) = name.strip_prefix("header:") {
        return with_header(more);
    }
    if let Some(kid) = name.strip_prefix("kid:") {
        return hs(&header("HS256", kid), &of_b(""));
    }
    if let Some(alg) = name.strip_prefix("alg:") {
        return hs(&header(alg, "hs"), &of_b(""));
    }
    let public = signer::public_key();
    match name {
        "a" => good(&signer::claims(A, MINUTES, "")),
        "b" => good(&of_b("")),
        "b by ed" => signer::eddsa(&header("EdDSA", "ed"), &of_b("")),
        "none" => format!("{}.", signer::unsigned(&header("none", "hs"), &of_b(""))),
        "none for ed" => format!("{}.", signer::unsigned(&header("none", "ed"), &of_b(""))),
        "no signature" => format!("{}.", signer::unsigned(&header("HS256", "hs"), &of_b(""))),
        "zeros" => format!("{}.{}", signer::unsigned(&header("HS256", "hs"), &of_b("")), "A".repeat(43)),
        "zeros for ed" => {
            format!("{}.{}", signer::unsigned(&header("EdDSA", "ed"), &of_b("")), "A".repeat(86))
        }
        "public key as secret" => signer::hs256(&public, &header("HS256", "ed"), &of_b("")),
        "public key as secret, called EdDSA" => signer::hs256(&public, &header("EdDSA", "ed"), &of_b("")),
        "ed for hs" => signer::eddsa(&header("HS256", "hs"), &of_b("")),
        "ed called HS256" => signer::eddsa(&header("HS256", "ed"), &of_b("")),
        "ed with the kid of hs" => signer::eddsa(&header("EdDSA", "hs"), &of_b("")),
        "wrong secret" => signer::hs256(&[7; 32], &header("HS256", "hs"), &of_b("")),
        "empty secret" => signer::hs256(&[], &header("HS256", "hs"), &of_b("")),
        "own key in the header" => with_header(&format!(
            r#","jwk":{{"kty":"oct","k":"{}"}},"jku":"http://localhost/","x5u":"http://localhost/""#,
            "A".repeat(43)
        )),
        "wrong secret with its key" => signer::hs256(
            &[0; 32],
            &format!(r#"{{"alg":"HS256","kid":"hs","jwk":{{"kty":"oct","k":"{}"}}}}"#, "A".repeat(43)),
            &of_b(""),
        ),
        "claims of another" => {
            let (mine, other) = (ticket("a"), ticket("b by ed"));
            let part = |text: &str, at: usize| text.split('.').nth(at).unwrap_or_default().to_string();
            format!("{}.{}.{}", part(&mine, 0), part(&other, 1), part(&mine, 2))
        }
        "header of another" => {
            let (mine, other) = (ticket("none"), ticket("b"));
            let part = |text: &str, at: usize| text.split('.').nth(at).unwrap_or_default().to_string();
            format!("{}.{}.{}", part(&mine, 0), part(&other, 1), part(&other, 2))
        }
        "cut" => {
            let good = ticket("b");
            good[..good.len() - 4].to_string()
        }
        "padded" => ticket("b") + "=",
        "a fourth part" => ticket("b") + ".AAAA",
        "two parts" => signer::unsigned(&header("HS256", "hs"), &of_b("")),
        "a space" => ticket("b").replacen('.', ". ", 1),
        "a line feed" => ticket("b") + "\n",
        "no kid" => hs(r#"{"alg":"HS256"}"#, &of_b("")),
        "no alg" => hs(r#"{"kid":"hs"}"#, &of_b("")),
        "a list for a header" => hs(r#"["HS256","hs"]"#, &of_b("")),
        "a list for claims" => good(&format!(r#"["{B}",{}]"#, signer::now() as i64 + MINUTES)),
        "no exp" => good(&format!(r#"{{"tenant":"{B}"}}"#)),
        "exp as a text" => good(&format!(r#"{{"tenant":"{B}","exp":"{}"}}"#, signer::now() as i64 + MINUTES)),
        "exp without end" => good(&format!(r#"{{"tenant":"{B}","exp":1e300}}"#)),
        "exp null" => good(&format!(r#"{{"tenant":"{B}","exp":null}}"#)),
        "exp twice" => {
            good(&format!(r#"{{"tenant":"{B}","exp":1,"exp":{}}}"#, signer::now() as i64 + MINUTES))
        }
        "no tenant" => good(&format!(r#"{{"exp":{}}}"#, signer::now() as i64 + MINUTES)),
        "tenant null" => good(&format!(r#"{{"tenant":null,"exp":{}}}"#, signer::now() as i64 + MINUTES)),
        "two tenants" => good(&signer::claims(A, MINUTES, &format!(r#","tenant":"{B}""#))),
        "a list of tenants" => {
            good(&format!(r#"{{"tenant":["{B}"],"exp":{}}}"#, signer::now() as i64 + MINUTES))
        }
        "nbf tomorrow" => good(&of_b(&format!(r#","nbf":{}"#, signer::now() + 86_400))),
        "a megabyte of claims" => good(&of_b(&format!(r#","x":"{}""#, "x".repeat(1 << 20)))),
        "just too long" => good(&of_b(&format!(r#","x":"{}""#, "x".repeat(4096)))),
        _ => panic!("no ticket {name}"),
    }
}

fn of(tenant: &str) -> &'static str {
    if tenant == "A" { A } else { B }
}

const TABLES: &str = "
CREATE EXTENSION pgcrypto;
GRANT CREATE ON SCHEMA public TO {owner};
SELECT tenant_create('{A}', 'free', name => 'tenant a', tenant_key => 1),
    tenant_create('{B}', 'starter', name => 'canary-b-name', region => 'canary-b-region', tenant_key => 2),
    tenant_create('{C}', 'free', name => 'tenant c', tenant_key => 3);
SELECT tenant_suspend('{C}', 'canary-b-reason');
SELECT tenant_grant('{app}', '{A}'), tenant_grant('{b}', '{B}'), tenant_grant('{shared}'),
    tenant_grant('{owner}', '{A}'), tenant_grant_operator('{operator}'), tenant_grant_ticket('{pool}');
SELECT tenant_signing_key_set('hs', 'HS256', '{secret}'), tenant_signing_key_set('ed', 'EdDSA', {public key});
SELECT tenant_resource_define('calls', 'counter', 'call', 'year'), tenant_resource_define('seats', 'gauge', 'seat', 'none'),
    tenant_resource_define('papers', 'gauge', 'paper', 'none');
SELECT tenant_plan_limit_set(plan, resource, quota_limit) FROM (VALUES ('free', 'calls', 10), ('free', 'seats', 3),
    ('free', 'papers', 6), ('starter', 'calls', 8675309042), ('starter', 'seats', 8675309042),
    ('starter', 'papers', 8675309042)) AS v (plan, resource, quota_limit);
SELECT tenant_feature_define('beta', '\"none\"'), tenant_feature_define('dark', 'false');
SELECT tenant_deployment_define('api', '{\"image\": \"shop:1\"}');
SET ROLE {owner};
CREATE TABLE orders (tenant_id uuid NOT NULL, id int NOT NULL, note text, amount bigint, doc jsonb, PRIMARY KEY (tenant_id, id));
CREATE TABLE items (tenant_id uuid NOT NULL, id int NOT NULL, order_id int, note text, PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, order_id) REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE people (id int PRIMARY KEY, tenant_id uuid NOT NULL, email text UNIQUE, note text);
CREATE TABLE badges (id int PRIMARY KEY, tenant_id uuid NOT NULL, person int REFERENCES people ON DELETE CASCADE, note text);
CREATE TABLE invoices (account_id bigint NOT NULL, id int NOT NULL, note text, total bigint, PRIMARY KEY (account_id, id));
CREATE TABLE parcels (account int NOT NULL, id int NOT NULL, note text, PRIMARY KEY (account, id));
CREATE TABLE events (tenant_id uuid NOT NULL, day date NOT NULL, id int NOT NULL, note text, PRIMARY KEY (tenant_id, day, id))
    PARTITION BY RANGE (day);
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE events_2027 PARTITION OF events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01') PARTITION BY HASH (id);
CREATE TABLE events_2027_0 PARTITION OF events_2027 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE papers (tenant_id uuid NOT NULL, id int NOT NULL, note text, PRIMARY KEY (tenant_id, id));
CREATE TABLE papers_old () INHERITS (papers);
CREATE TABLE jobs (tenant_id uuid NOT NULL, id bigserial, note text);
CREATE TABLE empty (tenant_id uuid NOT NULL, note text);
CREATE VIEW orders_invoker WITH (security_invoker) AS SELECT * FROM orders;
CREATE VIEW orders_owner AS SELECT * FROM orders;
CREATE VIEW orders_large AS SELECT * FROM orders WHERE amount < 100 WITH CHECK OPTION;
CREATE FUNCTION orders_of_owner() RETURNS SETOF orders LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS 'SELECT * FROM public.orders';
CREATE FUNCTION orders_inlined() RETURNS SETOF orders LANGUAGE sql STABLE AS 'SELECT * FROM public.orders';
CREATE FUNCTION write_as_owner(t uuid) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS 'INSERT INTO public.orders (tenant_id, id, note) VALUES (t, 700, ''by the owner'')';
CREATE FUNCTION switch_as_owner(t text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS 'SELECT set_config(''app.current_tenant'', t, true)';
GRANT ALL ON orders, items, people, badges, invoices, parcels, events, events_2026, events_2027, events_2027_0, papers, papers_old,
    jobs, empty, orders_invoker, orders_owner, orders_large TO {app}, {shared}, {pool}, {b};
GRANT USAGE ON SEQUENCE jobs_id_seq TO {app}, {shared}, {pool}, {b};
SET client_min_messages = warning;
SELECT tenant_protect(t::regclass) FROM unnest(ARRAY['orders', 'items', 'people', 'badges', 'events', 'papers', 'jobs', 'empty']) AS t;
SELECT tenant_protect('invoices', 'account_id'), tenant_protect('parcels', 'account');
RESET ROLE;
SELECT tenant_quota_attach('papers', 'papers');
";

const ROWS_OF_A: &str = "
INSERT INTO orders SELECT '{A}', i, 'order a' || i, i, '{\"k\": \"va\"}' FROM generate_series(1, 20) AS i;
INSERT INTO items SELECT '{A}', i, i, 'item a' || i FROM generate_series(1, 5) AS i;
INSERT INTO people VALUES (1, '{A}', 'ann@example.com', 'a');
INSERT INTO badges VALUES (1, '{A}', 1, 'a');
INSERT INTO invoices VALUES (1, 1, 'invoice a', 5);
INSERT INTO parcels VALUES (1, 1, 'parcel a');
INSERT INTO events VALUES ('{A}', '2026-05-01', 1, 'event a'), ('{A}', '2027-05-01', 1, 'event a');
INSERT INTO papers VALUES ('{A}', 1, 'paper a');
INSERT INTO papers_old VALUES ('{A}', 2, 'old paper a');
INSERT INTO jobs (tenant_id, note) VALUES ('{A}', 'job a');
";

const ROWS_OF_B: &str = "
INSERT INTO orders SELECT '{B}', i, 'canary-b order' || i, 8675309042, '{\"k\": \"canary-b\"}' FROM generate_series(1, 50) AS i;
INSERT INTO items SELECT '{B}', i, i, 'canary-b item' FROM generate_series(1, 5) AS i;
INSERT INTO people VALUES (2, '{B}', 'bob@example.com', 'canary-b'), (3, '{B}', 'canary-b@example.com', 'canary-b');
INSERT INTO badges VALUES (2, '{B}', 2, 'canary-b');
INSERT INTO invoices VALUES (2, 1, 'canary-b', 8675309042), (2, 2, 'canary-b', 8675309042);
INSERT INTO parcels VALUES (2, 1, 'canary-b');
INSERT INTO events VALUES ('{B}', '2026-05-01', 1, 'canary-b'), ('{B}', '2027-05-01', 1, 'canary-b');
INSERT INTO papers VALUES ('{B}', 1, 'canary-b');
INSERT INTO papers_old VALUES ('{B}', 2, 'canary-b');
INSERT INTO jobs (tenant_id, note) VALUES ('{B}', 'canary-b');
SET client_min_messages = error;
BEGIN;
SELECT set_tenant('{B}');
SELECT tenant_quota_consume('calls', 8675309), tenant_quota_consume('seats', 7);
SELECT tenant_quota_consume('calls', 5, 'key of b'), tenant_quota_consume_many('{\"calls\": 1}', 'many of b'),
    tenant_quota_reserve('seats', 1, '30 days', 'hold of b');
SELECT tenant_cache_set(key, '\"canary-b\"', '1 year') FROM unnest(ARRAY['page:1', 'page:2', 'only-b', '*', '%', 'page:*', '',
    '{B}', '{B}:page:1', 'tenant:{B}:page:1', 'page:1'' OR true --', chr(1114111) || '1']) AS key;
COMMIT;
SELECT tenant_feature_set('beta', '\"canary-b\"', 'tenant', tenant => '{B}'),
    tenant_feature_set('dark', 'true', 'tenant', tenant => '{B}'),
    tenant_setting_set('theme', '\"canary-b\"', 'tenant', tenant => '{B}'),
    tenant_release('api', 'canary-b:2', 0, tenants => ARRAY['{B}']::uuid[]);
";

/// All that an attack may leave behind, but for what is temporary: a copy in which this is as before serves again.
pub const STATE: &str = "
SELECT md5(concat_ws('|',
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM orders AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM items AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM people AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM badges AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM invoices AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM parcels AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM events AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM papers AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM jobs AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.cache AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.cache_parts AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.usage_history AS t),
    -- Others a worker writes, when it comes.
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.quota_events AS t WHERE period_start < '2021-01-01'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.units AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.idempotency_keys AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.reservations AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.leases AS t),
    (SELECT count(*) FROM tenant_rls.used_tickets),
    (SELECT last_value FROM jobs_id_seq),
    (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())),
    (SELECT count(*) FROM pg_class WHERE relpersistence <> 't' AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(temp|toast)')),
    (SELECT count(*) FROM pg_proc WHERE pronamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_temp')),
    (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast)'),
    (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_rewrite), (SELECT count(*) FROM pg_constraint)))";

/// What B does while the attacker's transactions are open. None of it may wait.
pub const LIFE_OF_B: &str = "
SET lock_timeout = '500ms';
SET app.current_tenant = '{B}';
BEGIN;
INSERT INTO orders (id, note) VALUES (900, 'canary-b');
UPDATE orders SET note = note || '.' WHERE id = 1;
DELETE FROM orders WHERE id = 2;
INSERT INTO items (id, order_id, note) VALUES (900, 900, 'canary-b');
INSERT INTO people VALUES (900, '{B}', 'b900@example.com', 'canary-b');
UPDATE people SET note = note || '.' WHERE id = 2;
INSERT INTO badges VALUES (900, '{B}', 900, 'canary-b');
INSERT INTO invoices (id, note) VALUES (900, 'canary-b');
INSERT INTO parcels (id, note) VALUES (900, 'canary-b');
INSERT INTO events (day, id, note) VALUES ('2026-06-01', 900, 'canary-b'), ('2027-06-01', 900, 'canary-b');
INSERT INTO papers (id, note) VALUES (900, 'canary-b');
INSERT INTO jobs (note) VALUES ('canary-b');
SELECT allowed FROM tenant_quota_consume('calls', 1);
SELECT allowed FROM tenant_quota_consume('seats', 1);
SELECT tenant_cache_set('page:1', '\"canary-b\"'), tenant_cache_invalidate('page:*');
ROLLBACK;
";

/// One line for all that belongs to B, and for all that keeps it apart.
pub const DIGEST: &str = "
SELECT md5(concat_ws('|',
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM orders AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM items AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM people AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM badges AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM invoices AS t WHERE account_id = 2),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM parcels AS t WHERE account = 2),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM events AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM papers AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM jobs AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.cache AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.cache_parts AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.usage_history AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.quota_events AS t WHERE tenant_id = '{B}' AND period_start < '2021-01-01'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.idempotency_keys AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.reservations AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.leases AS t WHERE tenant_id = '{B}'),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.units AS t WHERE tenant_id = '{B}')))
|| md5(concat_ws('|',
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.tenants AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.grants AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.operators AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.signing_keys AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.overrides AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.plan_limits AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.resources AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.features AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.feature_values AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.settings AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.deployments AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.releases AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.release_targets AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.attachments AS t),
    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM tenant_rls.protected_tables AS t)))
|| md5(concat_ws('|',
    (SELECT string_agg(concat_ws(' ', polrelid::regclass, polname, polpermissive, polroles, polcmd,
        pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)), ',' ORDER BY polrelid, polname) FROM pg_policy
        -- Tables of the attacker's own may be locked.
        WHERE polrelid IN (SELECT oid FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'tenant_rls'::regnamespace))),
    (SELECT string_agg(concat_ws(' ', c.oid::regclass, relrowsecurity, relforcerowsecurity, relowner, relacl), ',' ORDER BY c.oid)
        FROM pg_class AS c WHERE relnamespace IN ('public'::regnamespace, 'tenant_rls'::regnamespace)),
    (SELECT string_agg(concat_ws(' ', p.oid::regprocedure, proacl, prosecdef, proconfig, md5(prosrc)), ',' ORDER BY p.oid)
        FROM pg_proc AS p WHERE pronamespace IN ('public'::regnamespace, 'tenant_rls'::regnamespace)),
    -- Temporary tables go a moment after the session of the attacker.
    (SELECT string_agg(concat_ws(' ', tgrelid, tgname, tgenabled), ',' ORDER BY tgrelid, tgname) FROM pg_trigger
        JOIN pg_class AS c ON c.oid = tgrelid WHERE c.relpersistence <> 't'),
    (SELECT string_agg(concat_ws(' ', evtname, evtenabled), ',' ORDER BY evtname) FROM pg_event_trigger),
    (SELECT string_agg(extname, ',' ORDER BY extname) FROM pg_extension)))";
