"""What is known of one folder in Drive: names, and the files that have them.

Drive's names are not unique and its listings are late by seconds. So what this process made or
removed counts before what a listing says, until a listing has caught up; and of several files
with one name every device picks the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cryptfs.remote.gdrive_wire import File


class Shelf:
    """The files of one folder by name. Invariant: no file that we removed is on it."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, File]] = {}
        self._unlisted: set[str] = set()
        """Ids that we met by themselves and that no listing has shown yet."""
        self._removed: set[str] = set()
        self.is_listed = False

    def __iter__(self) -> Iterator[File]:
        """One file for each name."""
        return (self.pick(name) for name in self._files)

    def named(self, name: str) -> list[File]:
        """Every file of that name, the one that counts first."""
        return sorted(self._files.get(name, {}).values(), key=lambda file: file.age_order)

    def pick(self, name: str) -> File:
        return self.named(name)[0]

    def add(self, file: File) -> None:
        """Puts a file there that surely exists, whatever listings say."""
        self._removed.discard(file.id)
        self._unlisted.add(file.id)
        self._put(file)

    def remove(self, file: File) -> None:
        """Takes a file away that surely is gone, whatever listings say."""
        self._removed.add(file.id)
        self.forget(file)

    def forget(self, file: File) -> None:
        """Takes a file away that may come back, from the trash; the next listing decides."""
        self._unlisted.discard(file.id)
        same_name = self._files.get(file.name, {})
        same_name.pop(file.id, None)
        if not same_name:
            self._files.pop(file.name, None)

    def take_listing(self, listing: Iterable[File]) -> list[File]:
        """Takes over a listing of the whole folder; returns the files to be asked for singly.

        Those are files we met that the listing lacks: it may be late, or they may be gone.
        """
        before = [file for files in self._files.values() for file in files.values()]
        self._files = {}
        for file in listing:
            if file.id not in self._removed:
                self._unlisted.discard(file.id)
                self._put(file)
        unsure = [file for file in before if file.id in self._unlisted]
        for file in unsure:
            self._put(file)
        self.is_listed = True
        return unsure

    def _put(self, file: File) -> None:
        self._files.setdefault(file.name, {})[file.id] = file
