"""docs/cli.md is what the commands say of themselves."""

from pathlib import Path

from meshwarden.controlplane.cli.reference import reference


def test_the_reference_is_as_generated() -> None:
    assert (Path(__file__).parents[3] / "docs" / "cli.md").read_text() == reference()
