"""What the SDK's log says of a denied call."""

import pytest

from meshwarden.sdk.denial import Denials


def test_a_denied_call_names_its_trace_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    denials = Denials()
    denials.say("acme/web", "orders", "platform/orders", "/o.Orders/Get", (bytes(15) + b"\x01", bytes(8)))
    denials.say("acme/web", "orders", "platform/orders", "/o.Orders/Get")
    denials.say("acme/web", "orders", "platform/orders", "/o.Orders/List")
    assert [record.getMessage().partition("why: ")[2] for record in caplog.records] == [
        f"meshwarden explain --from acme/web --to platform/orders --method /o.Orders/Get (trace {'0' * 31}1)",
        "meshwarden explain --from acme/web --to platform/orders --method /o.Orders/List",
    ]
