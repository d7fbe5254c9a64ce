"""Features of tenants, for the OpenFeature SDK. Copy this file beside tenant.py.

    api.set_provider(TenantFeatures())
    client = api.get_client()

    await client.get_boolean_value_async("new_checkout", False)  # in a request or job of a tenant
    client.get_boolean_value("new_checkout", False)

The first asks the server now. The second cannot: it answers what tenant_context() said when the transaction began, for
the reason CACHED. Features are the tenant's: the targeting key of an evaluation context, often a user, changes nothing.
"""

import json

import asyncpg
from openfeature.exception import FlagNotFoundError, GeneralError, TargetingKeyMissingError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata

from tenant import acting

def as_boolean(value):
    return value if isinstance(value, bool) else None


def as_string(value):
    return value if isinstance(value, str) else None


def as_integer(value):
    return as_number(value, int)


def as_float(value):
    return as_number(value, float)


def as_number(value, kind):
    """JSON does not tell 10 from 10.0. What would lose digits is of another type."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return kind(value) if kind(value) == value else None
    except OverflowError:
        return None


def as_object(value):
    return value if isinstance(value, (dict, list)) else None


def acting_tenant():
    tenant = acting.get()
    if tenant is None:
        raise TargetingKeyMissingError("this code does not run for a tenant")
    return tenant


def details(tenant, key, value, convert, **more):
    converted = convert(value)
    if converted is None:
        raise TypeMismatchError(f"{key} is {json.dumps(value)}")
    return FlagResolutionDetails(converted, flag_metadata={"tenant": tenant.context["tenantId"]}, **more)


def resolvers(convert):
    """The two methods for a type. Of what they raise the SDK makes the default, with the error's code."""

    def known(self, flag_key, default_value, evaluation_context=None):
        tenant = acting_tenant()
        values = tenant.context["featureValues"]
        if flag_key not in values:
            raise FlagNotFoundError(f"there is no feature {flag_key}")
        return details(tenant, flag_key, values[flag_key], convert, reason=Reason.CACHED)

    async def asked(self, flag_key, default_value, evaluation_context=None):
        tenant = acting_tenant()
        try:
            feature = await tenant.db.fetchrow("SELECT * FROM tenant_feature($1)", flag_key)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise GeneralError(str(error)) from error
        if feature["error_code"] == "FLAG_NOT_FOUND":
            raise FlagNotFoundError(f"there is no feature {flag_key}")
        value, reason = json.loads(feature["value"]), Reason(feature["reason"])
        return details(tenant, flag_key, value, convert, reason=reason, variant=feature["variant"])

    return known, asked


class TenantFeatures(AbstractProvider):
    def get_metadata(self):
        return Metadata("tenant_rls")

    resolve_boolean_details, resolve_boolean_details_async = resolvers(as_boolean)
    resolve_string_details, resolve_string_details_async = resolvers(as_string)
    resolve_integer_details, resolve_integer_details_async = resolvers(as_integer)
    resolve_float_details, resolve_float_details_async = resolvers(as_float)
    resolve_object_details, resolve_object_details_async = resolvers(as_object)
