"""`python -m meshwarden.agents` is `meshwarden-agent`."""

from meshwarden.agents.cli import main

if __name__ == "__main__":
    main(prog_name="meshwarden-agent")
