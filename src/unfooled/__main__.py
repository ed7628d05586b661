"""`python -m unfooled` is the command line."""

from unfooled.cli import main

if __name__ == "__main__":
    main()
