"""Where compiled programs are kept from one run to the next."""

from pathlib import Path

import jax

AUTO = "auto"


def keep_programs(setting: str, workdir: Path) -> None:
    """Turns JAX's compilation cache on: in `compiled/` beside the run's directory, or in the directory `setting`.

    "" leaves it off. With "auto", a directory that JAX was given otherwise (JAX_COMPILATION_CACHE_DIR) stays as it is.
    """
    if setting == AUTO:
        if jax.config.values["jax_compilation_cache_dir"]:
            return
        setting = str(workdir.absolute().parent / "compiled")
    jax.config.update("jax_compilation_cache_dir", setting or None)
    # By itself JAX keeps what took a second to compile: of a small model's programs too few to start faster with.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
