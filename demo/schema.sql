-- The order database of the tour: tables, roles, protection and a quota, as a user of tenant_rls would set them up.

-- Ten thousand commits one after the other: this cluster is thrown away, it need not survive a power cut.
ALTER DATABASE demo SET synchronous_commit = off;
SET synchronous_commit = off;

CREATE EXTENSION tenant_rls;

CREATE TABLE customers (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE orders (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    total decimal(10,2),
    created_at timestamp DEFAULT now(),
    -- With the tenant in the key, an order cannot refer to a customer of another tenant.
    FOREIGN KEY (tenant_id, customer_id) REFERENCES customers (tenant_id, id),
    UNIQUE (tenant_id, id)
);
CREATE INDEX ON orders (tenant_id, created_at);

CREATE TABLE order_items (
    tenant_id uuid NOT NULL,
    order_id uuid NOT NULL,
    line int NOT NULL,
    product text NOT NULL,
    quantity int NOT NULL,
    price decimal(10,2) NOT NULL,
    PRIMARY KEY (tenant_id, order_id, line),
    FOREIGN KEY (tenant_id, order_id) REFERENCES orders (tenant_id, id)
);

-- What every tenant may hold: 100 orders on plan free, any number on the others.
SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
SELECT tenant_plan_limit_set('free', 'orders', 100);
SELECT tenant_plan_limit_set(plan, 'orders', NULL, unlimited => true)
FROM unnest(ARRAY['starter', 'professional', 'enterprise']) AS plan;

-- The application: one role without login that holds the privileges, one login that is a member of it.
CREATE ROLE app_user;
CREATE ROLE shop LOGIN IN ROLE app_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON customers, orders, order_items TO app_user;
SELECT tenant_grant('app_user');

-- The people who sell plans.
CREATE ROLE office LOGIN;
SELECT tenant_grant_operator('office');
