-- From here on rows belong to a tenant, and orders are counted.

SELECT tenant_protect('customers');
SELECT tenant_protect('orders');
SELECT tenant_protect('order_items');
SELECT tenant_quota_attach('orders', 'orders');

-- A partner of tenant B, who may never act for another.
CREATE ROLE partner LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON customers, orders, order_items TO partner;
SELECT tenant_grant('partner', :'b');

VACUUM ANALYZE customers, orders, order_items;
