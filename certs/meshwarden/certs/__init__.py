"""SPIFFE and X.509: who is who, proved by certificates.

Everything outside `authority/` is pure: `now` and the random source are passed in. Two modules touch the world for
those above: `clock` holds the one real clock, for composition roots, and `files` publishes what was issued.

    CertsError
    ├── InvalidSpiffeId      spiffe_id: not a SPIFFE ID
    ├── InvalidBundle        bundle: not a set of roots
    ├── InvalidSvid          svid: chain and key don't belong together, or are no SVID
    ├── InvalidCsr           csr: not a signing request that we take
    ├── PeerRefused          verify: a peer's certificates don't prove what they claim
    ├── IssueRefused         issue: what would be signed isn't sound
    └── AuthorityError       authority: the signing key can't be had
        ├── AuthorityLocked      the passphrase is wrong
        ├── AuthorityMissing     there is no root, and none may be made
        └── AuthorityUnavailable the upstream is away and nothing of it is left to sign with
"""
