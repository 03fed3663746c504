"""`meshwarden bundle`: what proves identities, of our own trust domain and of others."""

import click

from meshwarden.certs.bundle import InvalidBundle
from meshwarden.certs.bundle_document import parse_document
from meshwarden.controlplane.cli import client, render
from meshwarden.v1.admin_service_pb2 import BundleState, ListBundlesRequest, ListBundlesResponse


@click.group()
def bundle() -> None:
    """Show and export what proves identities: our own bundle, and those of other trust domains."""


@bundle.command()
@render.output_option
def show(output: str) -> None:
    """Show each trust domain's bundle: how many roots and keys it has, and how its endpoint does.

    \b
    OWN      ours, which others fetch where [spiffe_endpoint] listens
    FETCHED  what its endpoint gave last
    KEPT     what was there before this control plane began; its endpoint has given none since
    OVERDUE  its endpoint gives none, for so long; the last one stands
    MISSING  nothing of it is known: nobody of it is trusted
    """  # noqa: D301 - click's mark for text that keeps its lines
    answer = _ask()
    if output != "table":
        found = render.as_dict(answer)
        for state in found.get("bundles", ()):
            state.pop("document", None)  # `export` has it
        render.data(found, output)
        return
    rows = [
        (one.trust_domain, word(one), one.roots, one.jwt_keys, one.sequence, render.plain(one.fault))
        for one in answer.bundles
    ]
    render.table(("TRUST DOMAIN", "STATE", "ROOTS", "JWT KEYS", "SEQUENCE", "FAULT"), rows)


@bundle.command()
@click.argument("trust_domain", required=False, default="")
@click.option(
    "--format",
    "form",
    type=click.Choice(["spiffe", "pem"]),
    default="spiffe",
    show_default=True,
    help="A SPIFFE bundle document in JSON, or the roots alone in PEM.",
)
def export(trust_domain: str, form: str) -> None:
    """Print the bundle of TRUST_DOMAIN, by default our own: for another mesh's `spec.bundle`, say."""
    answer = _ask()
    found = next(
        (one for one in answer.bundles if one.trust_domain == trust_domain or (not trust_domain and one.own)), None
    )
    if found is None:
        known = ", ".join(one.trust_domain for one in answer.bundles)
        raise click.BadParameter(f"no trust domain {trust_domain}; there is {known}", param_hint="TRUST_DOMAIN")
    if not found.document:
        raise click.ClickException(
            f"nothing of {found.trust_domain} is known: {found.fault or 'it was not fetched yet'}"
        )
    if form == "spiffe":
        click.echo(found.document.decode())
        return
    try:
        roots = parse_document(found.trust_domain, found.document).x509
    except InvalidBundle as error:
        raise click.ClickException(str(error)) from None
    click.echo(roots.pem().decode() if roots is not None else "", nl=False)


def word(state: BundleState) -> str:
    """How it stands with a bundle, in a word or two."""
    if state.own:
        return "OWN"
    if not state.roots and not state.jwt_keys:
        return "MISSING"
    if state.overdue.ToTimedelta():
        return f"OVERDUE {render.life(state.overdue.seconds)}"
    return "FETCHED" if state.HasField("fetched") else "KEPT"


def _ask() -> ListBundlesResponse:
    with client.connect_current() as mesh:
        answer: ListBundlesResponse = mesh.admin.ListBundles(ListBundlesRequest(), timeout=client.TIMEOUT_S)
    return answer
