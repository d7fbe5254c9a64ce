-- The order database that reads and INSERTs are measured on. One tenant owns every other order; 49 share the rest.
-- Three copies with the same rows in the same order and the same indexes:
--   orders            gets tenant_protect
--   orders_plain      has no row level security
--   orders_document   has the policy of the source document
-- order_items and new_orders (empty, for INSERTs) likewise.

CREATE FUNCTION tenant_of(n integer) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || 100000000001 + CASE WHEN n % 2 = 1 THEN 0 ELSE 1 + n / 2 % 49 END)::uuid;

CREATE TABLE orders (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    total decimal(10, 2),
    created_at timestamp DEFAULT now()
);
CREATE TABLE order_items (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id uuid NOT NULL,
    order_id uuid NOT NULL,
    product text NOT NULL,
    quantity integer NOT NULL,
    price decimal(10, 2) NOT NULL
);
CREATE INDEX orders_tenant_created_idx ON orders (tenant_id, created_at);
CREATE INDEX order_items_tenant_order_idx ON order_items (tenant_id, order_id);

CREATE TABLE orders_plain (LIKE orders INCLUDING ALL);
CREATE TABLE orders_document (LIKE orders INCLUDING ALL);
CREATE TABLE order_items_plain (LIKE order_items INCLUDING ALL);
CREATE TABLE order_items_document (LIKE order_items INCLUDING ALL);
CREATE TABLE new_orders (LIKE orders INCLUDING ALL);
CREATE TABLE new_orders_plain (LIKE orders INCLUDING ALL);
CREATE TABLE new_orders_document (LIKE orders INCLUDING ALL);

INSERT INTO orders_plain (id, tenant_id, customer_id, total, created_at)
SELECT
    md5(n::text)::uuid,
    tenant_of(n),
    md5('customer ' || n % 1000)::uuid,
    n % 10000 / 100.0,
    timestamp '2024-01-01' + n * interval '30 seconds'
FROM generate_series(1, 1000000) AS n;
INSERT INTO orders SELECT * FROM orders_plain;
INSERT INTO orders_document SELECT * FROM orders_plain;

INSERT INTO order_items_plain (tenant_id, order_id, product, quantity, price)
SELECT tenant_of(n), md5(n::text)::uuid, 'product ' || n % 500, 1 + n % 5, n % 1000 / 10.0
FROM generate_series(1, 200000) AS n, generate_series(1, 3);
INSERT INTO order_items (tenant_id, order_id, product, quantity, price)
SELECT tenant_id, order_id, product, quantity, price FROM order_items_plain;
INSERT INTO order_items_document (tenant_id, order_id, product, quantity, price)
SELECT tenant_id, order_id, product, quantity, price FROM order_items_plain;

-- What the server-side loops look for, all of it of the large tenant.
CREATE TABLE samples AS
SELECT
    k AS n,
    md5((2 * (k * 7919 % 500000) + 1)::text)::uuid AS id,
    md5((2 * (k * 7919 % 100000) + 1)::text)::uuid AS id_with_items,
    timestamp '2024-01-01' + k * 7919 % 990000 * interval '30 seconds' AS since
FROM generate_series(1, 10000) AS k;

VACUUM (FREEZE, ANALYZE);
