"""A manifest of each kind, for what is made of the schema to be read; a test applies them all as one batch."""

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, str]] = {
    "Tenant": "kind: Tenant\nmetadata: {name: platform}\nspec: {displayName: Platform team}\n",
    "Service": """\
kind: Service
metadata:
  tenant: platform
  name: orders
spec:
  protocol: GRPC
  exportTo: ["*"]
  healthCheck: {interval: 2s, unhealthyThreshold: 3}
""",
    "ExternalService": """\
kind: ExternalService
metadata:
  tenant: platform
  name: model
spec:
  protocol: HTTPS
  hosts: [{address: api.model.example, port: 443}]
  exportTo: ["*"]
""",
    "WorkloadEntry": """\
kind: WorkloadEntry
metadata:
  tenant: platform
  name: orders-v1
spec:
  service: orders
  nodes: [node-1]
  selectors: {uid: 1001, path: /usr/bin/python3.11}
  version: v1
  port: 7001
  svidTtl: 3600s
""",
    "Endpoint": """\
# A program outside of the mesh's nodes; endpoints on nodes come and go by themselves.
kind: Endpoint
metadata:
  tenant: platform
  name: orders-outside
spec:
  service: orders
  address: 192.0.2.7
  port: 7001
  locality: {region: eu, zone: eu-1}
""",
    "AccessPolicy": """\
kind: AccessPolicy
metadata:
  tenant: platform
  name: orders
spec:
  service: orders
  allow:
    - from:
        - service: "*"
      methods: ["/shop.v1.Orders/Get", "/shop.v1.Orders/List*"]
""",
    "RoutePolicy": """\
kind: RoutePolicy
metadata:
  tenant: platform
  name: orders
spec:
  service: orders
  idempotent: [/shop.v1.Orders/Get, "/shop.v1.Orders/List*"]
  rules:
    - match:
        headers: [{name: x-stage, exact: canary}]
      split: [{version: v1, weight: 1}]
      timeout: 2s
    - split: [{version: v1, weight: 100}]
      timeout: 1s
      retry: {codes: [UNAVAILABLE], attempts: 2, budget: {percent: 20}}
  loadBalancing: {leastRequest: {}}
  outlierDetection: {consecutive5xx: 5}
""",
    "RatePolicy": """\
kind: RatePolicy
metadata:
  tenant: platform
  name: orders
spec:
  service: orders
  total: {requests: 150}
  limits:
    - tenant: platform
      requests: 100
      floor: 20
      weight: 3
      methods:
        - {method: /shop.v1.Orders/Create, requests: 10, burst: 20}
    - {tenant: "*", requests: 10}
""",
    "Drain": """\
kind: Drain
metadata:
  tenant: platform
  name: maintenance-of-n1
spec:
  node: n1
""",
    "Ingress": """\
# What it is and what runs it. Who calls by it is of tenant platform: another tenant would lend it an identity.
kind: Service
metadata: {tenant: platform, name: edge}
spec: {protocol: HTTP}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: edge}
spec:
  service: edge
  nodes: [node-1]
  selectors: {uid: 1002}
  dataPlane: INGRESS
---
kind: Ingress
metadata:
  tenant: platform
  name: edge
spec:
  service: edge
  listen: 0.0.0.0:8443
  tls:
    files: {certificate: /etc/edge/tls.crt, key: /etc/edge/tls.key}
  jwt:
    - issuer: https://id.example.com
      audiences: [shop]
      jwksUri: {uri: https://id.example.com/.well-known/jwks.json}
      claim: org
      callers: [{value: staff, tenant: platform}]
  routes:
    - {hosts: [shop.example.com], pathPrefix: /shop.v1.Orders, service: orders}
""",
    "Rollout": """\
kind: Rollout
metadata:
  tenant: platform
  name: orders-create
spec:
  accessPolicies:
    - kind: AccessPolicy
      metadata: {tenant: platform, name: orders-create}
      spec: {service: orders, allow: [{from: [{service: orders}], methods: [/shop.v1.Orders/Create]}]}
  stages:
    - {percent: 10, hold: 300s}
    - {zone: a, hold: 300s}
    - {all: true, hold: 600s}
  judge: {minCalls: 500, onNoTraffic: HOLD}
""",
    "TrustDomain": """\
kind: TrustDomain
metadata:
  tenant: platform
  name: partner
spec:
  trustDomain: partner.example
  bundleEndpoint:
    url: https://spiffe.partner.example:8443/bundle.json
    profile: HTTPS_WEB
""",
    "SLO": """\
kind: SLO
metadata:
  tenant: platform
  name: orders-availability
spec:
  service: orders
  availability: {}
  objective: 99.9
""",
}
"""{kind: manifest}; a resource of the kind comes last, after what it needs that no other example has."""
