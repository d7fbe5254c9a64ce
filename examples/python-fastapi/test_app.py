"""Against a real server, over HTTP. `make examples` gives it a new database from examples/schema.sql."""

import asyncio
import json
import logging
import random
import unittest
from collections import Counter
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid4

import asyncpg
import httpx
import uvicorn
from fastapi import APIRouter, HTTPException

import job
from app import make_app
from tenant import CurrentTenant, TenantRoute, acting_for

PARTNERS = UUID("aaaaaaaa-0000-4000-8000-000000000001")  # the one tenant that the role partner may act for
CONNECTIONS = 5

logging.getLogger("asyncio").setLevel(logging.ERROR)  # unittest has it report every slow step

unruly = APIRouter(route_class=TenantRoute)


@unruly.post("/unruly")
async def write_then_fail_at_random(tenant: CurrentTenant, how: str):
    """Each answer, that of a failure too, carries the canary that the server gave for this request's transaction."""
    answer = {"canary": tenant.context["settings"]["canary"], "tenant": tenant.context["tenantId"]}
    await tenant.db.execute("INSERT INTO orders (item) VALUES ($1)", answer["canary"])
    await asyncio.sleep(random.random() / 50)
    answer["seen"] = await tenant.db.fetchval("SELECT array_agg(DISTINCT item) FROM orders")
    answer["pid"] = await tenant.db.fetchval("SELECT pg_backend_pid()")
    await tenant.db.execute("SELECT pg_sleep(random() / 100)")
    answer["acts_for"] = str(await tenant.db.fetchval("SELECT current_tenant()"))
    if how == "raises":
        raise HTTPException(500, answer)
    if how == "sql":
        try:
            await tenant.db.execute("SELECT 1 / 0")
        except asyncpg.PostgresError:
            raise HTTPException(500, answer) from None
    if how == "connection lost":
        try:
            await tenant.db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        except (asyncpg.PostgresError, OSError):
            raise HTTPException(500, answer) from None
    return answer


@unruly.post("/swallows")
async def swallow_an_error(tenant: CurrentTenant):
    await tenant.db.execute("INSERT INTO orders (item) VALUES ('lost')")
    with suppress(asyncpg.PostgresError):
        await tenant.db.execute("SELECT 1 / 0")
    return "done"


@asynccontextmanager
async def serving(user):
    """The program behind a real socket, and a client for it."""
    app = make_app(CONNECTIONS, user=user)
    app.include_router(unruly)
    # A server that closes an idle connection just when it is used again would fail a test on a busy machine.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_keep_alive=120))
    task = asyncio.create_task(server.serve())
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120) as client:
        yield client
    server.should_exit = True
    await task


