# A passphrase that a transit key has encrypted, transit:transit/meshwarden#/etc/meshwarden/ca-passphrase.wrapped: has it
# decrypted. It can't encrypt another, read or change the key, or use another key. `transit` and `meshwarden` are mount and
# key: change them here and in the reference alike.
path "transit/decrypt/meshwarden" {
  capabilities = ["update"]
}

# Keeps its own token alive.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
