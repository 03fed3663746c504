import re
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.spiffe_id import InvalidSpiffeId, Role, SpiffeId

# The standard's grammar, written a second time: what the parser must agree with.
GRAMMAR = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._-]+)+")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe:",
        "spiffe://",
        "spiffe:///path",
        "spiffe://a.test",
        "spiffe://a.test/",
        "spiffe://a.test/x/",
        "spiffe://a.test//x",
        "spiffe://a.test/x//y",
        "spiffe://a.test/.",
        "spiffe://a.test/..",
        "spiffe://a.test/x/../y",
        "spiffe://a.test/x/./y",
        "spiffe://a.test/%2e%2e/x",
        "spiffe://a.test/x%",
        "spiffe://a.test/x?q",
        "spiffe://a.test/x?",
        "spiffe://a.test/x#f",
        "spiffe://a.test/x#",
        "spiffe://a.test:443/x",
        "spiffe://user@a.test/x",
        "spiffe://user:secret@a.test/x",
        "spiffe://A.test/x",
        "SPIFFE://a.test/x",
        "Spiffe://a.test/x",
        "https://a.test/x",
        " spiffe://a.test/x",
        "spiffe://a.test/x ",
        "spiffe://a.test/x\n",
        "spiffe://a.test/x\ny",
        "spiffe://a.test\n/x",
        "spiffe://a.test/x\0",
        "spiffe://a.test\0.b.test/x",
        "spiffe://a.test/ü",
        "spiffe://ä.test/x",
        "spiffe://a.test/ſ",
        "spiffe://a.test/x\\y",
        "spiffe://a.test/x;y",
        "spiffe://a.test/x:y",
        "spiffe://a.test/~x",
        "spiffe://" + "a" * 256 + "/x",
        "spiffe://a.test/" + "x" * 2048,
        "spiffe://a.test/" + "x" * (2049 - len("spiffe://a.test/")),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


@pytest.mark.parametrize("text", ["spiffe://a.test", "spiffe://a.test/"])
def test_without_a_path_it_is_said_to_lack_one(text: str) -> None:
    with pytest.raises(InvalidSpiffeId, match="has a path"):
        SpiffeId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://a.test/x",
        "spiffe://a/x",
        "spiffe://a_b-c.d/X.y_z-0/...",
        "spiffe://" + "a" * 255 + "/x",
        "spiffe://a.test/" + "x" * (2048 - len("spiffe://a.test/")),
    ],
)
def test_taken_and_given_back(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@given(st.text(max_size=80) | st.from_regex(r"spiffe://[a-zA-Z.\n%/?#@:]{0,9}/[a-zA-Z./\n%\0-]{0,20}", fullmatch=True))
def test_agrees_with_the_grammar(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except InvalidSpiffeId:
        assert GRAMMAR.fullmatch(text) is None
    else:
        assert GRAMMAR.fullmatch(text)
        assert str(parsed) == text


@pytest.mark.parametrize(
    ("made", "text", "role", "names"),
    [
        (
            SpiffeId.workload("a.test", "acme", "web"),
            "spiffe://a.test/tenant/acme/service/web",
            Role.WORKLOAD,
            ("acme", "web", None, None, None),
        ),
        (
            SpiffeId.for_node("a.test", "eu", "n1"),
            "spiffe://a.test/region/eu/node/n1",
            Role.NODE,
            (None, None, "n1", "eu", None),
        ),
        (
            SpiffeId.control_plane("a.test", "eu"),
            "spiffe://a.test/region/eu/controlplane",
            Role.CONTROL_PLANE,
            (None, None, None, "eu", None),
        ),
        (
            SpiffeId.for_operator("a.test", "ann"),
            "spiffe://a.test/operator/ann",
            Role.OPERATOR,
            (None, None, None, None, "ann"),
        ),
        (
            SpiffeId.for_operator("a.test", "ann", "acme"),
            "spiffe://a.test/tenant/acme/operator/ann",
            Role.TENANT_OPERATOR,
            ("acme", None, None, None, "ann"),
        ),
    ],
)
def test_meaning(made: SpiffeId, text: str, role: Role, names: tuple[str | None, ...]) -> None:
    parsed = SpiffeId.parse(text)
    assert parsed == made
    assert parsed.role is role
    assert (parsed.tenant, parsed.service, parsed.node, parsed.region, parsed.operator) == names


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://a.test/operator",
        "spiffe://a.test/operator/Ann",
        "spiffe://a.test/operator/ann/x",
        "spiffe://a.test/operator/-",
        "spiffe://a.test/Operator/ann",
        "spiffe://a.test/tenant/acme/service/" + "x" * 64,
        "spiffe://a.test/region/eu/controlplane/x",
        "spiffe://a.test/tenant/acme/service/web/operator/ann",
    ],
)
def test_a_path_that_only_looks_like_ours_means_nothing(text: str) -> None:
    parsed = SpiffeId.parse(text)
    assert parsed.role is Role.OTHER
    assert (parsed.tenant, parsed.node, parsed.operator) == (None, None, None)


def test_an_error_shows_the_first_hundred_characters() -> None:
    with pytest.raises(InvalidSpiffeId) as caught:
        SpiffeId.workload("a.test", "acme", "X" * 200)
    assert str(caught.value).count("X") == 100


def test_it_stays_what_was_checked() -> None:
    made = SpiffeId.workload("a.test", "acme", "web")
    with pytest.raises(FrozenInstanceError):
        made.path = "/tenant/globex/service/web"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["", "a/b", "A", "a.b", "-a", "a-", "a" * 64, "a\n", "..", "a%"])
def test_names_are_checked(name: str) -> None:
    for make in (
        lambda: SpiffeId.workload("a.test", name, "web"),
        lambda: SpiffeId.workload("a.test", "acme", name),
        lambda: SpiffeId.for_node("a.test", "eu", name),
        lambda: SpiffeId.for_operator("a.test", name),
        lambda: SpiffeId.for_operator("a.test", "ann", name),
    ):
        with pytest.raises(InvalidSpiffeId):
            make()
