"""What all programs share: finding a config file by bare name, and turning every failure into one sentence.

Exit status: 0 on success, 1 for what a `UserError` explains, 2 for a command line that cannot be read, 75 and
143 after SIGTERM in a training loop (`preemption`).
"""

import difflib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, NoReturn

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from rlhfv_jax import __version__
from rlhfv_jax.errors import SAVED, Preempted, UserError

flags.DEFINE_bool("version", False, "Print the version and exit.")


def config_folder() -> Path:
    """The shipped configs: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def define_config() -> flags.FlagHolder:
    """The flag --config=FILE[:PRESET] with overrides --config.key=value."""
    return config_flags.DEFINE_config_file(
        "config", help_string="A config file, by path or by the bare name of a shipped one, with an optional :preset."
    )


def get_config(holder: flags.FlagHolder) -> dict[str, Any]:
    """The loaded configuration with its overrides as plain nested values. Raises UserError without a --config."""
    if holder.value is None:
        raise UserError(f"No --config was given. {_example()} Shipped configs: {', '.join(_shipped())}.")
    return holder.value.to_dict()


def _example() -> str:
    return "Try --config=ddpo.py (the paper) or --config=ddpo.py:mini (a small model)."


def _shipped() -> list[str]:
    return sorted(path.name for path in config_folder().glob("*.py"))


def run(
    main: Callable[[], None],
    usage: str,
    options: Sequence[flags.FlagHolder],
    interrupted: str = "",
    files: list[str] | None = None,
) -> None:
    """Runs a program: parses sys.argv, calls `main()`, exits. --help shows `usage` and the program's own `options`.

    `interrupted`: what a person who pressed Ctrl-C should know, a sentence. `files` takes the arguments that are no
    options, before `main()` is called; without it there may be none.
    """
    if any(argument in ("-h", "--help", "-help") for argument in sys.argv[1:]):
        print(_help(usage, options))
        return
    app.run(lambda _: _guarded(main, interrupted), flags_parser=lambda argv: _parse(argv, files))


def _help(usage: str, options: Sequence[flags.FlagHolder]) -> str:
    lines = [usage.strip(), "", "flags:"]
    for option in options:
        flag = flags.FLAGS[option.name]
        default = "" if flag.default is None else f" (default: {flag.default})"
        lines += [f"  --{flag.name}: {flag.help}{default}"]
    return "\n".join([*lines, f"\nshipped configs: {', '.join(_shipped())}"])


def _guarded(main: Callable[[], None], interrupted: str) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax and grain warn about their own defaults
    if flags.FLAGS.version:
        print(__version__)
        return
    try:
        main()
    except UserError as error:
        _fail(str(error), 1)
    except Preempted as notice:
        print(notice, file=sys.stderr)
        sys.exit(SAVED)
    except KeyboardInterrupt:
        _fail(f"Interrupted. {interrupted}".rstrip(), 130)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}.", 1)


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    # Of many reads of a damaged checkpoint the first that fails is told; asyncio would list the others as they end.
    getLogger("asyncio").disabled = True
    sys.unraisablehook = lambda _: None
    sys.exit(status)


def _parse(argv: Sequence[str], files: list[str] | None) -> list[str]:
    # config_flags reads overrides from sys.argv itself, so the resolved name has to stand there too.
    sys.argv = [argv[0], *resolve(argv[1:])]
    _check_overrides(sys.argv[1:])
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        _fail(_explain(str(error)), 2)
    except (OSError, AttributeError, KeyError, ValueError, TypeError) as error:
        _fail(str(error).splitlines()[0], 2)
    if files is not None:
        files += rest[1:]
    elif len(rest) > 1:
        _fail(f"Unexpected argument {rest[1]!r}; options are written as --name=value.", 2)
    return rest


def resolve(arguments: Sequence[str]) -> list[str]:
    """Replaces a bare config name by the shipped file's path, the preset kept; exits on a miss.

    >>> resolve(["--config=ddpo.py:mini"])
    ['--config=/.../configs/ddpo.py:mini']
    """
    resolved: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else next(rest, "")
            argument = f"--config={_find_config(value)}"
        resolved.append(argument)
    return resolved


def _find_config(value: str) -> str:
    name, colon, preset = value.partition(":")
    if not Path(name).is_file():
        shipped = config_folder() / name
        if not shipped.is_file():
            near = difflib.get_close_matches(name, _shipped(), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            _fail(f"There is no config file {name!r}, neither here nor among {', '.join(_shipped())}.{hint}", 2)
        name = str(shipped)
    return f"{name}{colon}{preset}"


def _explain(message: str) -> str:
    """absl's own message, with a way out where an override came without a config."""
    if "Unknown command line flag 'config." in message:
        return f"An override needs a --config to override. {_example()}"
    return message.splitlines()[0]


def _check_overrides(arguments: Sequence[str]) -> None:
    """Exits naming the first override whose key the config does not have, and the nearest key that it does have."""
    chosen = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    if not chosen:
        return
    known = _keys(_load(chosen[-1]))
    for argument in arguments:
        key, _, _ = argument.lstrip("-").partition("=")
        if key.startswith("config.") and key[len("config.") :] not in known:
            near = difflib.get_close_matches(key[len("config.") :], known, n=1, cutoff=0.5)
            _fail(f"{key} is not a known setting.{f' Did you mean config.{near[0]}?' if near else ''}", 2)


def _load(value: str) -> ml_collections.ConfigDict:
    """The config without its overrides; exits with the config file's own words where it refuses its preset."""
    name, colon, preset = value.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", name)
    if spec is None or spec.loader is None:
        _fail(f"The config file {name} is not a Python file.", 2)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(preset) if colon else module.get_config()
    except Exception as error:  # whatever a config file may raise, the user wrote or named that file
        _fail(f"The config file {name} fails: {error}", 2)


def _keys(config: Any, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if hasattr(value, "items"):
            names += _keys(value, f"{prefix}{name}.")
    return names
