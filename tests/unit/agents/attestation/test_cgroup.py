"""Whose unit and whose container a control group is: what root alone can name, and nothing that a user can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.agents.attestation.cgroup import Placement, parse

ID, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
POD = "pod0f2c5d1e-7a3b-4c8d-9e0f-1a2b3c4d5e6f"
SLICED = POD.replace("-", "_")


def v2(path: str) -> Placement:
    return parse(f"0::{path}\n")


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/orders.service", "orders.service"),
        ("/system.slice/orders.service/worker", "orders.service"),
        ("/system.slice/system-orders.slice/orders@1.service", "orders@1.service"),
        ("/init.scope", "init.scope"),
        ("/a.slice/a-b.slice/a-b-c.slice/d\\x2de.service", "d\\x2de.service"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        # What a user makes in the part that is his belongs to the unit that gave it to him.
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/orders.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/system.slice/orders.service", "user@1000.service"),
        ("/system.slice/bob.service/system.slice/orders.service", "bob.service"),
        ("/machine.slice/systemd-nspawn@bob.service/payload/system.slice/orders.service", "systemd-nspawn@bob.service"),
        # No place that systemd gives a unit.
        ("/", None),
        ("/bob/orders.service", None),
        ("/bob/system.slice/orders.service", None),
        ("/system.slice", None),
        ("/b-c.slice/orders.service", None),
        ("/system.slice/user-1000.slice/orders.service", None),
        ("/system.slice/system.slice/orders.service", None),
        ("/-.slice/orders.service", None),
        ("/.slice/orders.service", None),
        ("//system.slice/orders.service", None),
        ("/system.slice//orders.service", None),
        ("/system.slice/orders.service (deleted)", None),
        ("/system.slice/orders.service ", None),
        ("/system.slice/orders.mount", None),
        ("/system.slice/.service", None),
        ("/../system.slice/orders.service", None),
        ("/..", None),
        ("system.slice/orders.service", None),
    ],
)
def test_units(path: str, unit: str | None) -> None:
    assert v2(path).unit == unit


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/system.slice/docker-{ID}.scope/init", ID),
        (f"/docker/{ID}", ID),
        (f"/docker/{ID}/docker/{OTHER}", ID),
        (f"/docker/{ID}/kubelet/kubepods/{POD}/{OTHER}", ID),
        (f"/kubepods/burstable/{POD}/{ID}", ID),
        (f"/kubepods/{POD}/{ID}", ID),
        (f"/kubepods/besteffort/{POD}/crio-{ID}", ID),
        (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{SLICED}.slice/cri-containerd-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-{SLICED}.slice/crio-{ID}.scope", ID),
        (f"/system.slice/nerdctl-{ID}.scope", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/libpod_parent/libpod-{ID}", ID),
        # Somebody's own: rootless, in a container's part, or in a directory that he was given.
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container", None),
        (f"/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{ID}.scope", None),
        (f"/system.slice/bob.service/docker-{ID}.scope", None),
        (f"/system.slice/bob.service/docker/{ID}", None),
        (f"/bob/docker/{ID}", None),
        (f"/bob/docker-{ID}.scope", None),
        # Not the container: who looks after it.
        (f"/machine.slice/libpod-conmon-{ID}.scope", None),
        (f"/kubepods.slice/kubepods-{SLICED}.slice/crio-conmon-{ID}.scope", None),
        ("/system.slice/docker.service", None),
        # No id.
        (f"/docker/{ID[:-1]}", None),
        (f"/docker/{ID}0", None),
        (f"/docker/{ID.upper()}", None),
        (f"/system.slice/docker-{ID}.scope2", None),
        (f"/system.slice/docker-{ID}.service", None),
        ("/docker/", None),
        (f"/docker/{ID} (deleted)", None),
        (f"/../docker/{ID}", None),
    ],
)
def test_containers(path: str, container: str | None) -> None:
    assert v2(path).container == container


UNIT = "/system.slice/orders.service"


@pytest.mark.parametrize(
    ("text", "cgroup", "unit"),
    [
        (f"0::{UNIT}", UNIT, "orders.service"),
        (f"12:pids:{UNIT}\n11:cpu,cpuacct:/system.slice\n1:name=systemd:{UNIT}\n", UNIT, "orders.service"),
        (f"1:name=systemd:{UNIT}\n0::{UNIT}\n", UNIT, "orders.service"),
        (f"1:name=systemd:{UNIT}\n0::/\n", UNIT, "orders.service"),
        (f"1:name=systemd:/\n0::{UNIT}\n", UNIT, "orders.service"),
        # Two trees that don't agree: in one of them somebody may have been given a part.
        (f"1:name=systemd:/user.slice/x\n0::{UNIT}\n", UNIT, None),
        # A machine without systemd.
        ("4:memory:/jobs/7\n3:cpu:/jobs/7\n2:pids:/\n0::/\n", "/jobs/7", None),
        (f"4:memory:{UNIT}\n0::/\n", UNIT, None),
        ("4:memory:/jobs/7\n3:cpu:/jobs/8\n", None, None),
        ("0::/\n", "/", None),
        # Out of shape.
        ("", None, None),
        ("\n", None, None),
        ("junk\n", None, None),
        (f"0:{UNIT}\n", None, None),
        (f"x::{UNIT}\n", None, None),
        (f"0::{UNIT}\n0::{UNIT}\n", None, None),
        (f"0::{UNIT}\n1:cpu:relative\n", None, None),
        # A name that holds what looks like another line.
        (f"4:memory:/bob/x\x0b1:name=systemd:{UNIT}\n0::/\n", f"/bob/x\x0b1:name=systemd:{UNIT}", None),
        (f"0::/bob/x\r1:name=systemd:{UNIT}\n", f"/bob/x\r1:name=systemd:{UNIT}", None),
        (f"0::/bob/x\x1c0::{UNIT}\n", f"/bob/x\x1c0::{UNIT}", None),
    ],
)
def test_versions(text: str, cgroup: str | None, unit: str | None) -> None:
    found = parse(text)
    assert (found.cgroup, found.unit) == (cgroup, unit)


def test_a_group_holds_what_is_below_it_and_not_what_is_called_alike() -> None:
    place = v2("/jobs/a/b")
    assert place.is_within("/jobs/a")
    assert place.is_within("/jobs/a/b")
    assert not place.is_within("/jobs/a/b/c")
    assert not place.is_within("/jo")
    assert not v2("/jobs/ab").is_within("/jobs/a")
    assert not Placement().is_within("/jobs")


NAMES = st.text(st.characters(exclude_characters="/\n", exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(st.lists(NAMES | st.sampled_from(["system.slice", "orders.service", f"docker-{ID}.scope", f"{ID}", "docker"])))
def test_below_a_users_own_part_nothing_is_another_unit_or_a_container(names: list[str]) -> None:
    above = "/user.slice/user-1000.slice/user@1000.service"
    found = v2("/".join([above, *names]))
    assert found.unit in (None, "user@1000.service")
    assert found.container is None


@given(st.text(max_size=300))
def test_nothing_raises(text: str) -> None:
    parse(text)
    parse(f"0::/{text}")
