"""Serves the annotation application: people correct answers, or label their hallucinations, in a browser.

    python -m rlhfv_jax.annotate --project=work --import=answers.jsonl --questions=questions.jsonl
    python -m rlhfv_jax.annotate --project=work --add_person=Ada
    python -m rlhfv_jax.annotate --project=work --tokenizer=tokenizer.model
    python -m rlhfv_jax.annotate --project=work --stats
    python -m rlhfv_jax.annotate --project=work --agreement
    python -m rlhfv_jax.annotate --project=work --export=pairs.parquet
    python -m rlhfv_jax.annotate --project=work --export=tasks.json --export_format=label_studio
    python -m rlhfv_jax.annotate --project=other --import=project.zip
    python -m rlhfv_jax.annotate --project=work --name=eval --kind=mhumaneval --import=answers.jsonl \\
        --questions=questions.jsonl
    python -m rlhfv_jax.annotate --project=work --name=eval --export=mhumaneval/
    python -m rlhfv_jax.annotate --project=work --compare=base.jsonl,ddpo.jsonl --questions=questions.jsonl --blind
    python -m rlhfv_jax.annotate --project=work --export_votes=votes.jsonl

--project is a directory on a local disk; it is made where it does not exist. The first start prints a link with the
administrator's token. Everybody else needs a token too: --add_person prints one.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from rlhfv_jax import cli, listening
from rlhfv_jax.annotation import (
    agreement_report,
    assignment,
    ballots,
    collected,
    exports,
    imports,
    people,
    project,
    schema,
    statistics,
)
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import Store, opened
from rlhfv_jax.comparing import sets
from rlhfv_jax.errors import UserError

_PROJECT = flags.DEFINE_string("project", "", "The directory of the store, its images and exports.")
_NAME = flags.DEFINE_string("name", "", "Which project of the directory; default: its only one, else --kind's name.")
_KIND = flags.DEFINE_enum("kind", "correction", list(project.KINDS), "What a new project is for.")
_SETTINGS = flags.DEFINE_string("settings", "", "A JSON file of a new project's types, keys, guideline and title.")
_IMPORT = flags.DEFINE_string("import", "", "Add items: .jsonl, .csv, .parquet, .tsv, .json, .zip, or a folder.")
_IMPORT_FORMAT = flags.DEFINE_enum("import_format", "auto", imports.FORMS, "What tool a .json file is from.")
_QUESTIONS = flags.DEFINE_string("questions", "", "With --import of generate's answers, or --compare: the questions.")
_IMAGES = flags.DEFINE_string("images", "", "The folder that image paths start from; default: the file's own.")
_PREFILL = flags.DEFINE_bool("prefill", False, "With --import of pairs: start from the chosen answer.")
_ANNOTATORS = flags.DEFINE_integer("annotators", 1, "With --import: how many people do each item.", 1, 20)
_OVERLAP = flags.DEFINE_float("overlap", None, "With --import: the share of items for two people.", 0.0, 1.0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "With --import: check everything, write nothing.")
_KEEP_GOING = flags.DEFINE_bool("keep_going", False, "With --import: take the good rows of a file with bad ones.")
_EXPORT = flags.DEFINE_string("export", "", "Write pairs.parquet or .jsonl, a .csv, the project as .zip, or a folder.")
_EXPORT_FORMAT = flags.DEFINE_enum(
    "export_format",
    "auto",
    ["auto", "label_studio", "argilla", "tfds"],
    "What a .json file is for; tfds: a folder. Else the name tells.",
)
_GOLD = flags.DEFINE_bool("with_gold", False, "With --export: gold items too, with their gold annotation.")
_AGREEMENT = flags.DEFINE_bool("agreement", False, "Print how far people agree who did the same items.")
_AGREEMENT_TABLE = flags.DEFINE_string("agreement_table", "", "Write what agreement is computed from as .csv.")
_STATS = flags.DEFINE_bool("stats", False, "Print the statistics.")
_ADD = flags.DEFINE_string("add_person", "", "Add somebody of this name and print the token.")
_ROLE = flags.DEFINE_enum("role", "annotator", list(people.ROLES), "With --add_person.")
_TOKEN = flags.DEFINE_string("new_token", "", "Give the person of this name a new token and print it.")
_BACKUP = flags.DEFINE_string("backup", "", "Write a copy of the store to this file, also while it is served.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.")
_HOSTS = flags.DEFINE_list("hosts", [], "Further host names to answer to, as behind a proxy.")
_PORT = flags.DEFINE_integer("port", 8300, "The port to listen on; 0 for any free one.", 0, 65535)
_CERTIFICATE = flags.DEFINE_string("certificate", "", "A TLS certificate (PEM), with --key.")
_KEY = flags.DEFINE_string("key", "", "Its private key.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "A sentencepiece .model, to show the weights of training.")
_TEMPLATE = flags.DEFINE_string("template", "muffin", "The chat template of training.")
_IMPORT_MB = flags.DEFINE_integer("import_mb", 512, "The largest upload of an import.", 1)
_COMPARE = flags.DEFINE_list("compare", [], "Serve a comparison of these answer files too: A.jsonl,B.jsonl.")
_NAMES = flags.DEFINE_list("names", [], "With --compare: the models' names, in the order of the files.")
_SPANS = flags.DEFINE_list("spans", [], "With --compare: what people marked, spans.jsonl or NAME.segments.jsonl.")
_BLIND = flags.DEFINE_bool("blind", False, "With --compare: take votes, and tell nobody a model's name before theirs.")
_VOTES = flags.DEFINE_string("export_votes", "", "Write the blind votes as .jsonl, for `rlhfv compare --votes`.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print.")
_OPTIONS = (
    *(_PROJECT, _NAME, _KIND, _SETTINGS, _IMPORT, _IMPORT_FORMAT, _QUESTIONS, _IMAGES, _PREFILL, _ANNOTATORS, _DRY_RUN),
    *(_KEEP_GOING, _EXPORT, _EXPORT_FORMAT, _STATS, _ADD, _ROLE, _TOKEN, _BACKUP, _HOST, _HOSTS, _PORT, _CERTIFICATE),
    *(_KEY, _TOKENIZER, _TEMPLATE, _IMPORT_MB, _OVERLAP, _GOLD, _AGREEMENT, _AGREEMENT_TABLE, _COMPARE, _NAMES, _SPANS),
    *(_BLIND, _VOTES, _FORMAT),
)
SHOWN = 20  # bad rows of an import on a terminal


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", _OPTIONS)


def _main() -> None:
    if not _PROJECT.value:
        raise UserError("No --project was given: the directory that holds the annotations, or will hold them.")
    agreeing = (_AGREEMENT, _AGREEMENT_TABLE)
    tasks = [flag for flag in (_IMPORT, _EXPORT, _STATS, *agreeing, _ADD, _TOKEN, _BACKUP, _VOTES) if flag.value]
    makes = not tasks or bool(_IMPORT.value or _ADD.value)  # the others need a directory that holds something
    with opened(_PROJECT.value, create=makes) as store:
        for flag, task in (
            (_IMPORT, _import),
            (_ADD, _add_person),
            (_TOKEN, _new_token),
            (_STATS, _print_statistics),
            (_AGREEMENT, _print_agreement),
            (_AGREEMENT_TABLE, _write_agreement),
            (_EXPORT, _export),
            (_BACKUP, _back_up),
            (_VOTES, _export_votes),
        ):
            if flag.value:
                task(store)
        if not tasks:
            _serve(store)


def _project(store: Store, create: bool = False, archived: tuple[str, Project] | None = None) -> tuple[int, Project]:
    """The named project, an archive's, or the only one; made where it is missing and may be."""
    every = assignment.all_projects(store.read)
    name = _NAME.value or (archived[0] if archived else every[0][1] if len(every) == 1 else _KIND.value)
    for identity, known, settings in every:
        if known == name:
            if flags.FLAGS["kind"].present and settings.kind != _KIND.value:
                raise UserError(f"The project {name!r} is of kind {settings.kind}; give the new one another --name.")
            if archived and (archived[1].kind, archived[1].type_keys) != (settings.kind, settings.type_keys):
                raise UserError(f"The project {name!r} has another kind or types; give a new one another --name.")
            return identity, settings
    if not create:
        names = ", ".join(known for _, known, _ in every) or "none yet"
        raise UserError(f"There is no project {name!r} in {store.folder}; found: {names}. Choose one with --name.")
    settings = archived[1] if archived else _new_settings()
    return store.write(lambda c: assignment.add_project(c, name, settings)), settings


