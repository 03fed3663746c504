"""A refused batch is told by file, line and field."""

from meshwarden.controlplane.cli.change.apply import _line
from meshwarden.controlplane.resources.manifest import parse

TEXT = "kind: Service\nmetadata:\n  tenant: acme\n  name: web\nspec:\n  protocol: HTTP\n"


def test_a_fault_of_the_server_gets_its_file_and_line() -> None:
    located = parse(TEXT, "web.yaml")
    assert _line("resources[0].spec.protocol", "no", located) == "web.yaml:6: spec.protocol: no"


def test_a_path_that_fits_no_resource_is_shown_as_it_is() -> None:
    located = parse(TEXT, "web.yaml")
    for path in ("resources[1].spec", "resources[x].spec", "page_size"):
        assert _line(path, "\x1bno", located) == f"{path}: �no"
    assert _line("", "and 3 more", located) == "and 3 more"
