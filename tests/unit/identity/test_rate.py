import pytest
from google.rpc import error_details_pb2

from meshwarden.controlplane.api.errors import status_of
from meshwarden.controlplane.identity.rate import Limited, Pace, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::]:1", "2001:db8:1:2::/64"),
        ("[::ffff:192.0.2.1]:4711", "192.0.2.1"),
        ("unix:", "unix:"),
        ("", ""),
        ("[fe80::1%eth0]:1", "fe80::/64"),
    ],
)
def test_whose_an_address_is(address: str, network: str) -> None:
    assert network_of(address) == network


def test_who_is_limited_is_told_when_to_come_again() -> None:
    found = status_of(Limited("node n1", "certificates", Pace(0.5, 1), 1.25))
    assert found is not None
    code, message, details = found
    assert code.name == "RESOURCE_EXHAUSTED"
    assert message == "node n1 asks for more than 0.5 certificates a second; try again in 1.25 s"
    assert isinstance(details, error_details_pb2.RetryInfo)
    assert details.retry_delay.ToMilliseconds() == 1250
