"""`python -m distrib.config …` prints the configuration that training would get of these options, as YAML."""

import sys

from distrib.config import load_config

if __name__ == "__main__":
    sys.stdout.write(load_config(sys.argv[1:])[0].to_yaml())
