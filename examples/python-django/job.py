"""A nightly job: deletes old orders, tenant by tenant, each in a transaction of its own."""

import logging
import sys
from datetime import timedelta

from app import Order
from django.db import connections
from django.utils import timezone

from tenant import TenantRefused, acting_for


def for_each_tenant(work):
    """Calls `work` with the context of every active tenant; returns those that failed.

    One that fails does not stop the others.
    """
    with connections["office"].cursor() as office:
        office.execute("SELECT tenant_list()")
        tenants = [tenant for (tenant,) in office.fetchall()]
    failed = []
    for tenant in tenants:
        try:
            with acting_for(tenant) as context:
                work(context)
        except Exception as error:
            if isinstance(error, TenantRefused) and not is_active(tenant):
                logging.info("tenant %s was suspended or deleted meanwhile", tenant)
                continue
            logging.exception("tenant %s failed", tenant)
            failed.append(tenant)
    return failed


def is_active(tenant):
    """Tells a tenant that is over from one that the role may not act for, which is a failure."""
    with connections["office"].cursor() as office:
        office.execute("SELECT %s IN (SELECT tenant_list())", [tenant])
        return office.fetchone()[0]


def delete_old_orders(context):
    # No filter by tenant: the server adds it.
    Order.objects.filter(created_at__lt=timezone.now() - timedelta(days=365)).delete()


if __name__ == "__main__":
    sys.exit(1 if for_each_tenant(delete_old_orders) else 0)