def _new_settings() -> Project:
    settings = project.new(_KIND.value)
    if not _SETTINGS.value:
        return settings
    try:
        given = json.loads(Path(_SETTINGS.value).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{_SETTINGS.value} is not valid JSON ({error}).") from error
    if not isinstance(given, dict):
        raise UserError(f"{_SETTINGS.value}: expected a JSON object.")
    return project.from_dict(project.to_dict(settings) | given, _SETTINGS.value)


def _import(store: Store) -> None:
    path = Path(_IMPORT.value or "")
    identity, _ = _project(store, create=True, archived=imports.archived(path))
    options = imports.Options(
        questions=_QUESTIONS.value,
        images=_IMAGES.value,
        prefill=_PREFILL.value,
        n_annotators=_ANNOTATORS.value,
        keep_going=_KEEP_GOING.value,
        dry_run=_DRY_RUN.value,
        form=_IMPORT_FORMAT.value,
        overlap=_OVERLAP.value,
    )
    report = imports.run(store, identity, path, options)
    if _FORMAT.value == "json":
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
    else:
        would = "would be " if report.dry_run else ""
        print(f"{report.rows} rows read: {report.added} {would}added, {report.duplicates} known before.")
        if report.annotations:
            print(f"{report.annotations} finished annotations came along.")
        if report.normalized:
            print(f"{report.normalized} texts were brought to Unicode NFC and plain line ends.")
        for error in report.errors[:SHOWN]:
            print(f"  {error['detail']}", file=sys.stderr)
    if report.errors and not _KEEP_GOING.value:
        raise UserError(
            f"{len(report.errors)} rows are not usable, so nothing was added. Mend them, or take the others with "
            "--keep_going."
        )


def _export(store: Store) -> None:
    identity, settings = _project(store)
    path = Path(_EXPORT.value)
    kind = _EXPORT_FORMAT.value
    if kind == "auto":
        if path.suffix == ".json":
            raise UserError(f"What is {path} for? Say --export_format=label_studio or --export_format=argilla.")
        names = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv", ".zip": "archive"}
        kind = names.get(path.suffix, "spans")
    _print(exports.export(store, identity, settings, kind, path, gold=_GOLD.value))


def _print(values: dict[str, Any]) -> None:
    if _FORMAT.value == "json":
        print(json.dumps(values))
        return
    for file in values["files"]:
        print(f"{file['name']}  {file['bytes']} bytes  sha256 {file['sha256']}")
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in values["counts"].items()))


