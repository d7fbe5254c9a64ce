"""Orders of many tenants, in one file. The server is where PGHOST, PGPORT and PGDATABASE say."""

import json
import os
import sys

import django
from django.conf import settings


def database(user, connections):
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "USER": user,
        "OPTIONS": {"pool": {"min_size": 1, "max_size": connections, "timeout": 60}},
    }


if not settings.configured:
    settings.configure(
        SECRET_KEY=os.environ.get("SECRET_KEY", os.urandom(16).hex()),
        ALLOWED_HOSTS=["localhost", "127.0.0.1"],
        ROOT_URLCONF="app",
        MIDDLEWARE=["tenant.TenantMiddleware"],
        # `office` is an operator: it lists the tenants for jobs, and sees no orders.
        DATABASES={"default": database(os.environ["PGUSER"], 5), "office": database("office", 1)},
    )
    django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from tenant import RequiredTenant  # noqa: E402


class Order(models.Model):
    id = models.BigAutoField(primary_key=True)
    tenant_id = models.UUIDField(db_default=RequiredTenant())
    item = models.TextField()
    created_at = models.DateTimeField(db_default=models.functions.Now())

    class Meta:
        app_label = "app"
        db_table = "orders"
        managed = False


def orders(request):
    if request.method == "GET":
        found = Order.objects.order_by("id").values("id", "item")
        return JsonResponse({"settings": request.tenant["settings"], "orders": list(found)})
    body = json.loads(request.body)
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM tenant_quota_consume('api_requests')")
    # A client that names another tenant in the body is refused by the server: 42501.
    order = Order.objects.create(**{name: body[name] for name in ("item", "tenant_id") if name in body})
    return JsonResponse(
        {"settings": request.tenant["settings"], "order": {"id": order.id, "item": order.item}}, status=201
    )


urlpatterns = [path("orders", orders)]
application = get_wsgi_application()

if __name__ == "__main__":
    sys.modules["app"] = sys.modules["__main__"]
    from django.core.servers.basehttp import run

    run("127.0.0.1", 8000, application, threading=True)
