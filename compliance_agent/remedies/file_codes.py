"""The codes by which the Host port refuses to change a file, for every action that writes one or sets its mode."""

from __future__ import annotations

FILE_CODES = {
    "not_a_regular_file": "What is at the path is not a regular file, so it was left alone.",
    "read_only": "The file system is mounted read-only, so nothing was written.",
    "storage_full": "The disk is full, so nothing was written.",
    "unsafe_directory": "Others may write to the directory, so a name in it could be swapped; nothing was written.",
}
