-- What an application would write by hand to count requests: the limit looked up, one conditional UPDATE.
CREATE TABLE hand_limits (
    tenant_id uuid,
    resource text,
    quota_limit bigint NOT NULL,
    PRIMARY KEY (tenant_id, resource)
);
CREATE TABLE hand_usage (
    tenant_id uuid,
    resource text,
    period_start timestamptz,
    used bigint NOT NULL,
    PRIMARY KEY (tenant_id, resource, period_start)
);

CREATE FUNCTION hand_consume(wanted text, n bigint DEFAULT 1) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    tenant uuid := current_setting('my.tenant')::uuid;
    period timestamptz := date_trunc('month', clock_timestamp(), 'UTC');
    lim bigint;
    now_used bigint;
BEGIN
    SELECT quota_limit INTO STRICT lim FROM hand_limits WHERE tenant_id = tenant AND resource = wanted;
    LOOP
        UPDATE hand_usage SET used = used + n
        WHERE tenant_id = tenant AND resource = wanted AND period_start = period AND used <= lim - n
        RETURNING used INTO now_used;
        IF FOUND THEN
            RETURN true;
        END IF;
        INSERT INTO hand_usage VALUES (tenant, wanted, period, 0) ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END LOOP;
END
$$;

-- Called as ours, and does nothing: see no_consume.c.
CREATE FUNCTION no_consume(
    answer tenant_quota_result DEFAULT ROW(
        true, 1, 'leased_requests', 1, 0, 1000000000000000, 999999999999999, timestamptz '2026-01-01 00:00Z',
        timestamptz '2026-02-01 00:00Z', NULL::interval, 'granted', 'plan', 'hard', 'leased', NULL::uuid)::tenant_quota_result,
    resource text DEFAULT NULL,
    amount bigint DEFAULT 1
) RETURNS tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS '$libdir/tenant_rls_no_consume', 'no_consume';

-- A resource for each mode, with a limit that is never reached but always compared with, on both sides; and one that has
-- nothing left for anybody who has used it once.
INSERT INTO hand_limits
SELECT t, 'api_requests', 1000000000000000 FROM tenant_list() AS t;
SELECT count(tenant_quota_set(t, 'api_requests', 1000000000000000)::text) FROM tenant_list() AS t;
SELECT tenant_resource_define(name || '_requests', 'counter', 'request', 'month')
FROM unnest(ARRAY['escrow', 'leased', 'denied']) AS name;
SELECT
    tenant_plan_limit_set('enterprise', 'api_requests', 1000000000000000, mode => 'strict'),
    tenant_plan_limit_set('enterprise', 'escrow_requests', 1000000000000000, mode => 'escrow'),
    tenant_plan_limit_set('enterprise', 'leased_requests', 1000000000000000, mode => 'leased'),
    tenant_plan_limit_set('enterprise', 'denied_requests', 10, mode => 'escrow');
ANALYZE hand_limits;

-- What a business transaction writes.
CREATE TABLE quota_orders (
    tenant_id uuid NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    total numeric NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
