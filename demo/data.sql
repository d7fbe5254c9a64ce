-- 50 tenants on the four plans and 210 000 orders. Tenant 1 owns half of them; tenant 3, on plan free, has as many
-- as the plan allows. The same rows at every run, but for the ids of orders.

SET synchronous_commit = off;
SELECT setseed(0.5);

CREATE TEMPORARY TABLE t AS
SELECT
    n,
    CASE n
        WHEN 1 THEN :'a'::uuid
        WHEN 2 THEN :'b'::uuid
        WHEN 3 THEN :'c'::uuid
        ELSE md5('tenant ' || n)::uuid
    END AS id,
    CASE
        WHEN n = 1 THEN 'enterprise'
        WHEN n = 2 THEN 'professional'
        WHEN n <= 20 THEN 'free'
        WHEN n <= 35 THEN 'starter'
        WHEN n <= 45 THEN 'professional'
        ELSE 'enterprise'
    END AS plan,
    CASE
        WHEN n = 1 THEN 105000
        WHEN n = 2 THEN 5016
        WHEN n = 3 THEN 100
        WHEN n <= 20 THEN 20 + 4 * (n - 4)
        ELSE 3300 + 60 * (2 * n - 71)
    END AS orders
FROM generate_series(1, 50) AS n;

SELECT tenant_create(id, plan, 'Tenant ' || n) FROM t ORDER BY n;

INSERT INTO customers (id, tenant_id, name)
SELECT md5(t.n || ' ' || c)::uuid, t.id, 'Customer ' || c
FROM t, generate_series(0, 19) AS c;

-- In the order of time, as they would have come: the rows of the tenants lie mixed in the table.
INSERT INTO orders (tenant_id, customer_id, total, created_at)
SELECT t.id, md5(t.n || ' ' || o % 20)::uuid, (random() * 500)::decimal(10,2), moment
FROM t, generate_series(1, t.orders) AS o, LATERAL (SELECT timestamp '2026-01-01' + (o + random()) * interval '300 days' / t.orders AS moment) AS m
ORDER BY moment;

INSERT INTO order_items (tenant_id, order_id, line, product, quantity, price)
SELECT o.tenant_id, o.id, line, 'Product ' || line, 1 + line % 3, o.total / 2
FROM orders AS o, generate_series(1, 2) AS line;
