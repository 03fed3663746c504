"""Has an identity and makes the calls of `web`, but no policy allows it to."""

from meshwarden.examples import steady

if __name__ == "__main__":
    steady.main("intruder", rate=1.0, about=__doc__)
