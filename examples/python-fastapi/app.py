"""Orders of many tenants. The server is where PGHOST, PGPORT, PGDATABASE and PGUSER say."""

from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from tenant import CurrentTenant, TenantRoute, refused

router = APIRouter(route_class=TenantRoute)


class Order(BaseModel):
    item: str
    # A client that names another tenant here is refused by the server: 42501.
    tenant_id: UUID | None = None


@router.get("/orders")
async def list_orders(tenant: CurrentTenant):
    orders = await tenant.db.fetch("SELECT id, item FROM orders ORDER BY id")
    return {"settings": tenant.context["settings"], "orders": [dict(order) for order in orders]}


@router.post("/orders", status_code=201)
async def create_order(order: Order, tenant: CurrentTenant):
    await tenant.db.fetchrow("SELECT * FROM tenant_quota_consume('api_requests')")
    made = await tenant.db.fetchrow(
        "INSERT INTO orders (tenant_id, item) VALUES (coalesce($1, required_tenant()), $2) RETURNING id, item",
        order.tenant_id,
        order.item,
    )
    return {"settings": tenant.context["settings"], "order": dict(made)}


def make_app(connections=5, **options) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI):
        async with asyncpg.create_pool(min_size=1, max_size=connections, **options) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(asyncpg.PostgresError, refused)
    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(make_app())
