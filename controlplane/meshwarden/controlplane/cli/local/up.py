"""`meshwarden up`."""

import random
import re
import sys
from pathlib import Path

import click

from meshwarden.certs.clock import utc_now

_NAME = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


def _address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter("write HOST:PORT; port 0 takes a free one")
    return value


def _regions(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    regions = tuple(value.split(","))
    if any(re.fullmatch(_NAME, region) is None for region in regions):
        raise click.BadParameter("write names of a-z, 0-9 and inner '-', with commas between them: eu,us")
    if len(regions) < 2 or len(set(regions)) < len(regions):
        raise click.BadParameter("write two or more different names: eu,us")
    return regions


def _reach(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        region, _, address = value.partition("=")
        found[region] = _address(ctx, param, address)
    return found


@click.command()
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the mesh keeps all it writes; a second mesh wants another one.",
)
@click.option("--vault", is_flag=True, help="Root the CA in an OpenBao, started beside the mesh.")
@click.option(
    "--vault-form",
    type=click.Choice(["upstream", "direct"]),
    help="Who signs with --vault: the control plane below OpenBao's root, or OpenBao itself.  [default: upstream]",
)
@click.option("--vault-away", is_flag=True, help="Stop that OpenBao for as long as the checks take, with --check.")
@click.option("--for", "for_s", type=click.FloatRange(min=0), metavar="SECONDS", help="End by itself after so long.")
@click.option(
    "--samples",
    type=click.Choice(["shop", "daena"]),
    multiple=True,
    default=("shop",),
    show_default=True,
    help="Which sample workloads run; may be given again.",
)
@click.option("--no-samples", is_flag=True, help="Start the bare mesh: control plane and two node agents.")
@click.option("--check", is_flag=True, help="Run the checks against the mesh, then end; exits 1 if one fails.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout: the checks' result, or up.json.")
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, callback=_address, help="Where the control plane listens."
)
@click.option(
    "--metrics-listen", default="127.0.0.1:0", show_default=True, callback=_address, help="Where it serves metrics."
)
@click.option("--otlp-endpoint", metavar="URL", help="Send traces, metrics and logs on to an OTLP/gRPC backend.")
@click.option(
    "--tail-sampling",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Of traces, send on what failed, was refused, slow or new, and this share of the others, from 0 to 1.",
)
@click.option(
    "--regions",
    metavar="NAME,NAME,…",
    callback=_regions,
    help="Start a region for each name, with a control plane, a store and two node agents of its own.",
)
@click.option(
    "--reach",
    metavar="REGION=HOST:PORT",
    multiple=True,
    callback=_reach,
    help="Where the other regions reach one: a relay, for one, which can be cut. May be given again.",
)
@click.option("--trust-domain", default="mesh.test", show_default=True, help="The trust domain.")
def up(
    state_dir: Path | None,
    vault: bool,
    vault_form: str | None,
    vault_away: bool,
    for_s: float | None,
    samples: tuple[str, ...],
    no_samples: bool,
    check: bool,
    as_json: bool,
    listen: str,
    metrics_listen: str,
    otlp_endpoint: str | None,
    tail_sampling: float | None,
    regions: tuple[str, ...],
    reach: dict[str, str],
    trust_domain: str,
) -> None:
    """Start a mesh on this machine and show it, until Ctrl-C or `meshwarden down`."""
    from meshwarden.controlplane.local import up as local
    from meshwarden.controlplane.local.plan import REGION, Options, default_state_dir

    chosen = () if no_samples else tuple(dict.fromkeys(samples))
    if check and "shop" not in chosen:
        raise click.UsageError("--check calls the samples of the shop: leave out --no-samples, or add --samples shop")
    if check and otlp_endpoint is not None:
        raise click.UsageError("--check has telemetry sent to itself: leave out --otlp-endpoint")
    if vault_form is not None and not vault:
        raise click.UsageError("--vault-form is of --vault: say that, too")
    if vault_away and not (vault and check):
        raise click.UsageError("--vault-away is of --vault and --check: say those, too")
    if tail_sampling is not None and otlp_endpoint is None:
        raise click.UsageError("--tail-sampling is of what goes to --otlp-endpoint: say that, too")
    if regions and (check or not listen.endswith(":0") or not metrics_listen.endswith(":0")):
        raise click.UsageError("--regions goes with neither --check nor a port: each region takes a free one")
    if strange := sorted(set(reach) - set(regions)):
        raise click.UsageError(f"--reach {strange[0]}=…: --regions names no such region")
    options = Options(
        state_dir=local.resolve(state_dir or default_state_dir(vault)),
        trust_domain=trust_domain,
        vault=vault,
        vault_form=vault_form or "upstream",
        vault_away=vault_away,
        samples=chosen,
        check=check,
        json=as_json,
        for_s=for_s,
        listen=listen,
        metrics_listen=metrics_listen,
        otlp_endpoint=otlp_endpoint,
        tail_ratio=tail_sampling,
        regions=regions or (REGION,),
        reach=reach,
    )
    if not local.up(options, local.default_voice(options), utc_now, random.SystemRandom()):
        sys.exit(1)
