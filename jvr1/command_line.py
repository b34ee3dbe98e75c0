"""A command's options, read by argparse."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from jvr1.errors import UserError


class Parser(argparse.ArgumentParser):
    """Its mistakes are one line, as all others are, and its help keeps the description's lines."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists what there is")
