"""Parses command lines exactly as the programs do, without running them: flags, config overrides, settings.

Reads a JSON list of [program, arguments] and prints a JSON list: "" or what is wrong with each. It is a process of its
own, because programs define their flags where they are imported, and two of them share names. Every module of the
package is imported on the way.
"""

import contextlib
import importlib
import io
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

from absl import flags

from rlhfv_jax import cli, settings
from rlhfv_jax.__main__ import PROGRAMS
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import recipe

SHARED = set(flags.FLAGS)
TAKE_FILES = ("rlhfv_jax.compare",)  # besides options
ROOT = Path(cli.__file__).parents[1]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "rlhfv_jax").rglob("*.py")]
for name in sorted(MODULES):
    if not name.endswith("__main__") and name.removeprefix("rlhfv_jax.") not in PROGRAMS:
        importlib.import_module(name.removesuffix(".__init__"))  # a warning is an error here, under `python -W error`


def load(program: str) -> tuple[ModuleType, dict[str, flags.Flag]]:
    """The program's module and its flags, taken out of the common ones, so that the next may have such too."""
    module = importlib.import_module(f"rlhfv_jax.{program}")
    own = {name: flags.FLAGS[name] for name in flags.FLAGS if name not in SHARED}
    clear()
    return module, own


def clear() -> None:
    for name in set(flags.FLAGS) - SHARED:
        delattr(flags.FLAGS, name)


def parse(module: ModuleType, own: dict[str, flags.Flag], arguments: list[str]) -> str:
    for name, flag in own.items():
        flag.unparse()
        flags.FLAGS[name] = flag
    sys.argv = ["program", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli._parse(sys.argv, [] if module.__name__ in TAKE_FILES else None)
            if hasattr(module, "_CONFIG"):
                config = cli.get_config(module._CONFIG)
                recipe.build(config) if config.get("task") == "miniature" else settings.from_dict(config)
    except (UserError, flags.Error) as error:
        return str(error)
    except SystemExit:
        return said.getvalue()
    finally:
        clear()
    return ""


if __name__ == "__main__":
    loaded = {program: load(program) for program in PROGRAMS}
    warnings.simplefilter("ignore")  # ml_collections loads config files in a way that Python has deprecated
    print(json.dumps([parse(*loaded[program], arguments) for program, arguments in json.load(sys.stdin)]))
