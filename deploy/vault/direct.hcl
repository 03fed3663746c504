# `form = "direct"`: has each leaf signed under one role, which bounds what may be in it. It can't change the role, use
# another, or sign an authority. `pki` and `meshwarden` are mount and role: change them here and under [authority] alike.
path "pki/sign/meshwarden" {
  capabilities = ["update"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
