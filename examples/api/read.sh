#!/usr/bin/env bash
# What a mesh does, by curl.
set -euo pipefail
. "$(dirname "$0")/mesh.sh"

mesh "$REST/v1/status"                                              # nodes, workloads, tenants, what is wrong
mesh "$REST/v1/graph?window=300s"                                   # who calls whom, rates, errors, latencies
mesh "$REST/v1/calls?tenant=acme&limit=10"                          # the ledger
mesh "$REST/v1/traces?failed=true&pageSize=5"                       # recent traces
mesh "$REST/v1/quotas"                                              # limits, and how they are divided
mesh "$REST/v1/nodes"                                               # nodes and their bans
mesh "$REST/v1/dataPlanes"                                          # which revision each data plane has
mesh "$REST/v1/roots"                                               # the roots, and what becomes of them
mesh "$REST/v1/certificates?pageSize=5"                             # certificates: whose, where, until when
mesh "$REST/v1/denied"                                              # revoked identities
mesh "$REST/v1/revisions?pageSize=5"                                # what was changed, by whom and why
mesh "$REST/v1/progress"                                            # how far the newest change has come
mesh "$REST/v1/events?event=resource.&pageSize=5"                   # the audit log
mesh "$REST/v1/operators"                                           # who operates
mesh "$REST/v1/resources/SLO"                                       # objectives
mesh --json '{"from": "acme/web", "to": "platform/orders", "method": "/shop.v1.Orders/Get"}' \
  "$REST/v1/calls:explain"                                          # why a call is let through or not
