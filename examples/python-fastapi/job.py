"""A nightly job: deletes old orders, tenant by tenant, each in a transaction of its own."""

import asyncio
import logging
import sys

import asyncpg

from tenant import TenantRefused, acting_for


async def for_each_tenant(office, pool, work):
    """Calls `work` with every active tenant; returns those that failed. One that fails does not stop the others.

    `office` is a connection of an operator, who may list the tenants; `pool` is the application's, which may act for
    them.
    """
    failed = []
    for (tenant,) in await office.fetch("SELECT tenant_list()"):
        try:
            async with acting_for(pool, tenant) as acting:
                await work(acting)
        except Exception as error:
            if isinstance(error, TenantRefused) and not await is_active(office, tenant):
                logging.info("tenant %s was suspended or deleted meanwhile", tenant)
                continue
            logging.exception("tenant %s failed", tenant)
            failed.append(tenant)
    return failed


async def is_active(office, tenant):
    """Tells a tenant that is over from one that the role may not act for, which is a failure."""
    return await office.fetchval("SELECT $1 IN (SELECT tenant_list())", tenant)


async def delete_old_orders(tenant):
    # No WHERE tenant_id: the server adds it.
    await tenant.db.execute("DELETE FROM orders WHERE created_at < now() - interval '1 year'")


async def main():
    office = await asyncpg.connect(user="office")
    async with asyncpg.create_pool(min_size=1, max_size=1) as pool:
        failed = await for_each_tenant(office, pool, delete_old_orders)
    await office.close()
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main()) else 0)
