"""`meshwarden identity`: look at certificates, revoke identities and certificates."""

import time
from typing import Final

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.admin_service_pb2 import (
    AllowRequest,
    CertificateState,
    DeniedState,
    DenyRequest,
    DenyTarget,
    ListCertificatesRequest,
    ListDeniedRequest,
)

_WAIT_S: Final = 5.0
_POLL_S: Final = 0.05
_DAYS: Final = 86_400

spiffe_id = click.argument("spiffe_id", required=False, default="")
serials = click.option(
    "--serial", "serials", multiple=True, help="A certificate's serial number, in hexadecimal; may be repeated."
)


@click.group()
def identity() -> None:
    """Show certificates; revoke identities and single certificates."""


@identity.command("list")
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--node", default="", help="Only those that this node was given.")
@click.option("--spiffe-id", default="", help="Only those of this identity.")
@render.output_option
def list_certificates(tenant: str, node: str, spiffe_id: str, output: str) -> None:
    """Show the certificates that workloads were given and that have not ended: whose, where, how long, held or not."""
    request = ListCertificatesRequest(tenant=tenant, node=node, spiffe_id=spiffe_id)
    with client.connect_current() as mesh:
        answer = mesh.admin.ListCertificates(request, timeout=client.TIMEOUT_S)
        while answer.next_page_token:
            request.page_token, answer.next_page_token = answer.next_page_token, ""
            answer.MergeFrom(mesh.admin.ListCertificates(request, timeout=client.TIMEOUT_S))
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    now_s = answer.now.seconds
    rows = [
        (one.spiffe_id, one.node, one.serial, render.life(one.not_after.seconds - now_s), _use(one))
        for one in answer.certificates
    ]
    render.table(("SPIFFE ID", "NODE", "SERIAL", "LEFT", "IS"), rows)


@identity.command()
@spiffe_id
@serials
@click.option("--reason", required=True, help="Why, for the audit log and other operators.")
@click.option(
    "--for",
    "ttl_s",
    type=click.IntRange(1, 366 * _DAYS),
    help="For so many seconds.  [default: until the last certificate has ended]",
)
@render.output_option
def deny(spiffe_id: str, serials: tuple[str, ...], reason: str, ttl_s: int | None, output: str) -> None:
    """Refuse an identity everywhere, or single certificates.

    Given SPIFFE_ID alone, all of its certificates are refused, and it gets no new ones. With --serial those
    certificates are, of SPIFFE_ID alone if that is given: their holders stay in the mesh with a new one.
    """
    request = DenyRequest(targets=_targets(spiffe_id, serials), reason=reason)
    if ttl_s is not None:
        request.ttl.FromSeconds(ttl_s)
    with client.connect_current() as mesh:
        began_s = time.monotonic()
        answer = mesh.admin.Deny(request, timeout=client.TIMEOUT_S)
        if output != "table":
            render.data(render.as_dict(answer), output)
            return
        for state in answer.denied:
            click.echo(f"denied\t{_name(state.target)}\tuntil {render.moment(state.not_after)}")
        click.echo(_spread(mesh, began_s), err=True)


@identity.command()
@spiffe_id
@serials
@click.option("--reason", default="", help="Why, for the audit log.")
@render.output_option
def allow(spiffe_id: str, serials: tuple[str, ...], reason: str, output: str) -> None:
    """Take a deny back, written as it was denied."""
    request = AllowRequest(targets=_targets(spiffe_id, serials), reason=reason)
    with client.connect_current() as mesh:
        answer = mesh.admin.Allow(request, timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    for target in request.targets:
        click.echo(f"allowed\t{_name(target)}")


@identity.command()
@click.option("--tenant", default="", help="Only this tenant's.")
@render.output_option
def denied(tenant: str, output: str) -> None:
    """Show what is denied, by whom, why and until when."""
    with client.connect_current() as mesh:
        answer = mesh.admin.ListDenied(ListDeniedRequest(tenant=tenant), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    render.table(("DENIED", "UNTIL", "SINCE", "BY", "REASON"), [_row(state) for state in answer.denied])
    for node in answer.behind:
        click.echo(f"node {node} has not said yet that it refuses them", err=True)


def _targets(spiffe_id: str, serials: tuple[str, ...]) -> list[DenyTarget]:
    if not spiffe_id and not serials:
        raise click.UsageError("say a SPIFFE ID, or --serial")
    return [DenyTarget(spiffe_id=spiffe_id, serial=serial) for serial in serials or ("",)]


def _spread(mesh: client.Client, began_s: float) -> str:
    """Waits until every connected node refuses what was denied, for some seconds at most; says how far that is."""
    while True:
        listed = mesh.admin.ListDenied(ListDeniedRequest(), timeout=client.TIMEOUT_S)
        took_s = time.monotonic() - began_s
        known = listed.nodes - len(listed.behind)
        if not listed.behind:
            return f"in force on {known} of {listed.nodes} nodes after {render.duration(took_s)}"
        if took_s > _WAIT_S:
            return f"in force on {known} of {listed.nodes} nodes; not on {', '.join(listed.behind)}"
        time.sleep(_POLL_S)


def _use(one: CertificateState) -> str:
    held = f"held by {', '.join(one.workloads)}" if one.workloads else ""
    word = "not heard of" if one.use == CertificateState.UNKNOWN else held or "not held"
    return f"{word}, denied" if one.denied else word


def _name(target: DenyTarget) -> str:
    if not target.serial:
        return target.spiffe_id
    return f"serial {target.serial}" + (f" of {target.spiffe_id}" if target.spiffe_id else "")


def _row(state: DeniedState) -> tuple[str, ...]:
    return (
        _name(state.target),
        render.moment(state.not_after),
        render.moment(state.time),
        state.by,
        state.reason,
    )
