// The tenant of a request, for Drizzle on pg, with Express 5. Copy this file.
//
//     const forTenant = tenantOf(drizzle(pool));
//     app.get('/orders', forTenant(() => tenant().db.select().from(orders)));
//     app.use(refused);
//
// Each request is one transaction of the tenant that X-Tenant-ID names. What the handler returns is sent after COMMIT; a
// handler that throws is rolled back.
import { AsyncLocalStorage } from 'node:async_hooks';
import { sql } from 'drizzle-orm';

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const running = new AsyncLocalStorage();

/** What the request or job acts with: `db`, Drizzle's transaction, and `context`, which is tenant_context(). */
export function tenant() {
  const acting = running.getStore();
  if (!acting) throw new Error('this code does not run for a tenant');
  return acting;
}

/** The server does not let the role act for this tenant: unknown, not granted, suspended or deleted. */
export class TenantRefused extends Error {}

/** A transaction that acts for a tenant: for requests and for jobs. */
export async function actingFor(db, id, work) {
  let failure;
  const attempt = db.transaction(async (tx) => {
    // Code that goes on after the end must not meet the next tenant on the same connection.
    const { proxy, revoke } = Proxy.revocable(tx, {});
    try {
      await tx.execute(sql`SELECT set_tenant(${id})`).catch((error) => {
        const { code, message } = error.cause ?? error;
        throw ['42501', '42704', '55000'].includes(code) ? new TenantRefused(message) : error;
      });
      const { rows } = await tx.execute(sql`SELECT tenant_context() AS context`);
      const result = await running.run({ db: proxy, context: rows[0].context }, work);
      await tx.execute(sql`SELECT 1`); // throws if an error was swallowed: COMMIT would roll back, and say nothing
      return result;
    } catch (error) {
      failure = error; // of a lost connection the ROLLBACK fails as well, and says less
      throw error;
    } finally {
      revoke();
    }
  });
  return attempt.catch((error) => { throw failure ?? error; });
}

/** Makes routes of handlers that return their answer. */
export const tenantOf = (db) => (handler) => async (req, res) => {
  const [id, ...more] = req.headersDistinct['x-tenant-id'] ?? [];
  if (more.length > 0 || !UUID.test(id)) return res.status(400).json({ error: 'X-Tenant-ID must be one uuid' });
  try {
    return res.json(await actingFor(db, id, () => handler(req, res)));
  } catch (error) {
    if (!(error instanceof TenantRefused)) throw error;
    console.warn('tenant %s: %s', id, error.message); // one answer for all: nobody finds out which tenants there are
    return res.status(403).json({ error: 'not your tenant' });
  }
};

/** What the server refused to a handler, as HTTP. Drizzle has the server's error as `cause`. */
export function refused(error, req, res, next) {
  const { code, detail, message } = error.cause ?? error;
  const status = { 53400: 429, 42501: 403, 42704: 404, 25006: 503 }[code];
  if (status !== 429) return status ? res.status(status).json({ error: message }) : next(error);
  const facts = JSON.parse(detail); // the quota is used up; retry_after is null where waiting does not help
  if (facts.retry_after !== null) res.set('Retry-After', String(facts.retry_after));
  return res.status(429).json(facts);
}
