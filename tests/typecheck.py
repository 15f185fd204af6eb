"""The type checker of the tests: beartype, with an integer allowed where a float is wanted, as PEP 484 has it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
