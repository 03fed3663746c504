"""Commands that find what is wrong: `doctor`, and `proxy` for one data plane."""