class Example(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.office = await asyncpg.connect(user="office")
        self.addAsyncCleanup(self.office.close)
        self.client = await self.enterAsyncContext(serving("shop"))

    async def new_tenant(self, plan="starter"):
        tenant, canary = uuid4(), f"canary {uuid4()}"
        await self.office.execute("SELECT tenant_create($1, $2)", tenant, plan)
        await self.office.execute(
            "SELECT tenant_setting_set('canary', $1, 'tenant', tenant => $2)", json.dumps(canary), tenant
        )
        return tenant, canary

    async def post(self, tenant, client=None, **order):
        return await (client or self.client).post("/orders", json=order, headers={"X-Tenant-ID": str(tenant)})

    async def items(self, tenant):
        answer = await self.client.get("/orders", headers={"X-Tenant-ID": str(tenant)})
        self.assertEqual(answer.status_code, 200)
        return [order["item"] for order in answer.json()["orders"]]

    async def test_concurrent_requests_never_mix(self):
        tenants = dict([await self.new_tenant() for _ in range(20)])
        hows = ["works", "raises", "sql", "connection lost"]
        asked = [(tenant, random.choices(hows, [6, 2, 2, 1])[0]) for tenant in list(tenants) * 10]
        random.shuffle(asked)

        async def ask(tenant, how):
            return await self.client.post("/unruly", params={"how": how}, headers={"X-Tenant-ID": str(tenant)})

        answers = await asyncio.gather(*(ask(*request) for request in asked))

        worked, pids = Counter(), set()
        for (tenant, how), answer in zip(asked, answers):
            self.assertEqual(answer.status_code, 200 if how == "works" else 500, answer.text)
            body = answer.json() if how == "works" else answer.json()["detail"]
            self.assertEqual(body["canary"], tenants[tenant])
            self.assertEqual(body["tenant"], str(tenant))
            self.assertEqual(body["acts_for"], str(tenant))
            self.assertEqual(body["seen"], [tenants[tenant]])
            pids.add(body["pid"])
            worked[tenant] += how == "works"
        lost = sum(how == "connection lost" for _, how in asked)
        self.assertLessEqual(len(pids), CONNECTIONS + lost)
        # What worked is there, what failed is not; in the rows and in the gauge that follows them.
        for tenant, canary in tenants.items():
            self.assertEqual(await self.items(tenant), [canary] * worked[tenant])
            used = await self.office.fetchval(
                "SELECT used FROM tenant_usage WHERE tenant = $1 AND resource = 'orders'", tenant
            )
            self.assertEqual(used or 0, worked[tenant])

    async def test_a_commit_that_rolls_back_is_no_success(self):
        tenant, _ = await self.new_tenant()
        answer = await self.client.post("/swallows", headers={"X-Tenant-ID": str(tenant)})
        self.assertEqual(answer.status_code, 500)
        self.assertEqual(await self.items(tenant), [])

    async def test_a_request_without_one_good_tenant_is_400(self):
        tenant, canary = await self.new_tenant()
        self.assertEqual((await self.post(tenant, item=canary)).json()["settings"], {"canary": canary})
        twice = [("X-Tenant-ID", str(tenant)), ("X-Tenant-ID", str(tenant))]
        for headers in ({}, {"X-Tenant-ID": ""}, {"X-Tenant-ID": "1' OR true"}, twice):
            self.assertEqual((await self.client.get("/orders", headers=headers)).status_code, 400)

    async def test_a_tenant_that_it_may_not_act_for_is_403(self):
        tenant, _ = await self.new_tenant()
        self.assertEqual((await self.post(tenant, item="a")).status_code, 201)
        self.assertEqual((await self.post(uuid4(), item="a")).status_code, 403)  # 42704
        await self.office.execute("SELECT tenant_suspend($1)", tenant)
        self.assertEqual((await self.post(tenant, item="a")).status_code, 403)  # 55000
        await self.office.execute("SELECT tenant_resume($1)", tenant)
        self.assertEqual((await self.post(tenant, item="a")).status_code, 201)
        async with serving("partner") as partner:
            self.assertEqual((await self.post(PARTNERS, partner, item="a")).status_code, 201)
            self.assertEqual((await self.post(tenant, partner, item="a")).status_code, 403)  # 42501

    async def test_an_order_for_another_tenant_is_403(self):
        tenant, _ = await self.new_tenant()
        other, _ = await self.new_tenant()
        self.assertEqual((await self.post(tenant, item="a", tenant_id=str(tenant))).status_code, 201)
        self.assertEqual((await self.post(tenant, item="b", tenant_id=str(other))).status_code, 403)
        self.assertEqual((await self.items(tenant), await self.items(other)), (["a"], []))

    async def test_a_used_up_quota_is_429(self):
        tenant, _ = await self.new_tenant()
        await self.office.execute("SELECT tenant_quota_set($1, 'api_requests', 2)", tenant)
        self.assertEqual([(await self.post(tenant, item="a")).status_code for _ in range(2)], [201, 201])
        answer = await self.post(tenant, item="a")
        self.assertEqual(answer.status_code, 429)
        detail = answer.json()
        self.assertEqual((detail["resource"], detail["quota_limit"], detail["used"]), ("api_requests", 2, 2))
        self.assertEqual(detail["tenant"], str(tenant))
        self.assertEqual(answer.headers["Retry-After"], str(detail["retry_after"]))
        self.assertGreater(int(answer.headers["Retry-After"]), 0)

    async def test_waiting_does_not_help_a_full_gauge(self):
        tenant, _ = await self.new_tenant()
        await self.office.execute("SELECT tenant_quota_set($1, 'orders', 1)", tenant)
        self.assertEqual((await self.post(tenant, item="a")).status_code, 201)
        answer = await self.post(tenant, item="b")
        self.assertEqual((answer.status_code, answer.json()["resource"]), (429, "orders"))
        self.assertNotIn("Retry-After", answer.headers)
        self.assertEqual(await self.items(tenant), ["a"])

    async def test_what_the_plan_does_not_have_is_404(self):
        tenant, _ = await self.new_tenant("viewer")
        self.assertEqual((await self.post(tenant, item="a")).status_code, 404)
        await self.office.execute("SELECT tenant_plan_change($1, 'starter')", tenant)
        self.assertEqual((await self.post(tenant, item="a")).status_code, 201)

    async def test_a_fenced_tenant_reads_and_gets_503_for_writes(self):
        tenant, _ = await self.new_tenant()
        self.assertEqual((await self.post(tenant, item="a")).status_code, 201)
        await self.office.execute("SELECT tenant_fence($1)", tenant)
        self.assertEqual((await self.post(tenant, item="b")).status_code, 503)
        self.assertEqual(await self.items(tenant), ["a"])

    async def test_the_job_works_for_every_tenant(self):
        tenants = [(await self.new_tenant())[0] for _ in range(3)]
        unlucky = tenants[1]

        async def age(tenant):
            await tenant.db.execute("UPDATE orders SET created_at = now() - interval '2 years' WHERE item = 'old'")

        async def fail_after_the_work(tenant):
            await job.delete_old_orders(tenant)
            if tenant.context["tenantId"] == str(unlucky):
                raise RuntimeError("on purpose")

        async with asyncpg.create_pool(user="shop", min_size=1, max_size=1) as pool:
            for tenant in tenants:
                await self.post(tenant, item="old")
                await self.post(tenant, item="new")
                async with acting_for(pool, tenant) as acting:
                    await age(acting)
            with self.assertLogs(level="ERROR"):
                failed = await job.for_each_tenant(self.office, pool, fail_after_the_work)
            self.assertEqual(failed, [unlucky])
            self.assertEqual([await self.items(t) for t in tenants], [["new"], ["old", "new"], ["new"]])
            self.assertEqual(await job.for_each_tenant(self.office, pool, job.delete_old_orders), [])
            self.assertEqual([await self.items(t) for t in tenants], [["new"]] * 3)

    async def test_the_job_fails_for_tenants_that_its_role_may_not_act_for(self):
        tenant, _ = await self.new_tenant()
        async with asyncpg.create_pool(user="partner", min_size=1, max_size=1) as pool:
            with self.assertLogs(level="ERROR"):
                failed = await job.for_each_tenant(self.office, pool, job.delete_old_orders)
        self.assertIn(tenant, failed)
        self.assertNotIn(PARTNERS, failed)

    async def test_the_job_leaves_out_who_is_suspended_meanwhile(self):
        pair, worked = {(await self.new_tenant())[0] for _ in range(2)}, []

        async def suspend_the_other(tenant):
            acts_for = UUID(tenant.context["tenantId"])
            if acts_for in pair:
                worked.append(acts_for)
                await self.office.execute("SELECT tenant_suspend($1)", *pair - {acts_for})

        async with asyncpg.create_pool(user="shop", min_size=1, max_size=1) as pool:
            self.assertEqual(await job.for_each_tenant(self.office, pool, suspend_the_other), [])
        self.assertEqual(len(worked), 1)


if __name__ == "__main__":
    unittest.main()
