-- The source document's own policy, on its own copy of the tables.
ALTER TABLE orders_document ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON orders_document
USING (tenant_id = current_setting('app.current_tenant')::uuid);
ALTER TABLE order_items_document ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON order_items_document
USING (tenant_id = current_setting('app.current_tenant')::uuid);
ALTER TABLE new_orders_document ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON new_orders_document
USING (tenant_id = current_setting('app.current_tenant')::uuid);
