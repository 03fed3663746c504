# What a control plane's token may do in Vault or OpenBao, and nothing else.
# `pki` and `kv` are the mounts: change them here and under [authority] and in `vault:` references alike.

# Has its issuing certificate signed, once in a few days. It can't read or make roots, issue leaves or revoke.
path "pki/root/sign-intermediate" {
  capabilities = ["update"]
}

# Reads the secrets that its configuration refers to: vault:kv/meshwarden#otlp_authorization.
path "kv/data/meshwarden" {
  capabilities = ["read"]
}
path "kv/data/meshwarden/*" {
  capabilities = ["read"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
