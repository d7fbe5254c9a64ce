// Against a real server, over HTTP. `make examples` gives it a new database from examples/schema.sql.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { request } from 'node:http';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { eq, sql } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';
import { makeApp, makePool, orders } from './app.js';
import { deleteOldOrders, forEachTenant } from './job.js';
import { actingFor, tenant } from './tenant.js';

const PARTNERS = 'aaaaaaaa-0000-4000-8000-000000000001'; // the one tenant that the role partner may act for
const CONNECTIONS = 5;

const office = makePool({ user: 'office', max: 1 });
const pool = makePool({ user: 'shop', max: CONNECTIONS });
let server;

const insert = (item) => tenant().db.insert(orders).values({ item });

// Each answer, that of a failure too, carries the canary that the server gave for this request's transaction.
function unruly(app, forTenant) {
  app.post('/unruly', forTenant(async (req) => {
    const { canary } = tenant().context.settings;
    await insert(canary);
    await sleep(Math.random() * 20);
    await tenant().db.execute(sql`SELECT pg_sleep(random() / 100)`);
    const { rows } = await tenant().db.execute(
      sql`SELECT array_agg(DISTINCT item) AS seen, current_tenant() AS acts_for, pg_backend_pid() AS pid FROM orders`,
    );
    const answer = { canary, tenant: tenant().context.tenantId, ...rows[0] };
    const fails = {
      works: () => {},
      raises: () => { throw new Error('on purpose'); },
      sql: () => tenant().db.execute(sql`SELECT 1 / 0`),
      'connection lost': () => tenant().db.execute(sql`SELECT pg_terminate_backend(pg_backend_pid())`),
    };
    try {
      await fails[req.query.how]();
    } catch (error) {
      throw Object.assign(error, { answer });
    }
    return answer;
  }));
  app.post('/swallows', forTenant(async () => {
    await insert('lost');
    await tenant().db.execute(sql`SELECT 1 / 0`).catch(() => {});
    return {};
  }));
  app.use((error, req, res, next) => (error.answer ? res.status(500).json(error.answer) : next(error)));
}

const listen = (app) => new Promise((resolve) => {
  const it = app.listen(0, '127.0.0.1', () => resolve(it));
  // One that closes an idle connection just when it is used again would fail a test on a busy machine.
  it.keepAliveTimeout = 120_000;
});
const url = (path, to = server) => `http://127.0.0.1:${to.address().port}${path}`;

before(async () => {
  server = await listen(makeApp(drizzle(pool), unruly));
});

after(async () => {
  server.closeAllConnections();
  server.close();
  await pool.end();
  await office.end();
});

async function newTenant(plan = 'starter') {
  const id = randomUUID();
  const canary = `canary ${randomUUID()}`;
  await office.query('SELECT tenant_create($1, $2)', [id, plan]);
  await office.query(`SELECT tenant_setting_set('canary', to_jsonb($1::text), 'tenant', tenant => $2)`, [canary, id]);
  return { id, canary };
}

const send = (path, id, body, to) => fetch(url(path, to), {
  method: body ? 'POST' : 'GET',
  headers: { 'X-Tenant-ID': id, 'Content-Type': 'application/json' },
  body: body && JSON.stringify(body),
});
const order = async (id, body, to) => (await send('/orders', id, body, to)).status;
async function items(id) {
  const answer = await send('/orders', id);
  assert.equal(answer.status, 200);
  return (await answer.json()).orders.map(({ item }) => item);
}

