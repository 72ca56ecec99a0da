"""Parses command lines exactly as the programs do, without running them: flags, config overrides, settings.

Reads a JSON list of [program, arguments] and prints a JSON list: "" or what is wrong with each. Each is parsed in a
fork of its own, because programs define their flags where they are imported, and two of them share names.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import warnings

from absl import flags

from rlhfv_jax import cli, settings
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import recipe

HEAVY = ("annotation.app", "conversion.job", "evals.benchmarks", "generation.local", "miniature.seeds")
for module in (*HEAVY, "planning.estimate", "reporting.document", "serving.server"):  # once for all forks
    importlib.import_module(f"rlhfv_jax.{module}")


def parse(program: str, arguments: list[str]) -> str:
    module = importlib.import_module(f"rlhfv_jax.{program}")
    sys.argv = [program, *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli._parse(sys.argv)
            if hasattr(module, "_CONFIG"):
                config = cli.get_config(module._CONFIG)
                recipe.build(config) if config.get("task") == "miniature" else settings.from_dict(config)
    except (UserError, flags.Error) as error:
        return str(error)
    except SystemExit:
        return said.getvalue()
    return ""


def forked(program: str, arguments: list[str]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        problem = "it failed in another way"
        try:
            problem = parse(program, arguments)
        finally:
            os.write(writing, problem.encode()[:4000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        problem = file.read()
    os.waitpid(child, 0)
    return problem


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # JAX warns of forks; its devices are not in use yet
    print(json.dumps([forked(program, arguments) for program, arguments in json.load(sys.stdin)]))
