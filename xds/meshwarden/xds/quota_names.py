"""Names in Envoy's quota reports: the control plane writes them into its configuration, the agent reads them."""

from typing import Final

DOMAIN: Final = "mesh"
POLICY: Final = "policy"
"""Of a bucket's id: the full name of the RatePolicy, "platform/orders"."""
TENANT: Final = "tenant"
"""The calling tenant, by its certificate."""
METHOD: Final = "method"
"""The method; empty for what is no part of the tenant's limit by itself."""
