"""The node agent: identities, configuration and telemetry for the programs of one machine."""
