// A nightly job: deletes old orders, tenant by tenant, each in a transaction of its own.
import pg from 'pg';
import { pathToFileURL } from 'node:url';
import { makePool } from './app.js';
import { tenant, Transaction } from './tenant.js';

/**
 * Calls `work` for every active tenant; returns those that failed. One that fails does not stop the others.
 * `office` is a connection of an operator, who may list the tenants; `pool` is the application's, which may act for them.
 */
export async function forEachTenant(office, pool, work) {
  const failed = [];
  for (const { id } of (await office.query('SELECT tenant_list() AS id')).rows) {
    let transaction;
    try {
      transaction = await Transaction.begin(pool, id);
      await transaction.run(work);
      await transaction.commit();
    } catch (error) {
      await transaction?.rollback();
      if (!transaction && !(await isActive(office, id))) continue; // suspended or deleted meanwhile
      console.error('tenant %s failed: %s', id, error.message);
      failed.push(id);
    }
  }
  return failed;
}

/** Tells a tenant that is over from one that the role may not act for, which is a failure. */
async function isActive(office, id) {
  return (await office.query('SELECT $1::uuid IN (SELECT tenant_list()) AS active', [id])).rows[0].active;
}

export async function deleteOldOrders() {
  // No WHERE tenant_id: the server adds it.
  await tenant().query(`DELETE FROM orders WHERE created_at < now() - interval '1 year'`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const office = new pg.Client({ user: 'office' });
  const pool = makePool({ max: 1 });
  await office.connect();
  process.exitCode = (await forEachTenant(office, pool, deleteOldOrders)).length > 0 ? 1 : 0;
  await office.end();
  await pool.end();
}
