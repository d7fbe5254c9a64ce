"""The OpenFeature provider, through the SDK: what the specification asks of providers, on flags like those of its own test
kit (specification/assets/provider-tck of open-feature/spec), and how features of tenants show.
"""

import json
import logging
import unittest
from uuid import uuid4

import asyncpg
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from features import TenantFeatures
from tenant import acting_for

FLAGS = {
    "boolean": True,
    "boolean-zero": False,
    "string": "hi",
    "string-zero": "",
    "integer": 10,
    "integer-zero": 0,
    "integer-large": 2**31 - 1,
    "integer-huge": 2**53 - 1,
    "integer-beyond-floats": 2**53 + 1,
    "float": 0.5,
    "float-integral": 10.0,
    "object": {"showImages": True, "title": "Check out these pics!", "imagesPerPage": 100},
    "object-zero": {},
    "list": [1, "a"],
    "null": None,
}
# What an application may ask for, and a default that no flag has.
DEFAULTS = {"boolean": True, "string": "bye", "integer": 1, "float": 0.1, "object": {"default": True}}
# Flags that are of a second type too.
ALSO = {name: "float" for name in ("integer", "integer-zero", "integer-large", "integer-huge")}
ALSO |= {"float-integral": "integer", "list": "object"}
OF = {"boolean": bool, "string": str, "integer": int, "float": float, "object": (dict, list)}

logging.getLogger("openfeature").setLevel(logging.CRITICAL)


def types_of(name):
    return {name.partition("-")[0], ALSO.get(name)}


