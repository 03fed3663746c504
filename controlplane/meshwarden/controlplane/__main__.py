"""`python -m meshwarden.controlplane …` is `meshwarden …`."""

from meshwarden.controlplane.cli.main import main

if __name__ == "__main__":
    main()
