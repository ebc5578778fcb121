"""``python -m chmm_pyro.cli`` is the command ``chmm``."""

from .app import main

if __name__ == "__main__":
    main()
