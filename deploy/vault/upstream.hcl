# `form = "upstream"`: has its issuing certificate signed, once in a few days. It can't read or make roots, issue leaves
# or revoke. `pki` is the mount: change it here and under [authority] alike.
path "pki/root/sign-intermediate" {
  capabilities = ["update"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
