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

-- A limit that is never reached but always compared with, on both sides.
INSERT INTO hand_limits
SELECT t, 'api_requests', 1000000000000000 FROM tenant_list() AS t;
SELECT count(tenant_quota_set(t, 'api_requests', 1000000000000000)::text) FROM tenant_list() AS t;
ANALYZE hand_limits;
