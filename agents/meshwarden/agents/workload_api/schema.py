"""The messages of the SPIFFE Workload API, in a descriptor pool of their own.

The standard's file has no package, so any two libraries that register it in protobuf's default pool collide, and
applications of ours use py-spiffe. Nothing is registered there by us.
"""

from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE: Final = "SpiffeWorkloadAPI"
_POOL: Final = descriptor_pool.DescriptorPool()


def _load() -> None:
    content = files(__package__).joinpath("workload_api.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        _POOL.Add(file)


_load()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


X509SVIDRequest: Final = _message("X509SVIDRequest")
X509SVIDResponse: Final = _message("X509SVIDResponse")
X509BundlesRequest: Final = _message("X509BundlesRequest")
X509BundlesResponse: Final = _message("X509BundlesResponse")
JWTSVIDRequest: Final = _message("JWTSVIDRequest")
JWTSVIDResponse: Final = _message("JWTSVIDResponse")
JWTBundlesRequest: Final = _message("JWTBundlesRequest")
JWTBundlesResponse: Final = _message("JWTBundlesResponse")
ValidateJWTSVIDRequest: Final = _message("ValidateJWTSVIDRequest")
ValidateJWTSVIDResponse: Final = _message("ValidateJWTSVIDResponse")
