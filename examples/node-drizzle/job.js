// A nightly job: deletes old orders, tenant by tenant, each in a transaction of its own.
import { pathToFileURL } from 'node:url';
import { lt, sql } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';
import { makePool, orders } from './app.js';
import { actingFor, tenant, TenantRefused } from './tenant.js';

/**
 * Calls `work` for every active tenant; returns those that failed. One that fails does not stop the others.
 * `office` is the database as an operator, who may list the tenants; `db` as the application, which may act for them.
 */
export async function forEachTenant(office, db, work) {
  const failed = [];
  for (const { id } of (await office.execute(sql`SELECT tenant_list() AS id`)).rows) {
    try {
      await actingFor(db, id, work);
    } catch (error) {
      if (error instanceof TenantRefused && !(await isActive(office, id))) continue; // suspended or deleted meanwhile
      console.error('tenant %s failed: %s', id, error.message);
      failed.push(id);
    }
  }
  return failed;
}

/** Tells a tenant that is over from one that the role may not act for, which is a failure. */
async function isActive(office, id) {
  return (await office.execute(sql`SELECT ${id}::uuid IN (SELECT tenant_list()) AS active`)).rows[0].active;
}

export async function deleteOldOrders() {
  // No condition on the tenant: the server adds it.
  await tenant().db.delete(orders).where(lt(orders.createdAt, sql`now() - interval '1 year'`));
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const pools = [makePool({ user: 'office', max: 1 }), makePool({ max: 1 })];
  const failed = await forEachTenant(...pools.map((pool) => drizzle(pool)), deleteOldOrders);
  process.exitCode = failed.length > 0 ? 1 : 0;
  await Promise.all(pools.map((pool) => pool.end()));
}
