"""A member of the council: `mind` thinks (pure), `service` is its edge, `listener` hears what was decided."""
