// Orders of many tenants. The server is where PGHOST, PGPORT, PGDATABASE and PGUSER say.
import { pathToFileURL } from 'node:url';
import { sql } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';
import { bigint, pgTable, text, timestamp, uuid } from 'drizzle-orm/pg-core';
import express from 'express';
import pg from 'pg';
import { refused, tenant, tenantOf } from './tenant.js';

export const orders = pgTable('orders', {
  id: bigint({ mode: 'number' }).generatedAlwaysAsIdentity(),
  tenantId: uuid('tenant_id').notNull().default(sql`required_tenant()`),
  item: text().notNull(),
  createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
});

export function makeApp(db, more = () => {}) {
  const app = express();
  const forTenant = tenantOf(db);
  app.use(express.json());

  app.get('/orders', forTenant(async () => {
    const found = await tenant().db.select({ id: orders.id, item: orders.item }).from(orders).orderBy(orders.id);
    return { settings: tenant().context.settings, orders: found };
  }));

  app.post('/orders', forTenant(async (req, res) => {
    await tenant().db.execute(sql`SELECT * FROM tenant_quota_consume('api_requests')`);
    // A client that names another tenant in the body is refused by the server: 42501.
    const [order] = await tenant().db.insert(orders)
      .values({ tenantId: req.body.tenant_id, item: req.body.item })
      .returning({ id: orders.id, item: orders.item });
    res.status(201);
    return { settings: tenant().context.settings, order };
  }));

  more(app, forTenant);
  app.use(refused);
  return app;
}

export function makePool(options) {
  const pool = new pg.Pool({ max: 5, ...options });
  pool.on('error', (error) => console.error('an idle connection was lost: %s', error.message));
  // One that is lost in a transaction also rejects the query; without a listener it ends Node.
  pool.on('connect', (client) => client.on('error', () => {}));
  return pool;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) makeApp(drizzle(makePool())).listen(8000);
