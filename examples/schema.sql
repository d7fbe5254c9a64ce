-- The database of the examples, as the owner of an application would set it up. Run by scripts/examples.

CREATE EXTENSION tenant_rls;

CREATE TABLE orders (
    tenant_id uuid NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    item text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
SELECT tenant_protect('orders');

-- What every tenant may hold: any number, unless it has a limit of its own. The plan `viewer` says nothing about orders,
-- which refuses them.
SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
SELECT tenant_quota_attach('orders', 'orders');
SELECT tenant_plan_limit_set('starter', 'orders', NULL, unlimited => true);
SELECT tenant_plan_define('viewer');
SELECT tenant_plan_limit_set('viewer', 'api_requests', 1000);

-- The application: one role without login that holds the privileges, one login that is a member of it.
CREATE ROLE app_user;
CREATE ROLE shop LOGIN IN ROLE app_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO app_user;
SELECT tenant_grant('app_user');

-- An application that may act for one tenant only.
SELECT tenant_create('aaaaaaaa-0000-4000-8000-000000000001', 'starter');
CREATE ROLE partner LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO partner;
SELECT tenant_grant('partner', 'aaaaaaaa-0000-4000-8000-000000000001');

-- Who registers tenants and lists them for jobs. It sees no orders.
CREATE ROLE office LOGIN;
SELECT tenant_grant_operator('office');
