"""`python -m relay`: the same command as `relay`."""

from relay.cli import main

if __name__ == "__main__":
    main()
