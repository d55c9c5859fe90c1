"""Files that are whole or absent, whatever kills the process or the power.

A file or a folder is written under a hidden name beside its own, synced, and then renamed: the
rename is the only moment at which anything changes, and the file system makes it atomic. Hidden
names that a killed process left behind hold nothing of value.
"""

import os
import shutil
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` (not what the files hold) onto the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Force every file below `folder`, and every name, onto the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root, name), os.O_RDONLY)
        sync_folder(Path(root))


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` new content in one moment; a reader sees the old or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        _sync(partial, os.O_RDONLY)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link `link` at `target` in one moment; it never dangles in between."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)
    sync_folder(link.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder that others may read: it loses its name first, then its files."""
    hidden = folder.with_name(f".{folder.name}.removed")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
