"""The tenant of a request, for Django 5.1 and later with psycopg 3. Copy this file.

    MIDDLEWARE = [..., "tenant.TenantMiddleware"]  # the last one: it is for views

Each request is one transaction of the tenant that X-Tenant-ID names; request.tenant is tenant_context(). It ends before
the answer leaves: COMMIT if its status is below 400, else ROLLBACK. In models, for a column that tenant_protect manages:

    tenant_id = models.UUIDField(db_default=RequiredTenant())
"""

import json
import logging
from contextlib import contextmanager
from uuid import UUID

from django.db import DatabaseError, connection, models, transaction
from django.http import JsonResponse


class RequiredTenant(models.Func):
    function, output_field = "required_tenant", models.UUIDField()


class TenantRefused(Exception):
    """The server does not let the role act for this tenant: unknown, not granted, suspended or deleted."""


def sqlstate(error):
    return getattr(error.__cause__, "sqlstate", None)


@contextmanager
def acting_for(tenant: UUID):
    """A transaction that acts for a tenant: for requests and for jobs."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        try:
            cursor.execute("SELECT set_tenant(%s)", [tenant])
        except DatabaseError as error:
            if sqlstate(error) in ("42501", "42704", "55000"):
                raise TenantRefused from error
            raise
        cursor.execute("SELECT tenant_context()")
        yield json.loads(cursor.fetchone()[0])
        if not connection.needs_rollback:
            cursor.execute("SELECT 1")  # raises if an error was swallowed: COMMIT would roll back, and say nothing


class TenantMiddleware:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        try:
            tenant = UUID(request.headers.get("X-Tenant-ID", ""))
        except ValueError:
            return JsonResponse({"error": "X-Tenant-ID must be there once, and be a uuid"}, status=400)
        try:
            with acting_for(tenant) as request.tenant:
                response = self.get_response(request)
                if response.status_code >= 400:  # an exception of the view is an answer by now
                    transaction.set_rollback(True)
            return response
        except TenantRefused as error:  # one answer for all reasons: nobody finds out which tenants there are
            reason = error.__cause__.__cause__.diag.message_primary
            logging.getLogger(__name__).warning("tenant %s: %s", tenant, reason)
            return JsonResponse({"error": "not your tenant"}, status=403)

    def process_exception(self, request, error):
        """What the server refused to a view, as HTTP."""
        if not isinstance(error, DatabaseError):
            return None
        if sqlstate(error) == "53400":  # the quota is used up; retry_after is null where waiting does not help
            detail = json.loads(error.__cause__.diag.message_detail)
            wait = detail["retry_after"]
            return JsonResponse(detail, status=429, headers={} if wait is None else {"Retry-After": str(wait)})
        status = {"42501": 403, "42704": 404, "25006": 503}.get(sqlstate(error))
        return status and JsonResponse({"error": error.__cause__.diag.message_primary}, status=status)
