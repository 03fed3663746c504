# What the examples beside this need to know of a mesh that `meshwarden up` has started: `. examples/api/mesh.sh`
#
# UP_JSON is where it runs, up.json in its state directory; by default the first argument.
UP_JSON=${UP_JSON:-${1:?say where up.json is}}
eval "$(python3 - "$UP_JSON" <<'PYTHON'
import json, shlex, sys, urllib.parse

up = json.load(open(sys.argv[1]))
said = {
    "REST": f"https://{up['rest']['server_name']}",
    "AT": urllib.parse.urlsplit(up["rest"]["url"]).netloc,
    "GRPC": f"https://{up['control_plane']['address']}",
    "SERVER_NAME": up["rest"]["server_name"],
    "CA": up["control_plane"]["ca_file"],
    "CERT": up["admin"]["cert_file"],
    "KEY": up["admin"]["key_file"],
}
for name, value in said.items():
    print(f"export {name}={shlex.quote(value)}")
PYTHON
)"

# curl as the operator. The control plane is known by its name, wherever it listens.
mesh() {
  curl --silent --show-error --fail-with-body --max-time 60 --cacert "$CA" --cert "$CERT" --key "$KEY" \
    --connect-to "$SERVER_NAME:443:$AT" "$@"
}
