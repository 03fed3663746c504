"""The resource model: names, manifests, rules, references."""
