"""The program whose file calls are timed. Standard library only: a client should be light.

    python -I -S client.py WORKLOAD MOUNTPOINT '{"a setting": 1}'

Prints one JSON object, with at least ``seconds`` and ``count``. Random data is made before the
clock starts, anew each time, so no filesystem and no round ever sees the same bytes twice.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
import zlib
from typing import Any

MIB = 1 << 20
POOL = 64 * MIB

# Primes, so that no two pieces cut from the pool at their multiples begin at the same place
# in a 4 KiB block or a chunk: every chunk is new to the filesystem.
BLOCK_STEP = 65_521
FILE_STEP = 10_007

Answer = dict[str, Any]


def random_pool(size: int) -> memoryview:
    return memoryview(os.urandom(size))


def piece(pool: memoryview, number: int, step: int, size: int) -> memoryview:
    start = number * step % (len(pool) - size)
    return pool[start : start + size]


def write(folder: str, size: int) -> Answer:
    """One file from the first to the last byte, then fsync."""
    pool = random_pool(POOL)
    blocks = [piece(pool, number, BLOCK_STEP, MIB) for number in range(size // MIB)]
    start = time.perf_counter()
    fd = os.open(f"{folder}/large", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for block in blocks:
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)
    seconds = time.perf_counter() - start
    check = [zlib.crc32(block) for block in blocks[::16]]
    return {"seconds": seconds, "count": size / 1e6, "check": check}


def read(folder: str, check: list[int]) -> Answer:
    """The same file, 1 MiB at a time into one buffer."""
    buffer = bytearray(MIB)
    size = 0
    start = time.perf_counter()
    fd = os.open(f"{folder}/large", os.O_RDONLY)
    while many := os.readv(fd, [buffer]):
        size += many
    seconds = time.perf_counter() - start
    for number, wanted in enumerate(check):
        if zlib.crc32(os.pread(fd, MIB, 16 * number * MIB)) != wanted:
            raise ValueError("the bytes read are not those written")
    os.close(fd)
    return {"seconds": seconds, "count": size / 1e6}


def forget(folder: str) -> Answer:
    """Free the room again."""
    start = time.perf_counter()
    os.unlink(f"{folder}/large")
    return {"seconds": time.perf_counter() - start, "count": 1}


def create(folder: str, files: int, size: int, folders: int) -> Answer:
    """Small files, each written and closed."""
    pool = random_pool(max(POOL, files * FILE_STEP + 2 * size))
    work = [
        (f"{folder}/files/{number % folders:03}/{number:06}.bin", number) for number in range(files)
    ]
    start = time.perf_counter()
    os.mkdir(f"{folder}/files")
    for number in range(folders):
        os.mkdir(f"{folder}/files/{number:03}")
    for path, number in work:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, piece(pool, number, FILE_STEP, size))
        os.close(fd)
    seconds = time.perf_counter() - start
    check = [zlib.crc32(piece(pool, number, FILE_STEP, size)) for _, number in work[::50]]
    return {"seconds": seconds, "count": files, "check": check}


def walk(folder: str) -> Answer:
    """Every name and its attributes."""
    count = 0
    start = time.perf_counter()
    for here, folders, files in os.walk(f"{folder}/files"):
        for name in folders:
            os.lstat(f"{here}/{name}")
        for name in files:
            os.lstat(f"{here}/{name}")
        count += len(folders) + len(files)
    return {"seconds": time.perf_counter() - start, "count": count}


def read_files(folder: str, files: int, folders: int, check: list[int]) -> Answer:
    """Every small file, in the order of creation."""
    work = [f"{folder}/files/{number % folders:03}/{number:06}.bin" for number in range(files)]
    start = time.perf_counter()
    for path in work:
        fd = os.open(path, os.O_RDONLY)
        while os.read(fd, 131_072):
            pass
        os.close(fd)
    seconds = time.perf_counter() - start
    for path, wanted in zip(work[::50], check, strict=True):
        with open(path, "rb") as file:
            if zlib.crc32(file.read()) != wanted:
                raise ValueError("the bytes read are not those written")
    return {"seconds": seconds, "count": files}


def remove(folder: str) -> Answer:
    """rm -r"""
    count = sum(1 + len(files) for _, _, files in os.walk(f"{folder}/files"))
    start = time.perf_counter()
    subprocess.run(["rm", "-r", f"{folder}/files"], check=True)
    return {"seconds": time.perf_counter() - start, "count": count}


def insert(folder: str, journal: str, rows: int) -> Answer:
    """SQLite, each row a transaction that is durable when it returns."""
    values = [os.urandom(100) for _ in range(rows)]
    path = f"{folder}/{journal}.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    mode = db.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
    if mode != journal:
        raise ValueError(f"the journal is {mode}, not {journal}")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, body BLOB)")
    start = time.perf_counter()
    for value in values:
        db.execute("INSERT INTO message (body) VALUES (?)", (value,))
    seconds = time.perf_counter() - start
    if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
        raise ValueError("the database is damaged")
    db.close()
    return {"seconds": seconds, "count": rows}


def copy(folder: str, tree: str) -> Answer:
    """cp -a of a real tree that is in the page cache."""
    count = 0
    for here, folders, files in os.walk(tree):
        count += len(folders) + len(files)
        for name in files:
            path = f"{here}/{name}"
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    file.read()
    start = time.perf_counter()
    subprocess.run(["cp", "-a", tree, f"{folder}/tree"], check=True)
    return {"seconds": time.perf_counter() - start, "count": count}


def fill(folder: str, files: int, folders: int, size: int) -> Answer:
    """Very many tiny files, for `scripts/bench million`; the clock is not what matters."""
    start = time.perf_counter()
    for number in range(folders):
        os.makedirs(f"{folder}/files/{number:04}")
        for inner in range(number, files, folders):
            fd = os.open(f"{folder}/files/{number:04}/{inner:07}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, os.urandom(size))
            os.close(fd)
    return {"seconds": time.perf_counter() - start, "count": files}


def change_byte(folder: str, offset: int) -> Answer:
    """One byte in the middle of the large file."""
    start = time.perf_counter()
    fd = os.open(f"{folder}/large", os.O_RDWR)
    old = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes([old[0] ^ 1]), offset)
    os.fsync(fd)
    os.close(fd)
    return {"seconds": time.perf_counter() - start, "count": 1}


WORKLOADS = {
    work.__name__: work
    for work in (
        write,
        read,
        forget,
        create,
        walk,
        read_files,
        remove,
        insert,
        copy,
        fill,
        change_byte,
    )
}

if __name__ == "__main__":
    _, workload, where, settings = sys.argv
    print(json.dumps(WORKLOADS[workload](where, **json.loads(settings))))
