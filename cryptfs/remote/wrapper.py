"""A remote around a remote: what retrying, limiting, counting and verifying have in common."""

from __future__ import annotations

from pathlib import Path

from cryptfs.remote.base import Capabilities, ObjectInfo, Remote, Source, Space


class Wrapper(Remote):
    """Passes everything on to ``inner``; subclasses say what they do differently."""

    def __init__(self, inner: Remote) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def prepare(self) -> None:
        await self.inner.prepare()

    async def create(self, name: str, source: Source) -> None:
        await self.inner.create(name, source)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return await self.inner.get(name, offset, length)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return await self.inner.list(prefix)

    async def delete(self, name: str) -> None:
        await self.inner.delete(name)

    async def purge(self) -> None:
        await self.inner.purge()

    async def space(self) -> Space | None:
        return await self.inner.space()

    def local_path(self, name: str) -> Path | None:
        return self.inner.local_path(name)

    async def close(self) -> None:
        await self.inner.close()


def source_size(source: Source) -> int:
    """A source's size in bytes."""
    return source.stat().st_size if isinstance(source, Path) else len(source)
