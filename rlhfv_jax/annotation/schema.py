"""The tables, and how an older store becomes a newer one."""

import sqlite3
from pathlib import Path

from rlhfv_jax.errors import UserError

# One script for each version; user_version counts those that ran. A released script is never edited.
MIGRATIONS = (
    """
    CREATE TABLE project(
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, config_json TEXT NOT NULL,
        created REAL NOT NULL) STRICT;
    CREATE TABLE annotator(
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        role TEXT NOT NULL CHECK (role IN ('annotator', 'reviewer', 'admin')),
        token_sha256 TEXT NOT NULL UNIQUE, disabled INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL) STRICT;
    CREATE TABLE session(
        sha256 TEXT PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotator(id) ON DELETE CASCADE,
        expires REAL NOT NULL) STRICT;
    CREATE TABLE image(
        sha256 TEXT PRIMARY KEY, mime TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
        name TEXT NOT NULL) STRICT;
    CREATE TABLE item(
        id INTEGER PRIMARY KEY, project INTEGER NOT NULL REFERENCES project(id), ext_id TEXT NOT NULL,
        image_sha256 TEXT NOT NULL REFERENCES image(sha256), prompt TEXT NOT NULL, response TEXT NOT NULL,
        prefill TEXT, model TEXT NOT NULL, source_json TEXT NOT NULL, n_annotators INTEGER NOT NULL DEFAULT 1,
        priority REAL NOT NULL DEFAULT 0, gold_json TEXT, UNIQUE(project, ext_id)) STRICT;
    CREATE TABLE lease(
        item INTEGER NOT NULL REFERENCES item(id), annotator INTEGER NOT NULL REFERENCES annotator(id),
        expires REAL NOT NULL, PRIMARY KEY(item, annotator)) STRICT, WITHOUT ROWID;
    CREATE TABLE annotation(
        id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item(id),
        annotator INTEGER NOT NULL REFERENCES annotator(id), pass INTEGER NOT NULL DEFAULT 1,
        rev INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('draft', 'submitted', 'skipped')),
        corrected TEXT NOT NULL, cuts_json TEXT NOT NULL, verdict TEXT NOT NULL DEFAULT ''
            CHECK (verdict IN ('', 'corrected', 'clean', 'skipped')),
        skip_reason TEXT NOT NULL DEFAULT '', active_ms INTEGER NOT NULL DEFAULT 0, opened REAL NOT NULL,
        updated REAL NOT NULL, UNIQUE(item, annotator, pass)) STRICT;
    CREATE TABLE segment(
        annotation INTEGER NOT NULL REFERENCES annotation(id) ON DELETE CASCADE, ord INTEGER NOT NULL,
        src0 INTEGER NOT NULL, src1 INTEGER NOT NULL, dst0 INTEGER NOT NULL, dst1 INTEGER NOT NULL,
        src_text TEXT NOT NULL, dst_text TEXT NOT NULL, op TEXT NOT NULL, type TEXT NOT NULL,
        PRIMARY KEY(annotation, ord)) STRICT, WITHOUT ROWID;
    CREATE TABLE event(
        id INTEGER PRIMARY KEY, annotation INTEGER NOT NULL REFERENCES annotation(id), rev INTEGER NOT NULL,
        kind TEXT NOT NULL, payload_json TEXT NOT NULL, at REAL NOT NULL, op_id TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE export(
        id INTEGER PRIMARY KEY, project INTEGER NOT NULL REFERENCES project(id), at REAL NOT NULL,
        format TEXT NOT NULL, files_json TEXT NOT NULL, counts_json TEXT NOT NULL) STRICT;
    CREATE INDEX lease_by_annotator ON lease(annotator);
    CREATE INDEX annotation_by_annotator ON annotation(annotator, state);
    CREATE INDEX event_by_annotation ON event(annotation, rev);
    CREATE INDEX item_by_priority ON item(project, priority DESC, id);
    """,
    """
    CREATE TABLE adjudication(
        item INTEGER PRIMARY KEY REFERENCES item(id), reviewer INTEGER NOT NULL REFERENCES annotator(id),
        result_json TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL) STRICT;
    ALTER TABLE item ADD COLUMN filled INTEGER NOT NULL DEFAULT 0; -- submissions and skips; kept by the triggers
    UPDATE item SET filled = (
        SELECT COUNT(*) FROM annotation a WHERE a.item = item.id AND a.state IN ('submitted', 'skipped'));
    CREATE TRIGGER filled_by_insert AFTER INSERT ON annotation WHEN new.state IN ('submitted', 'skipped') BEGIN
        UPDATE item SET filled = filled + 1 WHERE id = new.item; END;
    CREATE TRIGGER filled_by_update AFTER UPDATE OF state ON annotation
        WHEN (new.state IN ('submitted', 'skipped')) <> (old.state IN ('submitted', 'skipped')) BEGIN
        UPDATE item SET filled = filled + CASE WHEN new.state = 'draft' THEN -1 ELSE 1 END WHERE id = new.item; END;
    CREATE TRIGGER filled_by_delete AFTER DELETE ON annotation WHEN old.state IN ('submitted', 'skipped') BEGIN
        UPDATE item SET filled = filled - 1 WHERE id = old.item; END;
    CREATE INDEX item_with_places ON item(project, priority DESC, id) WHERE filled < n_annotators AND gold_json IS NULL;
    CREATE INDEX item_gold ON item(project) WHERE gold_json IS NOT NULL;
    """,
)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the store to this version, a copy put aside first; raises UserError for a store of a newer version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise UserError(
            f"{path} was written by a newer version of the program (schema {version}, this one knows "
            f"{len(MIGRATIONS)}); update the program."
        )
    if 0 < version < len(MIGRATIONS):
        backup(connection, path.with_name(f"{path.stem}.before-schema-{len(MIGRATIONS)}{path.suffix}"))
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def backup(connection: sqlite3.Connection, path: Path) -> Path:
    """A consistent copy of the running store at `path`, which must not exist; its image files are not in it.

    Raises UserError where the file exists.
    """
    if path.exists():
        raise UserError(f"Cannot write {path}: it exists; choose another name or move it away.")
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    connection.execute("VACUUM INTO ?", (str(temporary),))
    temporary.chmod(0o600)
    temporary.rename(path)
    return path
