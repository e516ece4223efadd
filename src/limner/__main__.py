"""`python -m limner` is the command `limner`."""

from limner.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
