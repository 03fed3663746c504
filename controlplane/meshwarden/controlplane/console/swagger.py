"""The explorer: Swagger UI on the API's own document, out of a package, so that no request leaves the host.

Its files are those of the package, but for the page and its start, which are ours: no script stands in the page.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from swagger_ui_bundle import swagger_ui_path

from meshwarden.controlplane.console import assets
from meshwarden.controlplane.console.assets import POLICY, Asset

ROOT: Final = "/explorer/"
OURS: Final = Path(__file__).parent / "explorer"
EXPLORER_POLICY: Final = POLICY.replace("; require-trusted-types-for 'script'", "")
"""As the console's, but that Swagger UI makes elements of text, which it cleans by itself."""
_TAKEN: Final = ("swagger-ui-bundle.js", "swagger-ui.css")


def load() -> Mapping[str, Asset]:
    """Reads all files of the explorer: {path of the URL: asset}."""
    theirs = Path(str(swagger_ui_path))
    found = dict(assets.load(OURS, ROOT, EXPLORER_POLICY))
    for name in _TAKEN:
        found[ROOT + name] = assets.of((theirs / name).read_bytes(), Path(name).suffix, EXPLORER_POLICY)
    return found
