"""What a control plane is told: each section of its file in a module of its own, the whole in `config`."""
