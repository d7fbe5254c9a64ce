-- Signed tickets: the keys that they are checked with, and the single-use ones that were used.
-- The order of the columns is known to src/registry/scan.rs.

CREATE TABLE tenant_rls.signing_keys (
    kid text COLLATE pg_catalog."C" NOT NULL,
    algorithm text COLLATE pg_catalog."C" NOT NULL,
    key bytea NOT NULL,
    not_before timestamp with time zone,
    not_after timestamp with time zone,
    CONSTRAINT signing_keys_pkey PRIMARY KEY (kid),
    CONSTRAINT signing_keys_kid_check CHECK (pg_catalog.octet_length(kid) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(kid) OPERATOR(pg_catalog.<=) 255),
    CONSTRAINT signing_keys_algorithm_check
        CHECK (algorithm OPERATOR(pg_catalog.=) ANY (ARRAY['HS256'::pg_catalog.text, 'EdDSA'::pg_catalog.text])),
    CONSTRAINT signing_keys_key_check
        CHECK (pg_catalog.octet_length(key) OPERATOR(pg_catalog.=) 32
            OR algorithm OPERATOR(pg_catalog.=) 'HS256'::pg_catalog.text AND pg_catalog.octet_length(key) OPERATOR(pg_catalog.>) 32),
    CONSTRAINT signing_keys_window_check CHECK (not_before OPERATOR(pg_catalog.<) not_after)
);

-- A hash of kid and jti, which may be text in any encoding.
CREATE TABLE tenant_rls.used_tickets (
    digest bytea NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT used_tickets_pkey PRIMARY KEY (digest)
);
CREATE INDEX used_tickets_expires_idx ON tenant_rls.used_tickets (expires_at);

ALTER TABLE tenant_rls.signing_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.used_tickets ENABLE ROW LEVEL SECURITY;

SELECT pg_catalog.pg_extension_config_dump('tenant_rls.signing_keys', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.used_tickets', '');

COMMENT ON TABLE tenant_rls.signing_keys IS 'keys that tickets are checked with: secrets of HS256, public keys of EdDSA';
COMMENT ON TABLE tenant_rls.used_tickets IS 'tickets with a jti that were used, until an hour after they expire';

CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.signing_keys
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.registry_changed();
CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON tenant_rls.signing_keys
FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change('key');
CREATE TRIGGER record_truncate AFTER TRUNCATE ON tenant_rls.signing_keys
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.record_truncate();
ALTER TABLE tenant_rls.signing_keys ENABLE ALWAYS TRIGGER registry_changed;
ALTER TABLE tenant_rls.signing_keys ENABLE ALWAYS TRIGGER record_change;
ALTER TABLE tenant_rls.signing_keys ENABLE ALWAYS TRIGGER record_truncate;

CREATE FUNCTION @extschema@.set_tenant_ticket(ticket text, is_local boolean DEFAULT true) RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_tenant_ticket_wrapper';
COMMENT ON FUNCTION @extschema@.set_tenant_ticket(text, boolean) IS
'as set_tenant, for the tenant that a signed ticket (JWT) names, until that expires. 42501 invalid ticket, 25006 single use in a read-only transaction';

CREATE FUNCTION @extschema@.tenant_signing_key_set(
    kid text,
    algorithm text,
    key bytea,
    not_before timestamp with time zone DEFAULT NULL,
    not_after timestamp with time zone DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_signing_key_set_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_signing_key_set(text, text, bytea, timestamp with time zone, timestamp with time zone) IS
'adds or replaces a key that tickets are checked with: HS256 (secret of at least 32 bytes) or EdDSA (public key of Ed25519). 22023 bad key';

CREATE FUNCTION @extschema@.tenant_signing_key_drop(kid text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_signing_key_drop_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_signing_key_drop(text) IS
'drops a key: sessions with a ticket that it signed are out at their next statement. 42704 unknown';
