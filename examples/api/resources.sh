#!/usr/bin/env bash
# A resource from its making to its end, by curl.
set -euo pipefail
. "$(dirname "$0")/mesh.sh"
SERVICE=$REST/v1/resources/Service/acme/reports

# Made, if there is none of that name yet.
mesh -X PUT --json '{"kind": "Service", "metadata": {"tenant": "acme", "name": "reports"}, "spec": {"protocol": "GRPC"}}' \
  -H 'If-None-Match: *' "$SERVICE?reason=for%20the%20quarter"
echo

# Read with its ETag, and changed if nobody else has changed it meanwhile.
mesh -D headers "$SERVICE"
echo
etag=$(sed -n 's/^etag: \(.*\)\r$/\1/p' headers)
mesh -X PUT --json '{"kind": "Service", "metadata": {"tenant": "acme", "name": "reports"},
  "spec": {"protocol": "GRPC", "exportTo": ["platform"]}}' -H "If-Match: $etag" "$SERVICE"
echo

# The ETag of before is of no use now.
mesh -X DELETE -H "If-Match: $etag" "$SERVICE" || echo
mesh -X DELETE "$SERVICE?reason=the%20quarter%20is%20over"
rm headers
