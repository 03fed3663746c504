#!/usr/bin/env bash
# The same by gRPC: the server tells its schema, so that `buf curl` (PyPI: buf-bin) needs no files.
set -euo pipefail
. "$(dirname "$0")/mesh.sh"

call() {
  buf curl --protocol grpc --cacert "$CA" --cert "$CERT" --key "$KEY" --servername "$SERVER_NAME" --data "$2" \
    "$GRPC/meshwarden.v1.$1"
}

call AdminService/GetStatus '{"tenant": "acme"}'
call ResourceService/Get '{"ref": {"kind": "Service", "tenant": "platform", "name": "orders"}}'
call RevisionService/ListRevisions '{"pageSize": 2}'
