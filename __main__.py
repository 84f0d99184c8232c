"""`python -m distcam` is `distcam`."""

from .cli import main

if __name__ == "__main__":
    main()
