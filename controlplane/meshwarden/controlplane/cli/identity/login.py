"""`meshwarden login`: a token of Vault for a certificate of an operator, which lasts an hour at most."""

from pathlib import Path

import click
from cryptography import x509

from meshwarden.certs import files
from meshwarden.certs.csr import make_csr
from meshwarden.certs.spiffe_id import InvalidSpiffeId, check_trust_domain
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.local import context as contexts
from meshwarden.controlplane.local import vault_token
from meshwarden.controlplane.local.client import connect_anonymous, read_certificate
from meshwarden.v1.operator_service_pb2 import LoginOperatorRequest, OperatorRole

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--vault", "by_vault", is_flag=True, required=True, help="By a token of Vault or OpenBao.")
@click.option(
    "--method",
    type=click.Choice(("token", "userpass", "approle")),
    default="token",
    show_default=True,
    help="How to come by it: a token that is there already ($VAULT_TOKEN, or ~/.vault-token, as `vault login` and "
    "`bao login` leave it, by OIDC too), or a login of ours.",
)
@click.option("--mount", default="", help="The path of the auth method; default: the method's name.")
@click.option("--username", default="", help="For userpass; the password is asked for, or read from --secret-file.")
@click.option("--role-id", default="", help="For approle; the secret ID is read from --secret-file.")
@click.option("--secret-file", type=_FILE, help="The password or the secret ID; for token, the token.")
@click.option("--vault-address", envvar="VAULT_ADDR", default="", help="Where Vault is, for a login. [env: VAULT_ADDR]")
@click.option("--vault-ca-file", envvar="VAULT_CACERT", type=_FILE, help="What proves it, in PEM. [env: VAULT_CACERT]")
@click.option("--vault-namespace", envvar="VAULT_NAMESPACE", default="", help="[env: VAULT_NAMESPACE]")
@click.option("--tenant", default="", help="Operate this tenant, instead of the mesh.")
@click.option("--address", default="", help="Where the control plane listens, HOST:PORT; default: the context's.")
@click.option("--ca-file", type=_FILE, help="The roots of the mesh, in PEM; default: the context's.")
@click.option("--trust-domain", default="", help="The mesh's; default: the context's.")
@click.option("--name", default="login", show_default=True, help="The context to write.")
@render.output_option
def login(
    by_vault: bool,
    method: str,
    mount: str,
    username: str,
    role_id: str,
    secret_file: Path | None,
    vault_address: str,
    vault_ca_file: Path | None,
    vault_namespace: str,
    tenant: str,
    address: str,
    ca_file: Path | None,
    trust_domain: str,
    name: str,
    output: str,
) -> None:
    """Operate the mesh by a login at Vault: a certificate of an hour at most, in a context of its own.

    The key is made here and goes nowhere. The control plane looks the token up at its own Vault and keeps it nowhere; a
    token that was made for this is revoked afterwards.
    """
    place = _place(address, ca_file, trust_domain)
    vault = vault_token.VaultPlace(vault_address, vault_ca_file, vault_namespace)
    if method == "userpass":
        if not username:
            raise Failure("--username: say who you are")
        password = vault_token.read(secret_file) if secret_file else click.prompt("Password", hide_input=True)
        obtained = vault_token.userpass(vault, mount or method, username, password)
    elif method == "approle":
        if not role_id or secret_file is None:
            raise Failure("--role-id, --secret-file: an AppRole has both")
        obtained = vault_token.approle(vault, mount or method, role_id, vault_token.read(secret_file))
    else:
        obtained = vault_token.present(secret_file)
    with obtained as token:
        key = new_key()
        request = LoginOperatorRequest(vault_token=token, csr=make_csr(key), tenant=tenant)
        with connect_anonymous(*place) as mesh:
            answer = mesh.operator.LoginOperator(request, timeout=client.TIMEOUT_S)
    svid = X509Svid.of(tuple(map(x509.load_der_x509_certificate, answer.chain)), key)
    directory = contexts.contexts_file().parent / "login" / name
    files.publish(directory, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": answer.roots})
    ca, certificate, key_file = (str(directory / file) for file in ("ca.crt", "tls.crt", "tls.key"))
    contexts.put(name, contexts.Context(place[0], ca, certificate, key_file))
    if output != "table":
        render.data({"spiffe_id": answer.spiffe_id, "context": name, "not_after": svid.not_after.isoformat()}, output)
        return
    role = OperatorRole.Name(answer.role).lower()
    click.echo(f"context {name}\t{answer.spiffe_id}\t{role}\tuntil {svid.not_after:%Y-%m-%d %H:%M:%S}Z")


def _place(address: str, ca_file: Path | None, trust_domain: str) -> tuple[str, Path, str]:
    """Where the control plane is, and by what it is known: as told, or else as a context says, whoever that is of."""
    if not (address and ca_file and trust_domain):
        _, context = contexts.get(click.get_current_context().find_root().obj)
        address, ca_file = address or context.address, ca_file or Path(context.ca_file)
        trust_domain = trust_domain or read_certificate(context)[1].trust_domain
    try:
        check_trust_domain(trust_domain)
    except InvalidSpiffeId as error:
        raise Failure(f"--trust-domain: {error}") from None
    return address, ca_file, trust_domain