test('200 concurrent requests of 20 tenants over 5 connections never mix', async () => {
  const tenants = [];
  for (let i = 0; i < 20; i += 1) tenants.push(await newTenant());
  const hows = ['works', 'works', 'works', 'works', 'raises', 'raises', 'sql', 'connection lost'];
  const asked = Array.from({ length: 200 }, (_, i) => (
    { ...tenants[i % 20], how: hows[Math.floor(Math.random() * hows.length)] }
  )).sort(() => Math.random() - 0.5);

  const answers = await Promise.all(asked.map(({ id, how }) => send(`/unruly?how=${encodeURIComponent(how)}`, id, {})));

  const pids = new Set();
  const worked = new Map(tenants.map(({ id }) => [id, 0]));
  for (const [i, { id, canary, how }] of asked.entries()) {
    const body = await answers[i].json();
    assert.equal(answers[i].status, how === 'works' ? 200 : 500);
    assert.deepEqual({ ...body, pid: 0 }, { canary, tenant: id, seen: [canary], acts_for: id, pid: 0 });
    pids.add(body.pid);
    if (how === 'works') worked.set(id, worked.get(id) + 1);
  }
  const lost = asked.filter(({ how }) => how === 'connection lost').length;
  assert.ok(pids.size <= CONNECTIONS + lost, `${pids.size} connections`);
  // What worked is there, what failed is not; in the rows and in the gauge that follows them.
  for (const { id, canary } of tenants) {
    assert.deepEqual(await items(id), Array(worked.get(id)).fill(canary));
    const { rows } = await office.query(
      `SELECT used FROM tenant_usage WHERE tenant = $1 AND resource = 'orders'`, [id],
    );
    assert.equal(Number(rows[0]?.used ?? 0), worked.get(id));
  }
  assert.ok(pool.totalCount <= CONNECTIONS && pool.idleCount === pool.totalCount, 'a connection was not given back');
});

test('a COMMIT that rolls back is no success', async () => {
  const { id } = await newTenant();
  assert.equal((await send('/swallows', id, {})).status, 500);
  assert.deepEqual(await items(id), []);
});

test('code that goes on after the answer does not meet the next tenant', async () => {
  const tenants = [await newTenant(), await newTenant()];
  const single = makePool({ user: 'shop', max: 1 });
  let nextIsThere;
  let wentOn;
  const next = new Promise((resolve) => { nextIsThere = resolve; });
  const late = new Promise((resolve) => { wentOn = resolve; });
  const one = await listen(makeApp(drizzle(single), (app, forTenant) => {
    app.post('/goes-on', forTenant(async () => {
      await insert('late');
      const { db } = tenant();
      next.then(() => db.insert(orders).values({ item: 'late' })).then(() => wentOn('went on'), () => wentOn('refused'));
      return {};
    }));
    app.post('/next', forTenant(async () => {
      nextIsThere();
      return { late: await late };
    }));
  }));
  try {
    assert.equal((await send('/goes-on', tenants[0].id, {}, one)).status, 200);
    assert.deepEqual(await (await send('/next', tenants[1].id, {}, one)).json(), { late: 'refused' });
    assert.deepEqual([await items(tenants[0].id), await items(tenants[1].id)], [['late'], []]);
  } finally {
    one.closeAllConnections();
    one.close();
    await single.end();
  }
});

test('a request without one good tenant is 400', async () => {
  const { id, canary } = await newTenant();
  assert.equal(await order(id, { item: canary }), 201);
  assert.deepEqual((await (await send('/orders', id)).json()).settings, { canary });
  for (const headers of [{}, { 'X-Tenant-ID': '' }, { 'X-Tenant-ID': "1' OR true" }, { 'X-Tenant-ID': [id, id] }]) {
    const status = await new Promise((resolve, reject) => {
      request(url('/orders'), { headers }, (res) => resolve(res.resume().statusCode)).on('error', reject).end();
    });
    assert.equal(status, 400);
  }
});

test('a tenant that it may not act for is 403', async () => {
  const { id } = await newTenant();
  assert.equal(await order(id, { item: 'a' }), 201);
  assert.equal(await order(randomUUID(), { item: 'a' }), 403); // 42704
  await office.query('SELECT tenant_suspend($1)', [id]);
  assert.equal(await order(id, { item: 'a' }), 403); // 55000
  await office.query('SELECT tenant_resume($1)', [id]);
  assert.equal(await order(id, { item: 'a' }), 201);

  const partners = makePool({ user: 'partner', max: 1 });
  const partner = await listen(makeApp(drizzle(partners)));
  try {
    assert.equal(await order(PARTNERS, { item: 'a' }, partner), 201);
    assert.equal(await order(id, { item: 'a' }, partner), 403); // 42501
  } finally {
    partner.closeAllConnections();
    partner.close();
    await partners.end();
  }
});

