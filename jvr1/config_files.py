"""Where the config is that --config names: a file, or by its name one of those that come with jvr1."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from jvr1.errors import UserError

_HERE = Path(__file__).parent
CONFIG_FOLDERS = (_HERE / "configs", _HERE.parent / "configs")
"""In an installed package, and in a checkout."""


def own_configs() -> dict[str, Path]:
    """Configs that come with jvr1: name -> file."""
    folder = next((folder for folder in CONFIG_FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.py"))}


def split_config(text: str) -> tuple[str, str]:
    """FILE and :ARG of FILE[:ARG], or NAME and :ARG; the second empty where there is none."""
    if ".py:" in text:
        file, _, argument = text.partition(".py:")
        return f"{file}.py", f":{argument}"
    if text.endswith(".py"):
        return text, ""
    name, colon, argument = text.partition(":")
    return name, colon + argument


def config_place(text: str) -> str:
    """FILE[:ARG] of what --config gives. A name of jvr1's own is that, whatever lies in the working directory: a
    workdir may be called like its config. Raises UserError where there is no such file or name."""
    place, argument = split_config(text)
    file, own = Path(place), own_configs()
    if place in own:
        return f"{own[place]}{argument}"
    if file.is_dir():
        raise UserError(f"config file {file} is a folder; name a file in it")
    if file.exists() and file.suffix != ".py":
        raise UserError(
            f"config file {file} is no Python file; name one with a get_config(), or one of {', '.join(own)}"
        )
    if file.exists():
        return text
    if file.suffix == ".py" or len(file.parts) > 1:
        told = f"; jvr1's own is named without folder: --config {file.stem}{argument}" if file.stem in own else ""
        raise UserError(f"config file {file} does not exist{told}")
    near = get_close_matches(place, own, 3, 0.5)
    told = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(own)}, and files of your own"
    raise UserError(f"there is no config {place!r}; {told}")
