"""One scope has one digest, and no other has it."""

import dataclasses

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.xds.scope_digest import scope_digest
from meshwarden.xds.snapshot import Resource
from meshwarden.xds.wire import digest_of

TEXT = st.text(max_size=6)
RESOURCES = st.lists(
    st.builds(Resource, TEXT, TEXT, TEXT, st.binary(max_size=6)),
    max_size=5,
    unique_by=lambda item: (item.type_url, item.name),
)
WHOLE = {"scope": "s", "full": True}


def beside(**fields: object) -> v1.ScopeUpdate:
    return v1.ScopeUpdate(**{**WHOLE, **fields})  # type: ignore[arg-type]


LIMITS = st.one_of(st.none(), st.lists(TEXT, max_size=2))


@st.composite
def scopes(draw: st.DrawFn) -> tuple[v1.ScopeUpdate, list[Resource]]:
    made = v1.ScopeUpdate(scope=draw(TEXT), full=True)
    for kind in ("limits", "access"):
        policies = draw(LIMITS)
        if policies is not None:
            getattr(made, kind).SetInParent()
            for policy in policies:
                getattr(made, kind).policies.add(policy=policy)
    for seconds in draw(st.lists(st.integers(0, 9), max_size=2)):
        getattr(made.later.forms.add(), "from").FromSeconds(seconds)
    return made, draw(RESOURCES)


@given(scopes(), scopes(), st.randoms())
def test_two_scopes_have_one_digest_if_and_only_if_they_are_the_same(
    one: tuple[v1.ScopeUpdate, list[Resource]], other: tuple[v1.ScopeUpdate, list[Resource]], random: object
) -> None:
    is_same = one[0] == other[0] and set(one[1]) == set(other[1])
    assert (scope_digest(*one) == scope_digest(*other)) == is_same
    shuffled = list(one[1])
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert scope_digest(one[0], shuffled) == scope_digest(*one)
    assert len(scope_digest(*one)) == 32


@given(RESOURCES.filter(bool), st.data())
def test_whatever_changes_of_a_resource_changes_it(resources: list[Resource], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(resources) - 1))
    field = data.draw(st.sampled_from(dataclasses.fields(Resource))).name
    before = getattr(resources[place], field)
    value = data.draw((TEXT if isinstance(before, str) else st.binary(max_size=6)).filter(lambda new: new != before))
    changed = [*resources]
    changed[place] = dataclasses.replace(resources[place], **{field: value})
    assert scope_digest(beside(), changed) != scope_digest(beside(), resources)
    assert scope_digest(beside(), resources[:place] + resources[place + 1 :]) != scope_digest(beside(), resources)


def test_what_moves_from_one_part_to_the_next_changes_it() -> None:
    assert Resource("a", "b", "c", b"d").digest != Resource("ab", "", "c", b"d").digest
    assert Resource("a", "b", "", b"cd").digest != Resource("a", "b", "c", b"d").digest
    assert digest_of((b"a", b"b")) != digest_of((b"ab",)) != digest_of((b"ab", b""))


def test_a_resource_is_told_with_all_that_its_digest_is_of() -> None:
    """A field that is added to one must be added to the other, or a change of it would not come down to who returns."""
    told = [field.name for field in v1.XdsResource.DESCRIPTOR.fields]
    assert told == [field.name for field in dataclasses.fields(Resource)]


@pytest.mark.parametrize("field", list(v1.ScopeUpdate.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_every_field_of_an_update_is_in_it(field: FieldDescriptor) -> None:
    told = beside()
    if field.is_repeated:
        getattr(told, field.name).add()
    elif field.message_type is not None:
        getattr(told, field.name).SetInParent()
    else:
        setattr(told, field.name, False if field.type == FieldDescriptor.TYPE_BOOL else "other")
    assert scope_digest(told, ()) != scope_digest(beside(), ())


def test_what_a_newer_control_plane_tells_that_is_not_known_here_is_in_it() -> None:
    unknown = v1.ScopeUpdate.FromString(beside().SerializeToString() + bytes([15 << 3, 1]))
    assert scope_digest(unknown, ()) != scope_digest(beside(), ())