test('an order for another tenant is 403', async () => {
  const { id } = await newTenant();
  const other = await newTenant();
  assert.equal(await order(id, { item: 'a', tenant_id: id }), 201);
  assert.equal(await order(id, { item: 'b', tenant_id: other.id }), 403);
  assert.deepEqual([await items(id), await items(other.id)], [['a'], []]);
});

test('a used up quota is 429', async () => {
  const { id } = await newTenant();
  await office.query(`SELECT tenant_quota_set($1, 'api_requests', 2)`, [id]);
  assert.deepEqual([await order(id, { item: 'a' }), await order(id, { item: 'a' })], [201, 201]);
  const answer = await send('/orders', id, { item: 'a' });
  assert.equal(answer.status, 429);
  const detail = await answer.json();
  assert.deepEqual([detail.resource, detail.quota_limit, detail.used, detail.tenant], ['api_requests', 2, 2, id]);
  assert.equal(answer.headers.get('Retry-After'), String(detail.retry_after));
  assert.ok(Number(answer.headers.get('Retry-After')) > 0);
});

test('waiting does not help a full gauge', async () => {
  const { id } = await newTenant();
  await office.query(`SELECT tenant_quota_set($1, 'orders', 1)`, [id]);
  assert.equal(await order(id, { item: 'a' }), 201);
  const answer = await send('/orders', id, { item: 'b' });
  assert.deepEqual([answer.status, (await answer.json()).resource], [429, 'orders']);
  assert.equal(answer.headers.get('Retry-After'), null);
  assert.deepEqual(await items(id), ['a']);
});

test('what the plan does not have is 404', async () => {
  const { id } = await newTenant('viewer');
  assert.equal(await order(id, { item: 'a' }), 404);
  await office.query(`SELECT tenant_plan_change($1, 'starter')`, [id]);
  assert.equal(await order(id, { item: 'a' }), 201);
});

test('a fenced tenant reads, and gets 503 for writes', async () => {
  const { id } = await newTenant();
  assert.equal(await order(id, { item: 'a' }), 201);
  await office.query('SELECT tenant_fence($1)', [id]);
  assert.equal(await order(id, { item: 'b' }), 503);
  assert.deepEqual(await items(id), ['a']);
});

test('the job works for every tenant', async () => {
  const tenants = [];
  for (let i = 0; i < 3; i += 1) tenants.push((await newTenant()).id);
  for (const id of tenants) {
    await order(id, { item: 'old' });
    await order(id, { item: 'new' });
    await actingFor(drizzle(pool), id, () => (
      tenant().db.update(orders).set({ createdAt: sql`now() - interval '2 years'` }).where(eq(orders.item, 'old'))
    ));
  }
  const failed = await forEachTenant(drizzle(office), drizzle(pool), async () => {
    await deleteOldOrders();
    if (tenant().context.tenantId === tenants[1]) throw new Error('on purpose');
  });
  assert.deepEqual(failed, [tenants[1]]);
  assert.deepEqual(await Promise.all(tenants.map(items)), [['new'], ['old', 'new'], ['new']]);
  assert.deepEqual(await forEachTenant(drizzle(office), drizzle(pool), deleteOldOrders), []);
  assert.deepEqual(await Promise.all(tenants.map(items)), [['new'], ['new'], ['new']]);
});

test('the job fails for tenants that its role may not act for', async () => {
  const { id } = await newTenant();
  const partners = makePool({ user: 'partner', max: 1 });
  try {
    const failed = await forEachTenant(drizzle(office), drizzle(partners), deleteOldOrders);
    assert.deepEqual([failed.includes(id), failed.includes(PARTNERS)], [true, false]);
  } finally {
    await partners.end();
  }
});

test('the job leaves out who is suspended meanwhile', async () => {
  const pair = [(await newTenant()).id, (await newTenant()).id];
  const worked = [];
  const failed = await forEachTenant(drizzle(office), drizzle(pool), async () => {
    const id = tenant().context.tenantId;
    if (!pair.includes(id)) return;
    worked.push(id);
    await office.query('SELECT tenant_suspend($1)', pair.filter((other) => other !== id));
  });
  assert.deepEqual([failed, worked.length], [[], 1]);
});
