"""What the control plane tells Prometheus.

vitals      how the mesh itself does: nodes, revisions, refusals, certificates, store and disk
edges, progress, quotas, rollouts    the parts of it that have a matter of their own
scrape      the pages: /metrics, /sd and /crl
"""
