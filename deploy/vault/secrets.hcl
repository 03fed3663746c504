# Reads the secrets that `vault:` references lead to: its configuration's, vault:kv/meshwarden#otlp_authorization, and
# those of workloads, vault:kv/meshwarden/<tenant>/… It can't list, write or delete any. `kv` is the mount.
path "kv/data/meshwarden" {
  capabilities = ["read"]
}
path "kv/data/meshwarden/*" {
  capabilities = ["read"]
}

# Sees whether a secret has a newer version.
path "kv/metadata/meshwarden" {
  capabilities = ["read"]
}
path "kv/metadata/meshwarden/*" {
  capabilities = ["read"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
