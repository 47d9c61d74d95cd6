"""`distrib check --gpu`: whether this machine keeps the promises that a training relies on."""
