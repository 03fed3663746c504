"""What a drain names must be there: nobody is to wait for the end of calls that never end, for a slip of the pen."""

from collections.abc import Iterator

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import Drain, WorkloadEntry


def drain_faults(resource: Drain, view: View) -> Iterator[FieldFault]:
    """The faults of what a drain names."""
    tenant, spec = resource.metadata.tenant, resource.spec
    if spec.service and view.service(tenant, spec.service) is None:
        yield _missing("service", "Service", tenant, spec.service, view)
    elif spec.version and not spec.service:
        yield FieldFault("spec.service", "is required: a version is one of a service")
    elif spec.version:
        entries = view.of_service("WorkloadEntry", tenant, spec.service)
        known = {entry.spec.version for entry in entries if isinstance(entry, WorkloadEntry)} - {""}
        if spec.version not in known:
            has = f"; it has {', '.join(sorted(known)[:8])}" if known else ""
            text = f"no workload entry of {tenant}/{spec.service} has version {spec.version}{has}"
            yield FieldFault("spec.version", text)
    if spec.endpoint and view.find("Endpoint", tenant, spec.endpoint) is None:
        yield _missing("endpoint", "Endpoint", tenant, spec.endpoint, view)


def _missing(field: str, kind: str, tenant: str, name: str, view: View) -> FieldFault:
    close = view.close_name(kind, tenant, name)
    return FieldFault(
        f"spec.{field}", f"there is no {kind} {tenant}/{name}" + (f"; did you mean {close}?" if close else "")
    )
