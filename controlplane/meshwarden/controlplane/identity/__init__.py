"""Who may join, who gets which certificate, and who may call what."""
