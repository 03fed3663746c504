"""Commands that show calls: who calls whom, within which limits, at what cost."""
