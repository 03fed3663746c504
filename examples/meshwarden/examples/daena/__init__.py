"""Daena: a council of agents that belong to three tenants, with their message bus, model and memory.

    python -m meshwarden.examples.daena bus        topics; at least once, acknowledged, bounded
    python -m meshwarden.examples.daena model      a local text model that stands for a provider
    python -m meshwarden.examples.daena memory     NBMF: encoded records in a hot, a warm and a cold tier
    python -m meshwarden.examples.daena agent      one member of the council
    python -m meshwarden.examples.daena council    rounds: scout, debate, commit
    python -m meshwarden.examples.daena convene    asks the council, again and again

Each is started by `meshwarden-agent exec --entry NAME --`; docs/daena.md shows them at work.
"""
