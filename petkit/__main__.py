"""`python -m petkit` is the same as `petkit`."""

from petkit.cli.main import main

if __name__ == "__main__":
    main()
