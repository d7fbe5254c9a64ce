// The tenant of a request, for Express 5 and pg. Copy this file.
//
//     app.use(express.json(), tenantOf(pool));
//     app.get('/orders', async (req, res) => res.json((await tenant().query('SELECT id, item FROM orders')).rows));
//     app.use(refused);
//
// Each request is one transaction of the tenant that X-Tenant-ID names. It ends before the answer leaves: COMMIT if its
// status is below 400, else ROLLBACK.
import { AsyncLocalStorage } from 'node:async_hooks';

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const running = new AsyncLocalStorage();
const nothing = () => {};
const fail = (message) => { throw new Error(message); };

/** The transaction of the request or job that calls this: `query`, and `context`, which is tenant_context(). */
export const tenant = () => running.getStore() ?? fail('this code does not run for a tenant');

export class Transaction {
  #client;

  static async begin(pool, id) {
    const self = new Transaction();
    self.#client = await pool.connect();
    self.#client.on('error', nothing); // a lost connection also rejects the query; without a listener it ends Node
    try {
      await self.query('BEGIN');
      await self.query('SELECT set_tenant($1)', [id]);
      self.context = (await self.query('SELECT tenant_context() AS context')).rows[0].context;
      return self;
    } catch (error) {
      await self.rollback();
      throw error;
    }
  }

  run = (work) => running.run(this, work);
  // Code that goes on after the answer must not meet the next tenant on the same connection.
  query = async (...what) => (this.#client ?? fail('the transaction of this tenant has ended')).query(...what);

  rollback = () => this.#end('ROLLBACK').catch(nothing); // a lost connection has rolled back

  async commit() {
    const { command } = await this.#end('COMMIT');
    if (command !== 'COMMIT') fail('rolled back: a statement had failed, and its error was not passed on');
  }

  /** Closes the connection. For when nobody waits for the answer. */
  abandon = () => this.#take()?.off('error', nothing).release(true);

  async #end(how) {
    const client = this.#take() ?? fail('the transaction of this tenant has ended');
    const result = await client.query(how).catch((error) => error);
    client.off('error', nothing).release(result instanceof Error ? result : undefined);
    return result instanceof Error ? Promise.reject(result) : result;
  }

  #take() {
    const client = this.#client;
    this.#client = undefined;
    return client;
  }
}

/** The middleware. */
export const tenantOf = (pool) => async (req, res, next) => {
  const [id, ...more] = req.headersDistinct['x-tenant-id'] ?? [];
  if (more.length > 0 || !UUID.test(id)) return res.status(400).json({ error: 'X-Tenant-ID must be one uuid' });
  const transaction = await Transaction.begin(pool, id).catch((error) => {
    if (!['42501', '42704', '55000'].includes(error.code)) throw error;
    console.warn('tenant %s: %s', id, error.message);
  }); // one answer for all reasons: nobody finds out which tenants there are
  if (!transaction) return res.status(403).json({ error: 'not your tenant' });
  if (res.destroyed) return transaction.abandon();
  res.on('close', transaction.abandon);
  const end = res.end;
  res.end = (...answer) => {
    res.end = () => res; // once
    const ended = res.statusCode < 400 ? transaction.commit() : transaction.rollback();
    ended.then(() => end.apply(res, answer), (error) => {
      if (res.destroyed) return; // the client has left
      console.error(error);
      if (res.headersSent) return res.destroy();
      for (const name of res.getHeaderNames()) res.removeHeader(name);
      res.statusCode = 500;
      end.call(res);
    });
    return res;
  };
  transaction.run(next);
};

/** What the server refused to a handler, as HTTP. */
export function refused(error, req, res, next) {
  const status = { 53400: 429, 42501: 403, 42704: 404, 25006: 503 }[error.code];
  if (status !== 429) return status ? res.status(status).json({ error: error.message }) : next(error);
  const detail = JSON.parse(error.detail); // the quota is used up; retry_after is null where waiting does not help
  return res.set(detail.retry_after === null ? {} : { 'Retry-After': String(detail.retry_after) }).status(429).json(detail);
}
