// Orders of many tenants. The server is where PGHOST, PGPORT, PGDATABASE and PGUSER say.
import express from 'express';
import pg from 'pg';
import { pathToFileURL } from 'node:url';
import { refused, tenant, tenantOf } from './tenant.js';

export function makeApp(pool, more = () => {}) {
  const app = express();
  app.use(express.json(), tenantOf(pool));

  app.get('/orders', async (req, res) => {
    const { rows } = await tenant().query('SELECT id, item FROM orders ORDER BY id');
    res.json({ settings: tenant().context.settings, orders: rows });
  });

  app.post('/orders', async (req, res) => {
    await tenant().query(`SELECT * FROM tenant_quota_consume('api_requests')`);
    // A client that names another tenant in the body is refused by the server: 42501.
    const { rows } = await tenant().query(
      'INSERT INTO orders (tenant_id, item) VALUES (coalesce($1, required_tenant()), $2) RETURNING id, item',
      [req.body.tenant_id, req.body.item],
    );
    res.status(201).json({ settings: tenant().context.settings, order: rows[0] });
  });

  more(app);
  app.use(refused);
  return app;
}

export function makePool(options) {
  const pool = new pg.Pool({ max: 5, ...options });
  pool.on('error', (error) => console.error('an idle connection was lost: %s', error.message));
  return pool;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) makeApp(makePool()).listen(8000);
