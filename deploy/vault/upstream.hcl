# `form = "upstream"`: has its issuing certificate signed, once in a few days. It can't import roots, issue leaves, delete
# or revoke. `pki` is the mount: change it here and under [authority] alike.
path "pki/issuer/+/sign-intermediate" {
  capabilities = ["update"]
}

# Sees which issuers there are, and says by their names and their usage in which state each is.
path "pki/issuers" {
  capabilities = ["list"]
}
path "pki/issuer/+/json" {
  capabilities = ["read"]
}
path "pki/issuer/+" {
  capabilities = ["patch"]
}

# Makes the root that is activated the default.
path "pki/config/issuers" {
  capabilities = ["read", "update"]
}

# Prepares the next root. Left out, somebody else makes it in Vault and the control plane goes on from there.
path "pki/issuers/generate/root/internal" {
  capabilities = ["update"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
