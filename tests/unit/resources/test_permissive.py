"""What a service may say of calls in the clear."""

import pytest

from meshwarden.controlplane.resources.manifest import ManifestFaults, parse

UNTIL = "until: 2026-12-24T18:00:00Z"


def service(permissive: str, more: str = "") -> str:
    spec = f"{{protocol: HTTP, permissive: {permissive}{more}}}"
    return f"kind: Service\nmetadata: {{tenant: platform, name: old}}\nspec: {spec}\n"


def test_an_end_and_methods_are_said() -> None:
    (found,) = parse(service(f"{{{UNTIL}, methods: [/*, GET /a, /b*]}}"), "test")
    assert found.resource.service.spec.permissive.until.seconds == 1_798_135_200


@pytest.mark.parametrize(
    ("permissive", "more", "field"),
    [
        ("{}", "", "spec.permissive.until"),
        ("{methods: [/*]}", "", "spec.permissive.until"),
        ("{until: never, methods: [/*]}", "", "spec.permissive.until"),
        (f"{{{UNTIL}}}", "", "spec.permissive.methods"),
        (f"{{{UNTIL}, methods: []}}", "", "spec.permissive.methods"),
        (f"{{{UNTIL}, methods: ['*']}}", "", "spec.permissive.methods[0]"),
        (f"{{{UNTIL}, methods: [/a*b]}}", "", "spec.permissive.methods[0]"),
        (f"{{{UNTIL}, methods: [/a, /a]}}", "", "spec.permissive.methods"),
        (f"{{{UNTIL}, methods: [get /a]}}", "", "spec.permissive.methods[0]"),
        (f"{{{UNTIL}, methods: [{', '.join(f'/a{number}' for number in range(65))}]}}", "", "spec.permissive.methods"),
        (f"{{{UNTIL}, methods: [/*]}}", ", spiffeId: spiffe://partner.example/x", "spec.permissive"),
    ],
)
def test_what_would_be_open_for_ever_or_to_nobody_knows_what_is_refused(permissive: str, more: str, field: str) -> None:
    with pytest.raises(ManifestFaults) as caught:
        parse(service(permissive, more), "test")
    assert field in [fault.field for fault in caught.value.faults]
