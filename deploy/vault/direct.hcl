# `form = "direct"`: has each leaf signed under one role, which bounds what may be in it. It can't change the role, use
# another, sign an authority or import one. `pki` and `meshwarden` are mount and role: change them here and under
# [authority] alike.
path "pki/issuer/+/sign/meshwarden" {
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
