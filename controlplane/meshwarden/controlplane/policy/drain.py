"""Which endpoints get no new calls for an operator's sake: drains, by the tenant whose endpoints they are about."""

from typing import Any

from meshwarden.controlplane.policy.neutral import Key


class Drains:
    """The drains there are."""

    def __init__(self) -> None:
        self._of_tenant: dict[str, dict[Key, Any]] = {}

    def __copy__(self) -> "Drains":
        made = Drains()
        made._of_tenant = {tenant: dict(drains) for tenant, drains in self._of_tenant.items()}
        return made

    def put(self, key: Key, drain: Any) -> None:
        """Takes a `v1.Drain`."""
        self._of_tenant.setdefault(key.tenant, {})[key] = drain

    def drop(self, key: Key) -> None:
        """Forgets one."""
        del self._of_tenant[key.tenant][key]

    def find(self, endpoint: Key, spec: Any) -> Key | None:
        """The first drain by name that is about an endpoint, given with its `EndpointSpec`; None if none is."""
        drains = self._of_tenant.get(endpoint.tenant)
        if not drains:
            return None
        return next((key for key, one in sorted(drains.items()) if is_about(one.spec, endpoint.name, spec)), None)

    def all(self) -> list[Key]:
        """All of them, in the order of their names."""
        return sorted(key for drains in self._of_tenant.values() for key in drains)


def is_about(drain: Any, name: str, endpoint: Any) -> bool:
    """Whether a `DrainSpec` is about an endpoint, by its name and `EndpointSpec`: all that it gives holds."""
    return (
        drain.node in ("", endpoint.node)
        and drain.region in ("", endpoint.locality.region)
        and drain.zone in ("", endpoint.locality.zone)
        and drain.service in ("", endpoint.service)
        and drain.version in ("", endpoint.version)
        and drain.endpoint in ("", name)
    )
