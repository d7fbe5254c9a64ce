"""The tenant of a request, for FastAPI and asyncpg. Copy this file.

    router = APIRouter(route_class=TenantRoute)         # app.state.pool is an asyncpg pool
    app.add_exception_handler(asyncpg.PostgresError, refused)
    @router.get("/orders")
    async def orders(tenant: CurrentTenant):
        return await tenant.db.fetch("SELECT id, item FROM orders")

Each request of such a router is one transaction of the tenant that X-Tenant-ID names. It is committed before the
answer leaves, and rolled back if the handler raises: to undo what was done, raise, and return no answer.
"""

import json
import logging
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute


@dataclass(frozen=True)
class Tenant:
    db: asyncpg.Connection  # in the transaction of the request; not to be kept
    context: dict  # tenant_context(): tenantId, plan, status, features, settings, …


acting: ContextVar[Tenant | None] = ContextVar("acting", default=None)  # for code without the argument


class TenantRefused(Exception):
    """The server does not let the role act for this tenant: unknown, not granted, suspended or deleted."""


@asynccontextmanager
async def acting_for(pool, tenant_id: UUID):
    """A transaction that acts for a tenant: for requests and for jobs."""
    async with pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        try:
            try:
                await db.execute("SELECT set_tenant($1)", tenant_id)
            except asyncpg.PostgresError as error:
                if error.sqlstate in ("42501", "42704", "55000"):
                    raise TenantRefused from error
                raise
            before = acting.set(Tenant(db, json.loads(await db.fetchval("SELECT tenant_context()"))))
            try:
                yield acting.get()
            finally:
                acting.reset(before)
            await db.execute("SELECT 1")  # raises if an error was swallowed: COMMIT would roll back, and say nothing
        except BaseException:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):  # a lost connection has rolled back
                await transaction.rollback()
            raise
        await transaction.commit()


class TenantRoute(APIRoute):
    # A dependency with yield would end after the answer has left: a failed COMMIT could not be told any more.
    def get_route_handler(self):
        handler = super().get_route_handler()

        async def handle(request: Request):
            try:
                (text,) = request.headers.getlist("x-tenant-id")
                tenant = UUID(text)
            except ValueError:
                raise HTTPException(400, "X-Tenant-ID must be there once, and be a uuid") from None
            try:
                async with acting_for(request.app.state.pool, tenant):
                    return await handler(request)
            except TenantRefused as error:  # one answer for all reasons: nobody finds out which tenants there are
                logging.getLogger(__name__).warning("tenant %s: %s", tenant, error.__cause__.args[0])
                raise HTTPException(403, "not your tenant") from None

        return handle


CurrentTenant = Annotated[Tenant, Depends(lambda: acting.get())]


async def refused(request: Request, error: asyncpg.PostgresError):
    """What the server refused to a handler, as HTTP."""
    if error.sqlstate == "53400":  # the quota is used up; retry_after is null where waiting does not help
        detail = json.loads(error.detail)
        wait = detail["retry_after"]
        return JSONResponse(detail, 429, {} if wait is None else {"Retry-After": str(wait)})
    status = {"42501": 403, "42704": 404, "25006": 503}.get(error.sqlstate)
    if status is None:
        raise error
    return JSONResponse({"error": error.args[0]}, status)