def _print_statistics(store: Store) -> None:
    identity, settings = _project(store)
    values = statistics.statistics(store.read, identity, settings)
    if _FORMAT.value == "json":
        print(json.dumps(values))
        return
    table = Table("", "this project", "the paper", box=None, padding=(0, 2, 0, 0))
    for line in statistics.lines(values):
        table.add_row(*line)
    Console().print(table)


def _print_agreement(store: Store) -> None:
    identity, settings = _project(store)
    values = agreement_report.report(collected.outcomes(store.read, identity, several=True), settings)
    if _FORMAT.value == "json":
        print(json.dumps(values))
        return
    states = ", ".join(f"{count} {name}" for name, count in values["states"].items())
    print(f"{values['items']} items, {values['annotators']} annotators ({states})")
    table = Table("level", "measure", "value [95 % interval]", "of", box=None, padding=(0, 2, 0, 0))
    for line in agreement_report.lines(values):
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _write_agreement(store: Store) -> None:
    identity, _ = _project(store)
    text = agreement_report.raw(collected.outcomes(store.read, identity, several=True))
    print(exports.write(Path(_AGREEMENT_TABLE.value), text))


def _add_person(store: Store) -> None:
    _print_token(_ADD.value, people.add(store, _ADD.value, _ROLE.value), _PORT.value)


def _new_token(store: Store) -> None:
    _print_token(_TOKEN.value, people.new_token(store, _TOKEN.value), _PORT.value)


def _print_token(name: str, token: str, port: int) -> None:
    if _FORMAT.value == "json":
        print(json.dumps({"name": name, "token": token}))
    else:
        print(f"{name} signs in with the token {token}\nor opens {_address(port)}/#t={token}")


def _back_up(store: Store) -> None:
    print(schema.backup(store.read, Path(_BACKUP.value)))


def _export_votes(store: Store) -> None:
    count = ballots.export(store.read, Path(_VOTES.value or ""))
    print(json.dumps({"votes": count}) if _FORMAT.value == "json" else f"{_VOTES.value}: {count} votes")


def _ballots(store: Store) -> ballots.Ballots | None:
    """The comparison to serve, if one was named."""
    if not _COMPARE.value:
        return None
    compared = sets.read(_COMPARE.value, _QUESTIONS.value, _NAMES.value, _SPANS.value, _IMAGES.value)
    for note in sets.notes(compared):
        print(f"comparison: {note}")
    return ballots.Ballots(store, compared, _BLIND.value)


def _address(port: int) -> str:
    host = "127.0.0.1" if _HOST.value == "0.0.0.0" else _HOST.value
    return listening.address("https" if _CERTIFICATE.value else "http", host, port)


def _serve(store: Store) -> None:
    try:
        import uvicorn

        from rlhfv_jax.annotation import app, security, serving
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install rlhfv_jax[annotate].") from error
    with listening.bound(_HOST.value, _PORT.value) as listener:
        port = listener.getsockname()[1]
        if not assignment.all_projects(store.read):
            _project(store, create=True)
        if all(person["role"] != "admin" for person in people.listed(store.read)):
            _print_token("admin", people.add(store, "admin", "admin"), port)
        if _HOST.value not in security.LOCAL and not _CERTIFICATE.value:
            print(
                "warning: tokens travel unencrypted; use --certificate and --key, or a proxy that speaks TLS.",
                file=sys.stderr,
            )
        tokenizer = None
        if _TOKENIZER.value:
            from rlhfv_jax.data.tokenizer import MuffinTokenizer

            tokenizer = MuffinTokenizer.from_file(_TOKENIZER.value)
        server = serving.Server(store, tokenizer, _TEMPLATE.value, _IMAGES.value)
        hosts = [*security.LOCAL, *_HOSTS.value, *([] if _HOST.value == "0.0.0.0" else [_HOST.value])]
        config = uvicorn.Config(
            app.build(server, hosts, _IMPORT_MB.value * 2**20, _ballots(store)),
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=_CERTIFICATE.value or None,
            ssl_keyfile=_KEY.value or None,
            timeout_graceful_shutdown=5,
        )
        print(f"Serving {store.folder} on {_address(port)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has stopped
            uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
