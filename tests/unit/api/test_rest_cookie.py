import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.api.rest.cookie import CLEARED, NAME, cookie, parse

TEXT = "abcdefghijklmnopqrstuvwxyz0123456789_-ABCDE"


def test_the_cookie_is_for_this_host_alone() -> None:
    made = cookie(TEXT)
    pair, *words = made.split("; ")
    assert pair == f"__Host-meshwarden={TEXT}"
    assert set(words) == {"Path=/", "Secure", "HttpOnly", "SameSite=Strict", "Max-Age=3600"}
    assert CLEARED.startswith("__Host-meshwarden=; Path=/;")
    assert CLEARED.endswith("Max-Age=0")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"{NAME}={TEXT}", TEXT),
        (f"a=b; {NAME}={TEXT}; c=d", TEXT),
        (f"a=b;{NAME}={TEXT}", TEXT),
        # Of two nobody can say which is ours.
        (f"{NAME}={TEXT}; {NAME}={TEXT}", None),
        (f"{NAME}={TEXT}, {NAME}={TEXT}", None),
        (f"{NAME}={TEXT[:10]}", None),
        (f"{NAME}={TEXT}{TEXT}", None),
        (f'{NAME}="{TEXT}"', None),
        (f"{NAME}={TEXT}\n", TEXT),
        (f"{NAME} ={TEXT}", None),
        (f"x{NAME}={TEXT}", None),
        (f"{NAME.lower()}={TEXT}", None),
        (f"{NAME}", None),
        ("", None),
        (";;;=", None),
    ],
)
def test_what_is_taken(header: str, found: str | None) -> None:
    assert parse(header) == found


@given(st.text())
def test_any_header_is_read(header: str) -> None:
    found = parse(header)
    assert found is None or found in header
