"""The council: `tally` decides (pure), `session` holds a round, `member` calls one agent, `service` is the edge."""