class Features(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.office = await asyncpg.connect(user="office")
        self.addAsyncCleanup(self.office.close)
        self.pool = await self.enterAsyncContext(asyncpg.create_pool(user="shop", min_size=1, max_size=2))
        api.set_provider_and_wait(TenantFeatures())
        self.addCleanup(api.shutdown)
        self.client = api.get_client()
        self.tenant = await self.new_tenant()

    async def new_tenant(self, plan="starter"):
        tenant = uuid4()
        await self.office.execute("SELECT tenant_create($1, $2)", tenant, plan)
        return tenant

    async def define(self, name, default):
        """A feature of a name that no other test has."""
        name = f"{name} {uuid4()}"
        await self.office.execute("SELECT tenant_feature_define($1, $2)", name, json.dumps(default))
        return name

    async def set(self, name, value, **scope):
        arguments = {"scope": "global", "tenant": None, "plan": None, "rollout_percent": 100} | scope
        await self.office.execute(
            "SELECT tenant_feature_set($1, $2, $3, $4, $5, $6)", name, json.dumps(value), *arguments.values()
        )

    def known(self, kind, key, default, *context):
        return getattr(self.client, f"get_{kind}_details")(key, default, *context)

    async def asked(self, kind, key, default, *context):
        return await getattr(self.client, f"get_{kind}_details_async")(key, default, *context)

    async def both(self, kind, key, default, *context):
        return [await self.asked(kind, key, default, *context), self.known(kind, key, default, *context)]

    def assert_default(self, details, default, code):
        """The default, an error code, the reason ERROR; no variant, and nothing raised."""
        self.assertEqual((details.value, details.error_code), (default, code), details)
        self.assertEqual((details.reason, details.variant), (Reason.ERROR, None), details)
        self.assertTrue(details.error_message)

    async def test_it_has_a_name_and_is_ready(self):  # 2.1.1
        self.assertEqual(api.get_provider_metadata().name, "tenant_rls")
        self.assertEqual(self.client.get_provider_status(), ProviderStatus.READY)

    async def test_values_of_every_type(self):  # 2.2.2.1, 2.2.3 to 2.2.6, 2.2.9, 2.3.2
        """Falsy values are values; large ones lose nothing."""
        keys = {name: await self.define(name, "other") for name in FLAGS}
        for name, key in keys.items():
            await self.set(key, FLAGS[name])
        async with acting_for(self.pool, self.tenant):
            for name, key in keys.items():
                for kind in types_of(name) & DEFAULTS.keys():
                    asked, known = await self.both(kind, key, DEFAULTS[kind])
                    for details in (asked, known):
                        with self.subTest(name, kind=kind):
                            self.assertEqual(details.value, FLAGS[name])
                            self.assertIsInstance(details.value, OF[kind])
                            self.assertFalse(details.error_code or details.error_message)
                            self.assertEqual(details.flag_metadata, {"tenant": str(self.tenant)})
                    self.assertEqual((asked.reason, asked.variant), (Reason.STATIC, "global"))
                    self.assertEqual((known.reason, known.variant), (Reason.CACHED, None))

    async def test_another_type_is_the_default(self):  # 2.2.7, 1.4.8
        """Every type against every other: nothing is converted that would lose something."""
        keys = {name: await self.define(name, value) for name, value in FLAGS.items()}
        async with acting_for(self.pool, self.tenant):
            for name, key in keys.items():
                for kind in DEFAULTS.keys() - types_of(name):
                    for details in await self.both(kind, key, DEFAULTS[kind]):
                        with self.subTest(name, kind=kind):
                            self.assert_default(details, DEFAULTS[kind], ErrorCode.TYPE_MISMATCH)

    async def test_an_unknown_feature_is_the_default(self):
        async with acting_for(self.pool, self.tenant):
            for kind, default in DEFAULTS.items():
                for details in await self.both(kind, "missing", default):
                    self.assert_default(details, default, ErrorCode.FLAG_NOT_FOUND)

    async def test_without_a_tenant_it_is_the_default(self):
        key = await self.define("boolean", False)
        for details in await self.both("boolean", key, True):
            self.assert_default(details, True, ErrorCode.TARGETING_KEY_MISSING)
        async with acting_for(self.pool, self.tenant):
            for details in await self.both("boolean", key, True):
                self.assertFalse(details.value)
        for details in await self.both("boolean", key, True):
            self.assert_default(details, True, ErrorCode.TARGETING_KEY_MISSING)

    async def test_what_the_database_refuses_is_the_default(self):
        key = await self.define("boolean", False)
        with self.assertRaises(asyncpg.InFailedSQLTransactionError):
            async with acting_for(self.pool, self.tenant):
                self.assertFalse((await self.asked("boolean", key, True)).value)
                await self.office.execute("SELECT tenant_suspend($1)", self.tenant)
                self.assert_default(await self.asked("boolean", key, True), True, ErrorCode.GENERAL)

    async def test_reasons_and_variants(self):  # 2.2.4, 2.2.5
        default, plan, tenant, split, off = [await self.define("string", "default") for _ in range(5)]
        await self.set(plan, "of the plan", scope="plan", plan="starter")
        await self.set(tenant, "of the tenant", scope="tenant", tenant=self.tenant)
        await self.set(split, "of some", rollout_percent=50)
        await self.set(off, "for all")
        await self.office.execute("SELECT tenant_feature_switch($1, false)", off)
        expected = {
            default: ("default", "default", Reason.DEFAULT),
            plan: ("of the plan", "plan", Reason.TARGETING_MATCH),
            tenant: ("of the tenant", "tenant", Reason.TARGETING_MATCH),
            off: ("default", "default", Reason.DISABLED),
        }
        async with acting_for(self.pool, self.tenant):
            for key, (value, variant, reason) in expected.items():
                details = await self.asked("string", key, "mine")
                self.assertEqual((details.value, details.variant, details.reason), (value, variant, reason))
                self.assertEqual(self.known("string", key, "mine").value, value)
        seen = set()
        while len(seen) < 2:
            async with acting_for(self.pool, await self.new_tenant()):
                details = await self.asked("string", split, "mine")
                seen.add((details.value, details.variant, details.reason))
        self.assertEqual(seen, {("of some", "global", Reason.SPLIT), ("default", "default", Reason.DEFAULT)})

    async def test_tenants_get_their_own(self):
        key = await self.define("string", "default")
        tenants = [await self.new_tenant() for _ in range(3)]
        for tenant in tenants:
            await self.set(key, str(tenant), scope="tenant", tenant=tenant)
        for tenant in tenants * 2:
            async with acting_for(self.pool, tenant):
                for details in await self.both("string", key, "mine"):
                    self.assertEqual(details.value, str(tenant))

    async def test_the_targeting_key_makes_no_difference(self):
        """The tenant is that of the transaction, whatever a context says."""
        key, other = await self.define("string", "default"), await self.new_tenant()
        await self.set(key, "of another", scope="tenant", tenant=other)
        context = EvaluationContext(str(other), {"tenant": str(other), "age": 7})
        async with acting_for(self.pool, self.tenant):
            for details in await self.both("string", key, "mine", context):
                self.assertEqual((details.value, details.error_code), ("default", None))

    async def test_a_change_holds_from_the_next_question_on(self):
        key = await self.define("boolean", False)
        async with acting_for(self.pool, self.tenant):
            self.assertFalse(await self.client.get_boolean_value_async(key, True))
            await self.set(key, True)
            self.assertTrue(await self.client.get_boolean_value_async(key, False))
            self.assertFalse(self.client.get_boolean_value(key, True))  # as of the beginning of the transaction


if __name__ == "__main__":
    unittest.main()
