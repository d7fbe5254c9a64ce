"""Against a real server, over HTTP. `make examples` gives it a new database from examples/schema.sql."""

import http.client
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import app
import job
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.db import DatabaseError, connection, connections
from django.http import JsonResponse
from django.urls import path
from django.utils import timezone

from tenant import acting_for

PARTNERS = UUID("aaaaaaaa-0000-4000-8000-000000000001")  # the one tenant that the role partner may act for
CONNECTIONS = 5

# On a slow machine the last of 200 requests waits for long.
connections.settings["default"]["OPTIONS"]["pool"]["timeout"] = 120

logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # it warns of each connection that is lost on purpose


def sql(statement, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()


def write_then_fail_at_random(request):
    """Each answer, that of a failure too, carries the canary that the server gave for this request's transaction."""
    canary, how = request.tenant["settings"]["canary"], request.GET["how"]
    app.Order.objects.create(item=canary)
    time.sleep(random.random() / 50)
    seen = sorted(set(app.Order.objects.values_list("item", flat=True)))
    sql("SELECT pg_sleep(random() / 100)")
    tenant, pid = sql("SELECT current_tenant()::text, pg_backend_pid()")
    answer = {"canary": canary, "tenant": request.tenant["tenantId"], "acts_for": tenant, "seen": seen, "pid": pid}
    request.answer = answer
    if how == "sql":
        sql("SELECT 1 / 0")
    if how == "connection lost":
        sql("SELECT pg_terminate_backend(pg_backend_pid())")
    if how == "raises":
        raise RuntimeError("on purpose")
    return JsonResponse(answer, status=500 if how == "answers" else 200)


def failed(request):
    """What Django answers for a view that raised."""
    return JsonResponse(getattr(request, "answer", {}), status=500)


def raises(request):
    app.Order.objects.create(item="lost")
    raise RuntimeError("on purpose")


def swallows(request):
    app.Order.objects.create(item="lost")
    try:
        sql("SELECT 1 / 0")
    except DatabaseError:
        pass
    return JsonResponse({})


app.urlpatterns += [path("unruly", write_then_fail_at_random), path("raises", raises), path("swallows", swallows)]
app.handler500 = failed


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Server(ThreadedWSGIServer):
    request_queue_size = 200


def ask(method, url, tenant=None, body=None, headers=None, port=None):
    link = http.client.HTTPConnection("127.0.0.1", port or Example.server.server_port, timeout=120)
    link.putrequest(method, url)
    for name, value in headers if headers is not None else [("X-Tenant-ID", str(tenant))]:
        link.putheader(name, value)
    body = json.dumps(body).encode() if body is not None else b""
    link.putheader("Content-Length", str(len(body)))
    link.endheaders(body)
    answer = link.getresponse()
    text = answer.read()
    link.close()
    return answer.status, json.loads(text) if text[:1] == b"{" else None, answer.headers


def office(statement, *parameters):
    with connections["office"].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()


def new_tenant(plan="starter"):
    tenant, canary = uuid4(), f"canary {uuid4()}"
    office("SELECT tenant_create(%s, %s)", tenant, plan)
    office("SELECT tenant_setting_set('canary', to_jsonb(%s::text), 'tenant', tenant => %s)", canary, tenant)
    return tenant, canary


class Example(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(("127.0.0.1", 0), Quiet)
        cls.server.set_app(app.application)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.addClassCleanup(connections["office"].close_pool)
        cls.addClassCleanup(connection.close_pool)
        cls.addClassCleanup(cls.server.shutdown)

    def tearDown(self):
        connections.close_all()

    def order(self, tenant, **body):
        return ask("POST", "/orders", tenant, body)[0]

    def items(self, tenant):
        status, body, _ = ask("GET", "/orders", tenant)
        self.assertEqual(status, 200)
        return [order["item"] for order in body["orders"]]

    def test_concurrent_requests_never_mix(self):
        tenants = dict(new_tenant() for _ in range(20))
        hows = ["works", "answers", "raises", "sql", "connection%20lost"]
        asked = [(tenant, random.choices(hows, [6, 1, 2, 2, 1])[0]) for tenant in list(tenants) * 10]
        random.shuffle(asked)
        with ThreadPoolExecutor(200) as threads:
            answers = list(threads.map(lambda request: ask("POST", f"/unruly?how={request[1]}", request[0]), asked))

        worked, pids = Counter(), set()
        for (tenant, how), (status, body, _) in zip(asked, answers):
            self.assertEqual(status, 200 if how == "works" else 500)
            self.assertEqual(body["canary"], tenants[tenant])
            self.assertEqual(body["tenant"], str(tenant))
            self.assertEqual(body["acts_for"], str(tenant))
            self.assertEqual(body["seen"], [tenants[tenant]])
            pids.add(body["pid"])
            worked[tenant] += how == "works"
        lost = sum(how == hows[-1] for _, how in asked)
        self.assertLessEqual(len(pids), CONNECTIONS + lost)
        # What worked is there, what failed is not; in the rows and in the gauge that follows them.
        for tenant, canary in tenants.items():
            self.assertEqual(self.items(tenant), [canary] * worked[tenant])
            used = office("SELECT used FROM tenant_usage WHERE tenant = %s AND resource = 'orders'", tenant)
            self.assertEqual(used[0] if used else 0, worked[tenant])

    def test_a_view_that_raises_is_rolled_back(self):
        tenant, _ = new_tenant()
        self.assertEqual(self.order(tenant, item="a"), 201)
        self.assertEqual(ask("POST", "/raises", tenant)[0], 500)
        self.assertEqual(self.items(tenant), ["a"])

    def test_a_commit_that_rolls_back_is_no_success(self):
        tenant, _ = new_tenant()
        self.assertEqual(ask("POST", "/swallows", tenant)[0], 500)
        self.assertEqual(self.items(tenant), [])

    def test_a_request_without_one_good_tenant_is_400(self):
        tenant, canary = new_tenant()
        self.assertEqual(ask("GET", "/orders", tenant)[1], {"settings": {"canary": canary}, "orders": []})
        twice = [("X-Tenant-ID", str(tenant)), ("X-Tenant-ID", str(tenant))]
        for headers in ([], [("X-Tenant-ID", "")], [("X-Tenant-ID", "1' OR true")], twice):
            self.assertEqual(ask("GET", "/orders", headers=headers)[0], 400)

    def test_a_tenant_that_it_may_not_act_for_is_403(self):
        tenant, _ = new_tenant()
        self.assertEqual(self.order(tenant, item="a"), 201)
        self.assertEqual(self.order(uuid4(), item="a"), 403)  # 42704
        office("SELECT tenant_suspend(%s)", tenant)
        self.assertEqual(self.order(tenant, item="a"), 403)  # 55000
        office("SELECT tenant_resume(%s)", tenant)
        self.assertEqual(self.order(tenant, item="a"), 201)

    def test_a_role_with_one_tenant_gets_403_for_others(self):
        tenant, _ = new_tenant()
        program = """if True:
            import sys, app
            from django.test import Client
            for tenant in sys.argv[1:]:
                body = {"item": "a"}
                answer = Client().post("/orders", body, "application/json", headers={"X-Tenant-ID": tenant})
                print(answer.status_code)
        """
        ran = subprocess.run(
            [sys.executable, "-c", program, str(PARTNERS), str(tenant)],
            env={**os.environ, "PGUSER": "partner"}, capture_output=True, text=True,
        )
        self.assertEqual(ran.stdout.split(), ["201", "403"], ran.stderr)  # 42501

    def test_an_order_for_another_tenant_is_403(self):
        (tenant, _), (other, _) = new_tenant(), new_tenant()
        self.assertEqual(self.order(tenant, item="a", tenant_id=str(tenant)), 201)
        self.assertEqual(self.order(tenant, item="b", tenant_id=str(other)), 403)
        self.assertEqual((self.items(tenant), self.items(other)), (["a"], []))

    def test_a_used_up_quota_is_429(self):
        tenant, _ = new_tenant()
        office("SELECT tenant_quota_set(%s, 'api_requests', 2)", tenant)
        self.assertEqual([self.order(tenant, item="a") for _ in range(2)], [201, 201])
        status, detail, headers = ask("POST", "/orders", tenant, {"item": "a"})
        self.assertEqual(status, 429)
        self.assertEqual((detail["resource"], detail["quota_limit"], detail["used"]), ("api_requests", 2, 2))
        self.assertEqual(detail["tenant"], str(tenant))
        self.assertEqual(headers["Retry-After"], str(detail["retry_after"]))
        self.assertGreater(int(headers["Retry-After"]), 0)

    def test_waiting_does_not_help_a_full_gauge(self):
        tenant, _ = new_tenant()
        office("SELECT tenant_quota_set(%s, 'orders', 1)", tenant)
        self.assertEqual(self.order(tenant, item="a"), 201)
        status, detail, headers = ask("POST", "/orders", tenant, {"item": "b"})
        self.assertEqual((status, detail["resource"]), (429, "orders"))
        self.assertNotIn("Retry-After", headers)
        self.assertEqual(self.items(tenant), ["a"])

    def test_what_the_plan_does_not_have_is_404(self):
        tenant, _ = new_tenant("viewer")
        self.assertEqual(self.order(tenant, item="a"), 404)
        office("SELECT tenant_plan_change(%s, 'starter')", tenant)
        self.assertEqual(self.order(tenant, item="a"), 201)

    def test_a_fenced_tenant_reads_and_gets_503_for_writes(self):
        tenant, _ = new_tenant()
        self.assertEqual(self.order(tenant, item="a"), 201)
        office("SELECT tenant_fence(%s)", tenant)
        self.assertEqual(self.order(tenant, item="b"), 503)
        self.assertEqual(self.items(tenant), ["a"])

    def test_the_job_works_for_every_tenant(self):
        tenants = [new_tenant()[0] for _ in range(3)]

        def fail_after_the_work(context):
            job.delete_old_orders(context)
            if context["tenantId"] == str(tenants[1]):
                raise RuntimeError("on purpose")

        for tenant in tenants:
            self.order(tenant, item="old")
            self.order(tenant, item="new")
            with acting_for(tenant):
                old = timezone.now() - timedelta(days=800)
                app.Order.objects.filter(item="old").update(created_at=old)
        with self.assertLogs(level="ERROR"):
            self.assertEqual(job.for_each_tenant(fail_after_the_work), [tenants[1]])
        self.assertEqual([self.items(tenant) for tenant in tenants], [["new"], ["old", "new"], ["new"]])
        self.assertEqual(job.for_each_tenant(job.delete_old_orders), [])
        self.assertEqual([self.items(tenant) for tenant in tenants], [["new"]] * 3)

    def test_the_job_fails_for_tenants_that_its_role_may_not_act_for(self):
        tenant, _ = new_tenant()
        for role, code in ("shop", 0), ("partner", 1):
            ran = subprocess.run(
                [sys.executable, "job.py"], env={**os.environ, "PGUSER": role}, capture_output=True, text=True
            )
            self.assertEqual(ran.returncode, code, ran.stderr)
        self.assertIn(f"tenant {tenant} failed", ran.stderr)
        self.assertNotIn(str(PARTNERS), ran.stderr)

    def test_the_job_leaves_out_who_is_suspended_meanwhile(self):
        pair, worked = {new_tenant()[0] for _ in range(2)}, []

        def suspend_the_other(context):
            acts_for = UUID(context["tenantId"])
            if acts_for in pair:
                worked.append(acts_for)
                office("SELECT tenant_suspend(%s)", *pair - {acts_for})

        self.assertEqual(job.for_each_tenant(suspend_the_other), [])
        self.assertEqual(len(worked), 1)


if __name__ == "__main__":
    unittest.main()
