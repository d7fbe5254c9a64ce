-- A cache of each tenant. Unlogged: it writes no WAL, is empty after a crash and on a standby, and no dump carries it.
-- The order of the columns is known to src/registry/scan.rs.

-- Values up to a page stay in the row.
CREATE UNLOGGED TABLE tenant_rls.cache (
    tenant_id uuid NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    set_at timestamp with time zone NOT NULL,
    size bigint NOT NULL,
    replaced bigint NOT NULL,
    key text COLLATE pg_catalog."C" NOT NULL,
    value jsonb NOT NULL,
    CONSTRAINT cache_pkey PRIMARY KEY (tenant_id, key)
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX cache_age_idx ON tenant_rls.cache (tenant_id, set_at);
CREATE INDEX cache_expiry_idx ON tenant_rls.cache (tenant_id, expires_at);

-- What the entries of a tenant add up to, in parts: two open transactions of a tenant write different rows.
CREATE UNLOGGED TABLE tenant_rls.cache_parts (
    tenant_id uuid NOT NULL,
    part integer NOT NULL,
    key_count bigint NOT NULL,
    size bigint NOT NULL,
    hits bigint NOT NULL,
    misses bigint NOT NULL,
    evictions bigint NOT NULL,
    CONSTRAINT cache_parts_pkey PRIMARY KEY (tenant_id, part)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Faster than the server's own compression, where the server was built with it.
DO $$
BEGIN
    ALTER TABLE tenant_rls.cache ALTER COLUMN value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;

ALTER TABLE tenant_rls.cache ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.cache_parts ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE tenant_rls.cache IS 'entries of the caches of all tenants; unlogged, not dumped';
COMMENT ON TABLE tenant_rls.cache_parts IS 'keys, bytes, hits, misses and evictions of the caches, several rows a tenant; unlogged, not dumped';

CREATE TYPE @extschema@.tenant_cache_stats_result AS (
    key_count bigint,
    total_size_bytes bigint,
    total_size_mb numeric,
    hits bigint,
    misses bigint,
    evictions bigint,
    budget bigint
);
COMMENT ON TYPE @extschema@.tenant_cache_stats_result IS
'the cache of a tenant: entries and their bytes, what was found and not found, what went because the budget was used up; budget NULL is unlimited';

CREATE FUNCTION @extschema@.tenant_cache_get(key text) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_cache_get';
COMMENT ON FUNCTION @extschema@.tenant_cache_get(text) IS
'the value of a key in the cache of the tenant of the session, or NULL: not there, expired, or on a standby';

CREATE FUNCTION @extschema@.tenant_cache_set(key text, value jsonb, ttl interval DEFAULT '300 s') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_cache_set';
COMMENT ON FUNCTION @extschema@.tenant_cache_set(text, jsonb, interval) IS
'keeps a value for the tenant of the session until ttl is over; over the budget (resource cache_bytes) its oldest entries go. 25006 standby or fenced, 22023 bad ttl or key';

CREATE FUNCTION @extschema@.tenant_cache_delete(key text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_cache_delete';
COMMENT ON FUNCTION @extschema@.tenant_cache_delete(text) IS
'removes a key from the cache of the tenant of the session; whether it was there';

CREATE FUNCTION @extschema@.tenant_cache_invalidate(pattern text) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_cache_invalidate';
COMMENT ON FUNCTION @extschema@.tenant_cache_invalidate(text) IS
'removes the keys of a pattern (*, ?, [a-z], [^a], \ as in Redis) from the cache of the tenant of the session; how many. What stands before the first * or ? is looked up in an index';

CREATE FUNCTION @extschema@.tenant_cache_stats() RETURNS @extschema@.tenant_cache_stats_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_cache_stats';
COMMENT ON FUNCTION @extschema@.tenant_cache_stats() IS
'entries, bytes, hits, misses, evictions and budget of the cache of the tenant of the session';

CREATE FUNCTION @extschema@.tenant_cache_key(key text) RETURNS text
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tenant_cache_key_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_cache_key(text) IS
'tenant:{id}:{key}, the name of the key in a cache outside that tenants share';

CREATE FUNCTION tenant_rls.cache_key_matches(key text, pattern text) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cache_key_matches_wrapper';
COMMENT ON FUNCTION tenant_rls.cache_key_matches(text, text) IS
'whether a key is one of a pattern, for tenant_cache_invalidate';

CREATE VIEW @extschema@.tenant_cache_usage AS
SELECT
    p.tenant_id AS tenant,
    pg_catalog.sum(p.key_count)::bigint AS key_count,
    pg_catalog.sum(p.size)::bigint AS total_size_bytes,
    pg_catalog.sum(p.hits)::bigint AS hits,
    pg_catalog.sum(p.misses)::bigint AS misses,
    pg_catalog.sum(p.evictions)::bigint AS evictions
FROM tenant_rls.cache_parts AS p
WHERE tenant_rls.sees_all()
GROUP BY p.tenant_id;
COMMENT ON VIEW @extschema@.tenant_cache_usage IS 'the caches of all tenants that have had an entry since the server last crashed';
