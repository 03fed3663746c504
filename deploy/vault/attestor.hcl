# `[[attestor]]` of kind vault, and `[operator_login]`: looks up the tokens that nodes and operators show, and whose they are. It can't make tokens, renew or
# revoke those of others, or change an entity.
path "auth/token/lookup" {
  capabilities = ["update"]
}
path "identity/entity/id/*" {
  capabilities = ["read"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
